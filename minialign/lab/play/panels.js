// The panels behind the first one. Each is a function of `play` that fills its place, or says what is missing.
"use strict";
function otherPanels(play) {
  for (const [name, panel] of Object.entries({ annotator, price, attention: attentionPanel, bits, lora })) {
    const missing = panel(play, byId(name));
    if (missing) byId(name).append(el("p", { className: "card" }, missing));
  }
}
const dot = (a, b) => sum(a.map((x, i) => x * b[i])), mean = (numbers) => sum(numbers) / numbers.length;
const [row, grid] = ["row", "grid"].map((className) => (...nodes) => el("div", { className }, ...nodes));
const status = () => el("p", { role: "status" });
function button(words, action, className = "") {
  const node = el("button", { type: "button", className }, words);
  node.addEventListener("click", action);
  return node;
}
function slider(name, { min, max, value, says = String }, changed) {
  const input = el("input", { type: "range", min, max, value }), output = el("output", {}, says(value));
  input.addEventListener("input", () => ((output.textContent = says(Number(input.value))), changed()));
  return { node: el("label", {}, name, input, output), get value() { return Number(input.value); } };
}
function select(name, choices, changed) { // choices: {value: text}
  const input = el("select", {}, ...Object.entries(choices).map(([value, text]) => el("option", { value }, text)));
  input.addEventListener("change", changed);
  return { node: el("label", {}, name, input), get value() { return input.value; } };
}
function drawing(label, height, ...parts) { // 400 wide; parts: [tag, attributes, text]
  const make = ([tag, attributes, content = ""]) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...[content].flat());
    return node;
  };
  const attributes = { viewBox: `0 0 400 ${height}`, role: "img", "aria-label": label, class: "plot" };
  return el("figure", { className: "card" }, make(["svg", attributes, parts.map(make)]));
}

// lines: [{points, series, dash}], marks: [{at, series, shape, name}]; x and y are [least, greatest]
function plot(label, { x, y, xName, yName, lines, marks = [] }) {
  const [left, bottom, right] = [46, 190, 386], short = (value) => String(Number(value.toFixed(2)));
  const across = (value) => left + ((value - x[0]) / (x[1] - x[0])) * (right - left);
  const down = (value) => bottom - ((value - y[0]) / (y[1] - y[0] || 1)) * 160;
  const text = (words, x, y, anchor = "middle", style = "") => ["text", { x, y, "text-anchor": anchor, style }, words];
  const line = ({ points, series, dash = "none" }) => ["polyline", { fill: "none", stroke: `var(--series-${series})`,
    points: points.map(([a, b]) => `${across(a)},${down(b)}`).join(" "), "stroke-width": 2, "stroke-dasharray": dash }];
  const mark = ({ at: [a, b], series, shape, name }) => [ // its name stands where a rising curve does not
    text(shape, across(a), down(b) + 6, "middle", `fill:var(--series-${series});font-size:18px`),
    text(name, across(a) + 12, down(b) + 20, across(a) > 330 ? "end" : "start")];
  return drawing(label, 230, ["path", { d: `M${left} 24V${bottom}H${right}`, class: "axis" }],
    text(short(x[0]), left, bottom + 16), text(short(x[1]), right, bottom + 16, "end"), text(xName, 216, bottom + 34),
    text(short(y[0]), left - 5, bottom, "end"), text(short(y[1]), left - 5, 36, "end"), text(yName, 4, 14, "start"),
    ...lines.map(line), ...marks.flatMap(mark));
}

// You are the annotator
function bradleyTerry(differences, steps = 150) { // (n, 3) chosen − rejected: −log σ(w · x), by gradient descent
  const weights = [0, 0, 0], losses = [];
  for (let step = 0; step <= steps; step++) {
    const margins = differences.map((x) => dot(weights, x));
    losses.push(mean(margins.map((margin) => Math.log1p(Math.exp(-margin)))));
    weights.forEach((weight, j) => { // the small last term keeps weights finite where all choices agree
      weights[j] += 2 * (mean(differences.map((x, i) => x[j] / (1 + Math.exp(margins[i])))) - 0.01 * weight);
    });
  }
  return { weights, losses };
}
function annotator(play, place) {
  const { pairs } = play.facts, choices = [], said = status(), task = el("div"), result = grid();
  if (!pairs?.length) return "This run has no judged pairs and reward model: python -m minialign makes them.";
  const WORDS = ["first", "second"], agrees = ([a, b], choice) => (a === b ? 0.5 : Number(a > b === (choice === 0)));
  const differences = pairs.map(({ story, texts }) => {
    const [a, b] = texts.map((text) => play.world.score(story, text));
    return [a.helpful - b.helpful, a.honest - b.honest, (b.words - a.words) / 20];
  });
  const choose = (choice) => {
    const { votes, people, rewards } = pairs[choices.push(choice) - 1];
    said.textContent = `You chose the ${WORDS[choice]}; of ${people} simulated people ${votes[choice]} did, too. The reward ` +
      `model prefers the ${WORDS[Number(rewards[1] > rewards[0])]}: ${rewards.map((r) => r.toFixed(2)).join(" against ")}.`;
    show();
    task.querySelector("button").focus();
  };
  const card = (text, i) => el("div", { className: "card" }, el("p", { className: "summary", dir: "auto" }, text),
    button(`The ${WORDS[i]} is better`, () => choose(i)));
  const show = () => {
    const pair = pairs[choices.length], count = choices.length;
    const again = () => (choices.splice(0), (said.textContent = ""), show());
    task.replaceChildren(...(pair ? [el("p", {}, el("b", {}, `Pair ${count + 1} of ${pairs.length}. `), pair.story.text),
      grid(...pair.texts.map(card))] : [row(button("Choose again", again))]));
    if (!count) return result.replaceChildren();
    const [panel, model] = ["votes", "rewards"].map((field) => sum(choices.map((choice, i) => agrees(pairs[i][field], choice))));
    const { weights, losses } = bradleyTerry(choices.map((choice, i) => differences[i].map((x) => (choice ? -x : x))));
    const [helpful, honest, brief] = weights.map((weight) => weight.toFixed(1));
    const lines = [`Of ${count} choices you agree in ${panel} with most of the panel, in ${model} with the reward model.`,
      `What your choices are worth, as Bradley and Terry fit it: helpful ${helpful}, honest ${honest}, 20 words less ${brief}. ` +
      "With so few choices, believe the signs at most."];
    result.replaceChildren(el("div", { className: "card" }, ...lines.map((line) => el("p", {}, line))),
    plot(`Loss of the fit, from ${losses[0].toFixed(2)} to ${losses[150].toFixed(2)} nats`, { x: [0, 150], y: [0, 0.75],
      xName: "step of gradient descent", yName: "loss, nats a pair; guessing is .69",
      lines: [{ points: losses.map((loss, step) => [step, loss]), series: 0 }] }));
  };
  place.append(task, said, result);
  show();
}

// Best of n and the price of KL: each rule gives [KL, proxy, gold]
function bestOf(n, proxy, gold) { // expectation over all ways to draw n of the N completions to one story
  const N = proxy.length, order = [...proxy.keys()].sort((a, b) => proxy[b] - proxy[a]), found = [0, 0];
  order.reduce((chance, i, rank) => { // that i is drawn and nothing better is
    [proxy[i], gold[i]].forEach((value, j) => (found[j] += chance * value));
    return chance * (N - rank - n) / (N - rank - 1 || 1);
  }, n / N);
  return [Math.log(n) - (n - 1) / n, ...found];
}
function tilted(beta, proxy, gold) { // π ∝ π_ref exp(r / β), the best that any policy can do at this price
  const shares = softmax(proxy, beta);
  return [sum(shares.map((p) => (p ? p * Math.log(p * proxy.length) : 0))), dot(shares, proxy), dot(shares, gold)];
}
function price(play, place) {
  const { prices } = play.facts;
  if (!prices) return "This needs an instruction-tuned model, a reward model and RLHF; this run has not all of them.";
  const over = (rule, x) => prices.proxy.map((proxy, i) => rule(x, proxy, prices.gold[i]));
  const average = (points) => [0, 1, 2].map((j) => mean(points.map((point) => point[j])));
  const N = prices.proxy[0].length, ppo = [prices.rlhf.kl, prices.rlhf.proxy, prices.rlhf.gold], said = status();
  const betaOf = (step) => 4 * 0.75 ** step, figures = grid();
  const counts = Array.from({ length: N }, (_, i) => average(over(bestOf, i + 1)));
  const tilts = Array.from({ length: 16 }, (_, step) => average(over(tilted, betaOf(step))));
  const all = [...counts, ...tilts, ppo], words = ([kl, proxy, gold]) =>
    `reward ${proxy.toFixed(2)}, gold ${gold.toFixed(2)}, KL ${kl.toFixed(2)} nats`;
  const draw = () => {
    const best = counts[n.value - 1], tilt = tilts[beta.value], named = betaOf(beta.value).toFixed(2);
    figures.replaceChildren(...[[1, "reward (the proxy), std"], [2, "gold score"]].map(([j, yName]) => {
      const at = (point) => [point[0], point[j]], heights = all.map((point) => point[j]);
      return plot(`${yName} against KL`, { x: [0, 1.05 * Math.max(...all.map(([kl]) => kl))], yName,
        y: [Math.min(...heights), Math.max(...heights)], xName: "KL to the reference, nats",
        lines: [{ points: counts.map(at), series: 0 }, { points: tilts.map(at), series: 1, dash: "6 4" }],
        marks: [{ at: at(best), series: 0, shape: "●", name: `best of ${n.value}` },
          { at: at(tilt), series: 1, shape: "■", name: `β ${named}` }, { at: at(ppo), series: 2, shape: "▲", name: "PPO" }] });
    }));
    said.textContent = `Best of ${n.value}: ${words(best)}. The best policy at β = ${named}: ${words(tilt)}. PPO: ${words(ppo)}.`;
  };
  const n = slider("● n, completions to choose from", { min: 1, max: N, value: 4 }, draw);
  const beta = slider("■ β, price of a nat", { min: 0, max: 15, value: 11, says: (step) => betaOf(step).toFixed(2) }, draw);
  place.append(row(n.node, beta.node), said, figures);
  draw();
}
function attentionPanel(play, place) {
  const name = play.last, { layers, heads } = play.models[name].config;
  const all = Array.from({ length: layers * heads }, (_, i) => `layer ${Math.floor(i / heads) + 1}, head ${(i % heads) + 1}`);
  const summary = el("p", { className: "summary" }), story = el("p"), said = status();
  const list = el("ul", { className: "grid legend" });
  let words = [], read = [], current = 0;
  const wordsOf = (pieces, first) => pieces.reduce((found, piece, i) => { // tokens without a blank between them
    if (!found.length || /^\s/.test(piece) || /\n$/.test(pieces[i - 1])) found.push({ text: "", tokens: [] });
    found[found.length - 1].text += piece;
    found[found.length - 1].tokens.push(first + i);
    return found;
  }, []);
  const look = () => {
    const word = words[current], seen = word && play.said[name].looked[word.tokens[0] - 1]; // what stood before chose it
    if (!seen) return;
    const share = (i, tokens) => sum(tokens.map((s) => seen[Math.floor(i / heads)][i % heads][s]));
    const shares = all.map((_, i) => read.map(({ tokens }) => share(i, tokens)));
    const shown = head.value === "mean" ? read.map((_, s) => mean(shares.map((share) => share[s]))) : shares[head.value];
    const best = (share, count) => [...share.keys()].sort((a, b) => share[b] - share[a]).slice(0, count)
      .map((s) => `${read[s].text.trim() || "the beginning"} ${percent(share[s])}`).join(", ");
    [...story.children].forEach((node, s) =>
      node.style.setProperty("--share", `${Math.round((100 * shown[s]) / Math.max(...shown, 1e-9))}%`));
    [...summary.children].forEach((node, i) => node.setAttribute("aria-pressed", i === current));
    said.textContent = `Before “${word.text.trim()}”, ${all[head.value] ?? "all heads"} looked most at: ${best(shown, 3)}.`;
    list.replaceChildren(...all.map((title, i) => el("li", {}, el("b", {}, title), `: ${best(shares[i], 2)}`)));
  };
  const head = select("shown in the story", { ...all, mean: "mean of all heads" }, look);
  head.node.lastChild.value = "mean";
  play.listeners.push(() => {
    read = wordsOf(play.tokenizer.decodeEach(play.asked), 0);
    words = wordsOf(play.said[name].pieces, play.asked.length);
    story.replaceChildren(...read.map(({ text }) => el("span", { className: "kl look" }, text)));
    summary.replaceChildren(...words.map(({ text }, i) => {
      const take = () => ((current = i), look()), node = button(text.trim(), take, "word");
      for (const event of ["pointerenter", "focus"]) node.addEventListener(event, take);
      return node;
    }));
    current = Math.min(1, words.length - 1);
    look();
  });
  place.append(el("p", { className: "soft" }, `The summary of the ${NAMES[name]} model:`), summary, row(head.node), story, said, list);
}

// Bits
function withBits(model, { bits, per, mapping, outlier }) { // a model with the linear layers of its blocks in fewer bits
  const CHANNEL = 7, LARGER = 20, weights = { ...model.weights }, layers = [];
  const scaled = (W, factor) => outlier === "none" ? W :
    ({ ...W, values: W.values.map((x, i) => (i % W.columns === CHANNEL ? x * factor : x)) });
  for (const [name, W] of Object.entries(weights)) {
    const reads = /\.(query|key|value|inner)\.weight$/.test(name); // what reads a norm’s output
    if (/blocks.*_norm\./.test(name)) weights[name] = scaled(W, 1 / LARGER); // so their product stays as it is
    if (!reads && !/blocks.*\.output\.weight$/.test(name)) continue;
    const exact = reads ? scaled(W, LARGER) : W, keep = reads && outlier === "kept" ? [CHANNEL] : [];
    layers.push({ exact, rounded: (weights[name] = quantized(exact, { bits, per, mapping, keep })) });
  }
  return { small: new Transformer(model.config, weights), layers };
}
function perplexity(play, model) { // of some stories’ references
  return Math.exp(mean(play.facts.references.flatMap((text, i) => {
    const ids = [...play.tokenizer.encode(text), play.end];
    const logits = completionLogits(model, reader(model, play.prompt(play.facts.stories[i])), ids);
    return ids.map((id, t) => -Math.log(Math.max(softmax(logits[t])[id], 1e-30)));
  })));
}
function numberLine(W, bits) { // one row of weights between the codes of both mappings
  const numbers = [...W.values.slice(0, W.columns)], most = Math.max(...numbers.map(Math.abs));
  const stroke = (y, series) => (value) => ["path", { d: `M${200 + (value / most) * 185} ${y}v16`, stroke: `var(--series-${series})` }];
  const codes = (mapping, y, series) => {
    const { scale, zero, least, greatest } = mappingOf(numbers, mapping, bits), count = greatest - least + 1;
    return [["text", { x: 10, y: y - 6 }, `${mapping}: ${count} codes`],
      ...Array.from({ length: count }, (_, i) => scale * (least + i - zero)).map(stroke(y, series))];
  };
  const label = `${W.columns} weights of one row, −${most.toFixed(2)} to ${most.toFixed(2)}`;
  return drawing(label, 160, ...codes("absmax", 20, 0), ["text", { x: 10, y: 62 }, label], ...numbers.map(stroke(68, 3)),
    ...codes("zero-point", 116, 1));
}
function bits(play, place) {
  const model = play.models[play.last], said = status(), shown = grid();
  let latest = 0, before = 0;
  const draw = async () => {
    const mine = ++latest;
    if (await pause(), mine !== latest || !play.story) return; // the slider has moved on
    const chosen = { bits: count.value, per: per.value, mapping: mapping.value, outlier: outlier.value };
    const { small, layers } = withBits(model, chosen), start = reader(small, play.asked);
    const { ids } = generate(small, start.last, start.cache, { newTokens: NEW_TOKENS, temperature: 0, end: play.end });
    const title = `${NAMES[play.last]}, ${chosen.bits} bits`;
    shown.replaceChildren(summaryCard({ name: play.last, title, ...play.judged(play.story, ids) }), numberLine(layers[0].exact, chosen.bits));
    if (await pause(), mine !== latest) return;
    before ||= perplexity(play, model);
    const squares = (W, other) => sum(Array.from(W.values, (x, i) => (x - (other ? other.values[i] : 0)) ** 2));
    const error = mean(layers.map(({ exact, rounded }) => Math.sqrt(squares(exact, rounded) / squares(exact))));
    const numbers = sum(layers.map(({ exact }) => exact.values.length)), kilobytes = (bits) => Math.round(numbers * bits / 8000);
    said.textContent = `Perplexity of ${play.facts.references.length} references: ${(error ? perplexity(play, small) : before).toFixed(2)}; before, ` +
      `${before.toFixed(2)}. The weights of the ${layers.length} linear layers are off by ${percent(error)} and take ` +
      `${kilobytes(chosen.bits)} kB without their scales; as 32-bit floats, ${kilobytes(32)} kB.`;
  };
  const count = slider("bits", { min: 2, max: 8, value: 8 }, draw);
  const per = select("a scale for each", { row: "row", tensor: "tensor" }, draw);
  const mapping = select("mapping", { absmax: "absmax", "zero-point": "zero-point" }, draw);
  const outlier = select("outlier feature", { none: "none", planted: "one, 20 times as large", kept: "one, kept as it is" }, draw);
  place.append(row(count.node, per.node, mapping.node, outlier.node), said, shown);
  play.listeners.push(draw);
}
function lora(play, place) {
  const { update } = play.facts;
  if (!update) return "This needs a pretrained and an instruction-tuned model; this run has not both.";
  const { sizes } = update, n = sizes.length, energy = sizes.map((x) => x * x), figure = el("div"), said = status();
  const held = (rank) => sum(energy.slice(0, rank)) / sum(energy);
  const draw = () => {
    const r = rank.value, thin = 2 * n * r, own = percent(held(r));
    figure.replaceChildren(plot(`The first ${r} directions hold ${own} of the update`, { x: [0, n], y: [0, 1], xName: "rank",
      yName: "share of ‖ΔW‖² that it holds", lines: [{ points: [...sizes.keys(), n].map((k) => [k, held(k)]), series: 0 },
        { points: sizes.map((size, k) => [k, size / sizes[0]]), series: 3, dash: "2 4" }],
      marks: [{ at: [r, held(r)], series: 0, shape: "●", name: own },
        { at: [n / 2, held(n / 2)], series: 1, shape: "◆", name: "break-even" }] }));
    said.textContent = `Rank ${r}: r (m + n) = ${thin} numbers in place of m n = ${n * n}, ${percent(thin / n / n)}; they hold ` +
      `${own} of the update. Break-even is rank m n / (m + n) = ${n / 2}: from there on nothing is saved.`;
  };
  const rank = slider("rank r", { min: 0, max: n, value: 8 }, draw);
  place.append(row(rank.node), said, figure);
  draw();
}
