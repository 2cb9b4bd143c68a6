// The first panel: a story, told by each model. Texts are inserted as text, never as markup.
"use strict";
const NAMES = { pretrained: "pretrained", sft: "instruction-tuned", rlhf: "RLHF" }, MARKERS = ["●", "■", "▲"];
const KL_TEMPERATURE = 0.7, NEW_TOKENS = 40, LONGEST = 2000;
const byId = (id) => document.getElementById(`play-${id}`);
const pause = () => new Promise((go) => setTimeout(go, 0)); // lets the page draw
const percent = (share) => `${Math.round(100 * share)}\u00a0%`;
const sum = (numbers) => numbers.reduce((a, b) => a + b, 0);
function el(tag, properties = {}, ...children) { // an element; strings become text
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties))
    name in node ? (node[name] = value) : node.setAttribute(name, value);
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
  return sum(policy.map((p, i) => (p > 0 ? p * Math.log(p / Math.max(reference[i], 1e-300)) : 0)));
}

class Play {
  constructor(facts, weights) {
    Object.assign(this, { facts, tokenizer: new Tokenizer(facts.tokenizer), world: new World(facts.world) });
    this.end = this.tokenizer.special.end;
    this.models = Object.fromEntries(Object.keys(weights).map((name) =>
      [name, new Transformer(facts.models[name].config, weights[name])]));
    this.languages = Object.keys(NAMES).filter((name) => this.models[name]);
    this.last = this.languages[this.languages.length - 1]; // the farthest stage
    Object.assign(this, { listeners: [], latest: 0 }); // listeners: called after each new set of summaries
  }
  prompt(story) {
    const [before, after] = this.facts.templates[story.template];
    return [this.tokenizer.special.begin, ...this.tokenizer.encode(before + story.text + after)];
  }
  storyOf(text) { // a shipped one, or a typed one with the facts that its own sentences state
    const shipped = this.facts.stories.find((story) => story.text === text);
    return shipped ?? { text, template: 0, typed: true, ...this.world.factsOf(text) };
  }
  objection(text) { // what is wrong with a story, as a sentence; "" if nothing is
    if (!text.trim()) return "There is no story: type one, or press New story.";
    const room = Math.min(...this.languages.map((name) => this.models[name].config.context)) - NEW_TOKENS;
    const long = `the models read ${room} tokens, some ${4 * room} letters, and write ${NEW_TOKENS}. Shorten it.`;
    if (text.length > LONGEST) return `That is ${text.length} letters; ${long}`;
    const count = this.prompt({ text, template: 0 }).length;
    return count > room ? `That is ${count} tokens; ${long}` : "";
  }
  remarks(story) { // what a reader of the summaries should know of the story
    const strange = [...new Set(story.text.match(/[^\x20-\x7e\n]/gu) ?? [])].slice(0, 5).join(" ");
    const letters = strange && `The models have never read ${strange}: such letters are taken apart into bytes. `;
    return letters + (story.typed ? `The judge understood ${story.events.length} statements in the ${story.sentences} ` +
      "of this story; it takes them for all that is true, each worth the same. What it cannot read, it cannot judge. " : "");
  }
  reward(read, ids) { // of a completion without its end token
    const model = this.models.reward;
    return model.score(model.read([...ids, this.end], read.cache.copy()), this.facts.models.reward.read);
  }
  write(name, story, prompt, options) { // one model's summary, its tokens, what it looked at, and its gold score
    const model = this.models[name], read = reader(model, prompt, []), { looked } = read.cache;
    const start = { cache: Object.assign(read.cache.copy(), { looked: null }), last: read.last };
    const { ids: all, logits } = generate(model, read.last, read.cache, { newTokens: NEW_TOKENS, end: this.end, ...options });
    return { name, all, logits, looked, start, ...this.judged(story, all) };
  }
  judged(story, all) {
    const ids = all.filter((id) => id !== this.end), pieces = this.tokenizer.decodeEach(ids), text = pieces.join("");
    return { ids, pieces, text, ...this.world.score(story, text) };
  }
}
function summaryCard(said, sentence) { // one model's summary with its marks and numbers, or why there is none
  const place = Object.keys(NAMES).indexOf(said.name);
  const marker = el("span", { className: `marker s${place}`, "aria-hidden": "true" }, MARKERS[place]);
  const top = el("p", { className: "top" }, el("span", {}, marker, ` ${said.title ?? NAMES[said.name]}`));
  if (sentence) return el("div", { className: "card" }, top, el("p", {}, sentence));
  top.append(el("span", { className: "soft" }, `gold ${said.gold.toFixed(2)}`));
  const costliest = said.kl?.indexOf(Math.max(...said.kl)), word = (said.pieces[costliest] ?? "the end").trim();
  const price = said.kl && (said.name === "sft" ? "KL 0: it is the reference" :
    `KL ${sum(said.kl).toFixed(1)} nats, most of it ${said.kl[costliest].toFixed(1)} at “${word}”`);
  const numbers = [said.reward !== undefined && `reward ${said.reward.toFixed(2)}`, price].filter(Boolean).join(", ");
  const aspects = `helpful ${said.helpful.toFixed(2)}, honest ${said.honest.toFixed(2)}, harmless ${said.harmless}`;
  return el("div", { className: "card" }, top, markedText(said),
    ...[numbers, aspects].map((line) => el("p", { className: "scores" }, el("small", {}, line))));
}
function markedText(said) { // statements underlined by verdict, rude words boxed, the KL of each token behind it
  const line = el("p", { className: "summary", dir: "auto" }), { text, statements, rude } = said;
  if (!text.trim()) return line.append("(it says nothing)"), line;
  let at = 0, place = text.length - text.trimStart().length;
  const tokens = said.pieces.map((piece, i) => ({ start: at, end: (at += piece.length), kl: said.kl?.[i] ?? 0 }));
  const put = (parent, start, end) => {
    const cuts = [start, end, ...tokens.map((t) => t.end), ...rude.flat()].filter((x) => x >= start && x <= end);
    const edges = [...new Set(cuts)].sort((a, b) => a - b);
    edges.slice(0, -1).forEach((from, i) => {
      const part = text.slice(from, edges[i + 1]), token = tokens.find((t) => from >= t.start && from < t.end);
      const isRude = rude.some(([a, b]) => from >= a && from < b);
      const node = el("span", { className: "kl" }, isRude ? el("mark", { className: "rude" }, part) : part);
      const shade = Math.min(1, Math.log1p(token?.kl ?? 0) / Math.log1p(3)); // three nats are as dark as it gets
      node.style.setProperty("--share", `${Math.round(100 * shade)}%`);
      parent.append(node);
    });
  };
  for (const { start, end, verdict } of statements) {
    put(line, place, start);
    const statement = el("span", { className: `v ${verdict}` }), heard = { false: " (not true)", remark: "" }[verdict];
    put(statement, start, (place = end));
    line.append(statement, el("span", { className: "hear" }, heard ?? ` (${verdict})`));
  }
  put(line, place, text.trimEnd().length);
  return line;
}

async function summarise(play, text) {
  const objection = play.objection(text), status = byId("said"), mine = ++play.latest;
  status.textContent = objection || "Reading …";
  if (objection) return;
  await pause();
  const began = performance.now(), story = play.storyOf(text), prompt = play.prompt(story), said = {};
  const temperature = Number(byId("temperature").value), seed = Number(byId("seed").value) || 0;
  for (const name of play.languages) {
    said[name] = play.write(name, story, prompt, { temperature, random: randomNumbers(seed) });
    if (await pause(), mine !== play.latest) return; // something else is wanted by now
  }
  const judge = play.models.reward && reader(play.models.reward, prompt);
  for (const one of Object.values(said)) {
    const reference = said.sft && (one === said.sft ? one.logits : completionLogits(play.models.sft, said.sft.start, one.all));
    if (reference) one.kl = one.logits.map((logits, i) => Math.max(0, kl(logits, reference[i])));
    if (judge) one.reward = play.reward(judge, one.ids);
  }
  Object.assign(play, { story, said, asked: prompt, milliseconds: performance.now() - began });
  byId("cards").replaceChildren(...Object.keys(NAMES).map((name) =>
    summaryCard(said[name] ?? { name }, play.facts.missing[name])));
  status.textContent = `${play.remarks(story)}Read and written in ${(play.milliseconds / 1000).toFixed(1)} s.`;
  for (const listener of play.listeners) listener();
}
async function start() {
  const status = byId("missing"), on = (id, event, action) => byId(id).addEventListener(event, action);
  if (/too old/.test(status.textContent)) return;
  try {
    const packed = (id) => inflate(byId(id).textContent), facts = JSON.parse(new TextDecoder().decode(await packed("facts")));
    const play = new Play(facts, unpackWeights(await packed("weights"), facts.models));
    window.play = play; // for whoever opens the console
    let next = facts.start; // of the stories
    const again = () => summarise(play, byId("text").value);
    const show = () => ((byId("text").value = facts.stories[next++ % facts.stories.length].text), again());
    on("new", "click", show);
    for (const [id, event] of [["go", "click"], ["seed", "change"], ["temperature", "change"]]) on(id, event, again);
    on("temperature", "input", ({ target }) =>
      (byId("temperature-said").textContent = Number(target.value) ? target.value : "0, the likeliest word"));
    [byId("story").hidden, status.hidden] = [false, true];
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
