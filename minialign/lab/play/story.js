// The first panel: a story, told by the pretrained, the instruction-tuned and the RLHF model. Texts are inserted as
// text, never as markup.
"use strict";

const MARKERS = { pretrained: "●", sft: "■", rlhf: "▲" }, NAMES = { pretrained: "pretrained", sft: "instruction-tuned", rlhf: "RLHF" };
const KL_TEMPERATURE = 0.7, NEW_TOKENS = 40, LONGEST = 2000;
const byId = (id) => document.getElementById(`play-${id}`);
const pause = () => new Promise((go) => setTimeout(go, 0)); // lets the page draw
const percent = (share) => `${Math.round(100 * share)} %`;

function el(tag, properties = {}, ...children) { // an element; strings become text
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties))
    if (name in node) node[name] = value;
    else node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function reader(model, prompt, looked = null) { // a prompt, read once: where a completion can begin
  const cache = Object.assign(new Cache(model.config), { looked }), vectors = model.read(prompt, cache);
  return { cache, last: vectors[vectors.length - 1] };
}

function completionLogits(model, { cache, last }, ids) { // (R, V) what a model would have said at each place
  return [last, ...model.read(ids.slice(0, -1), cache.copy())].map((hidden) => model.logits(hidden));
}

function kl(policyLogits, referenceLogits) { // Σ π (log π − log π_ref), nats
  const [policy, reference] = [policyLogits, referenceLogits].map((logits) => softmax(logits, KL_TEMPERATURE));
  return policy.reduce((sum, p, i) => sum + (p > 0 ? p * Math.log(p / Math.max(reference[i], 1e-300)) : 0), 0);
}

function rewardOf(play, read, ids) { // ids without the end token
  const model = play.models.reward;
  return model.score(model.read([...ids, play.tokenizer.special.end], read.cache.copy()), play.facts.models.reward.read);
}

class Play {
  constructor(facts, weights) {
    this.facts = facts;
    this.tokenizer = new Tokenizer(facts.tokenizer);
    this.world = new World(facts.world);
    this.models = Object.fromEntries(Object.keys(weights).map((name) =>
      [name, new Transformer(facts.models[name].config, weights[name])]));
    this.languages = Object.keys(NAMES).filter((name) => this.models[name]);
    this.listeners = []; // called after each new set of summaries
  }
  prompt(story) {
    const [before, after] = this.facts.templates[story.template];
    const { begin } = this.tokenizer.special;
    return [begin, ...this.tokenizer.encode(before + story.text + after)];
  }
  storyOf(text) { // a shipped one, or a typed one with the facts that its own sentences state
    const shipped = this.facts.stories.find((story) => story.text === text);
    return shipped ?? { text, template: 0, typed: true, ...this.world.factsOf(text) };
  }
  objection(text) { // what is wrong with a story, as a sentence; "" if nothing is
    if (!text.trim()) return "There is no story: type one, or press New story.";
    const room = Math.min(...this.languages.map((name) => this.models[name].config.context)) - NEW_TOKENS;
    if (text.length > LONGEST) return `That is ${text.length} letters; the models read ${room} tokens, some ${4 * room}. Shorten it.`;
    const count = this.prompt({ text, template: 0 }).length;
    return count > room ? `That is ${count} tokens; the models read ${room} and write ${NEW_TOKENS}. Shorten it.` : "";
  }
  remarks(story) { // what a reader of the summaries should know of the story
    const strange = [...new Set(story.text.match(/[^\x20-\x7e\n]/gu) ?? [])].slice(0, 5).join(" ");
    const letters = strange && `The models have never read ${strange}: the tokenizer takes such letters apart into bytes. `;
    if (!story.typed) return letters;
    return `${letters}The judge understood ${story.events.length ? "" : "nothing: "}${story.events.length} statements in the ` +
      `${story.sentences} of this story and takes them for all that is true, each worth the same; what it cannot read, it cannot judge.`;
  }
  write(name, story, prompt, options) { // one model's summary
    const model = this.models[name], read = reader(model, prompt, []);
    const start = Object.assign(read.cache.copy(), { looked: null });
    const said = generate(model, read.last, read.cache, { ...options, newTokens: NEW_TOKENS, end: this.tokenizer.special.end });
    const ids = said.ids.filter((id) => id !== this.tokenizer.special.end), pieces = this.tokenizer.decodeEach(ids);
    const text = pieces.join("");
    return { name, ids, all: said.ids, logits: said.logits, pieces, text, looked: read.cache.looked,
             read: { cache: start, last: read.last }, ...this.world.score(story, text) };
  }
}

function summaryCard(said, sentence) { // one model's summary with its marks and numbers
  const title = el("span", {}, el("span", { className: `marker s${Object.keys(NAMES).indexOf(said.name)}`, "aria-hidden": "true" },
    MARKERS[said.name]), ` ${NAMES[said.name]}`);
  if (sentence) return el("div", { className: "card" }, el("p", { className: "top" }, title), el("p", {}, sentence));
  const scores = `helpful ${said.helpful.toFixed(2)}, honest ${said.honest.toFixed(2)}, harmless ${said.harmless}`;
  const costliest = said.kl ? said.kl.indexOf(Math.max(...said.kl)) : 0;
  const price = said.kl && ["KL ", el("b", {}, `${said.kl.reduce((a, b) => a + b, 0).toFixed(1)} nats`),
    said.name === "sft" ? ": it is the reference" : `, most of it ${said.kl[costliest].toFixed(1)} at “${(said.pieces[costliest] ?? "the end").trim()}”`];
  const reward = said.reward === undefined ? [] : ["reward ", el("b", {}, said.reward.toFixed(2)), ", "];
  return el("div", { className: "card", id: `play-card-${said.name}` },
    el("p", { className: "top" }, title, el("span", { className: "soft" }, `gold ${said.gold.toFixed(2)}`)),
    said.text.trim() ? markedText(said) : el("p", { className: "summary soft" }, "(it says nothing)"),
    el("p", { className: "scores" }, el("small", {}, ...reward, ...(price || []))), el("p", { className: "scores" }, el("small", {}, scores)));
}

function markedText(said) { // statements underlined by verdict, rude words boxed, the KL of each token behind it
  const line = el("p", { className: "summary", dir: "auto" }), { text, statements, rude } = said;
  let at = 0;
  const tokens = said.pieces.map((piece, i) => ({ start: at, end: (at += piece.length), kl: said.kl?.[i] ?? 0 }));
  const put = (parent, start, end) => {
    const within = (x) => x > start && x < end;
    const cuts = [start, end, ...tokens.map((t) => t.end), ...rude.flat()].filter((x) => within(x) || x === start || x === end);
    const edges = [...new Set(cuts)].sort((a, b) => a - b);
    edges.slice(0, -1).forEach((from, i) => {
      const part = text.slice(from, edges[i + 1]), token = tokens.find((t) => from >= t.start && from < t.end);
      const shade = Math.min(1, Math.log1p(token?.kl ?? 0) / Math.log1p(3)); // three nats are as dark as it gets
      const node = el("span", { className: "kl" }, rude.some(([a, b]) => from >= a && from < b) ? el("mark", { className: "rude" }, part) : part);
      node.style.setProperty("--share", `${Math.round(100 * shade)}%`);
      parent.append(node);
    });
  };
  at = 0;
  let place = text.length - text.trimStart().length;
  for (const { start, end, verdict } of statements) {
    put(line, place, start);
    const statement = el("span", { className: `v ${verdict}` });
    put(statement, start, (place = end));
    line.append(statement, el("span", { className: "hear" }, verdict === "remark" ? "" : ` (${verdict === "false" ? "not true" : verdict})`));
  }
  put(line, place, text.trimEnd().length);
  return line;
}

async function summarise(play, text) {
  const objection = play.objection(text), status = byId("said");
  if (objection) return void (status.textContent = objection);
  status.textContent = "Reading …";
  await pause();
  const began = performance.now(), story = play.storyOf(text), prompt = play.prompt(story);
  const temperature = Number(byId("temperature").value), seed = Number(byId("seed").value) || 0;
  const said = {};
  for (const name of play.languages) {
    said[name] = play.write(name, story, prompt, { temperature, random: randomNumbers(seed) });
    await pause();
  }
  const judge = play.models.reward && reader(play.models.reward, prompt);
  for (const one of Object.values(said)) {
    if (said.sft) {
      const reference = one === said.sft ? one.logits : completionLogits(play.models.sft, said.sft.read, one.all);
      one.kl = one.logits.map((logits, i) => Math.max(0, kl(logits, reference[i])));
    }
    if (judge) one.reward = rewardOf(play, judge, one.ids);
  }
  Object.assign(play, { story, asked: prompt, said, milliseconds: performance.now() - began });
  byId("cards").replaceChildren(...Object.keys(NAMES).map((name) => summaryCard(said[name] ?? { name }, play.facts.missing[name])));
  const tokens = prompt.length + Object.values(said).reduce((sum, one) => sum + one.all.length, 0);
  status.textContent = `${play.remarks(story)}${tokens} tokens read and written in ${(play.milliseconds / 1000).toFixed(1)} s.`;
  for (const listener of play.listeners) await listener();
}

async function start() {
  const status = byId("missing");
  try {
    const packed = (id) => inflate(byId(id).textContent);
    const facts = JSON.parse(new TextDecoder().decode(await packed("facts")));
    const play = new Play(facts, unpackWeights(await packed("weights"), facts.models));
    window.play = play; // for whoever opens the console
    let next = 0;
    const show = () => ((byId("text").value = facts.stories[next++ % facts.stories.length].text), summarise(play, byId("text").value));
    byId("new").addEventListener("click", show);
    byId("go").addEventListener("click", () => summarise(play, byId("text").value));
    byId("seed").addEventListener("change", () => summarise(play, byId("text").value));
    byId("temperature").addEventListener("change", () => summarise(play, byId("text").value));
    byId("temperature").addEventListener("input", ({ target }) =>
      (byId("temperature-said").textContent = Number(target.value) ? target.value : "0, the likeliest word"));
    byId("story").hidden = false;
    status.hidden = true;
    if (typeof otherPanels === "function") otherPanels(play);
    await show();
    document.body.dataset.play = "ready";
  } catch (error) {
    status.hidden = false;
    status.textContent = `Something is broken here (${error.message}). Make the page again: python -m minialign play.`;
    document.body.dataset.play = "broken";
  }
}
if (typeof document !== "undefined") document.addEventListener("DOMContentLoaded", start);
