// The panels behind the first one. Each is a function of `play` and fills its place; what is missing it says.
"use strict";

function otherPanels(play) {
  const panels = { annotator: annotatorPanel, price: pricePanel, attention: attentionPanel, bits: bitsPanel, lora: loraPanel };
  for (const [name, panel] of Object.entries(panels)) {
    const sentence = panel(play, byId(name));
    if (sentence) byId(name).replaceChildren(el("p", { className: "card" }, sentence));
  }
}
const dot = (a, b) => a.reduce((sum, x, i) => sum + x * b[i], 0);
const mean = (numbers) => numbers.reduce((a, b) => a + b, 0) / numbers.length;
const row = (...nodes) => el("div", { className: "row" }, ...nodes);
const status = () => el("p", { role: "status" });

function slider(name, { min, max, step = 1, value, says = String }, changed) {
  const input = el("input", { type: "range", min, max, step, value }), output = el("output", {}, says(value));
  input.addEventListener("input", () => ((output.textContent = says(Number(input.value))), changed()));
  return { node: el("label", {}, name, input, output), get value() { return Number(input.value); } };
}

function select(name, choices, changed) { // choices: [[value, text]]
  const input = el("select", {}, ...choices.map(([value, text]) => el("option", { value }, text)));
  input.addEventListener("change", changed);
  return { node: el("label", {}, name, input), get value() { return input.value; } };
}

function drawing(label, width, height, ...parts) { // parts: [tag, attributes, text]
  const make = ([tag, attributes, text = ""]) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...[text].flat());
    return node;
  };
  return make(["svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label, class: "plot" }, parts.map(make)]);
}

// lines: [{points, series, dash}], marks: [{at, series, shape, name}]; x and y are [least, greatest]
function plot(label, { x, y, xName, yName, lines, marks = [] }) {
  const [W, H, left, bottom] = [400, 230, 40, 190], short = (value) => String(Number(value.toPrecision(2)));
  const place = ([a, b]) => [left + ((a - x[0]) / (x[1] - x[0])) * (W - left - 14), bottom - ((b - y[0]) / (y[1] - y[0] || 1)) * 160];
  const text = (words, x, y, anchor = "middle") => ["text", { x, y, "text-anchor": anchor }, words];
  return el("figure", { className: "card" }, drawing(label, W, H, ["path", { d: `M${left} 24V${bottom}H${W - 8}`, class: "axis" }],
    text(short(x[0]), left, bottom + 16), text(short(x[1]), W - 14, bottom + 16), text(xName, W / 2, bottom + 34),
    text(short(y[0]), left - 5, bottom, "end"), text(short(y[1]), left - 5, 36, "end"), text(yName, 4, 14, "start"),
    ...lines.map(({ points, series, dash = "none" }) => ["polyline", { points: points.map((p) => place(p).join()).join(" "),
      fill: "none", stroke: `var(--series-${series})`, "stroke-width": 2, "stroke-dasharray": dash }]),
    ...marks.flatMap(({ at, series, shape, name = "" }) => {
      const [a, b] = place(at);
      return [["text", { x: a, y: b + 6, "text-anchor": "middle", style: `fill:var(--series-${series});font-size:18px` }, shape],
        text(name, a + (a > W - 110 ? -9 : 9), b - 8, a > W - 110 ? "end" : "start")];
    })));
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

function annotatorPanel(play, place) {
  const { pairs } = play.facts, choices = [], said = status(), task = el("div"), result = el("div", { className: "grid" });
  if (!pairs?.length) return "This run has no judged pairs and no reward model: the main job, python -m minialign, makes them.";
  const differences = pairs.map(({ story, texts }) => {
    const [a, b] = texts.map((text) => play.world.score(story, text));
    return [a.helpful - b.helpful, a.honest - b.honest, (b.words - a.words) / 20];
  });
  const agree = ([a, b], choice) => (a === b ? 0.5 : Number(a > b === (choice === 0))), WORDS = ["first", "second"];
  const choose = (choice) => {
    choices.push(choice);
    const { votes, people, rewards } = pairs[choices.length - 1];
    said.textContent = `You chose the ${WORDS[choice]}; of ${people} simulated people ${votes[choice]} did, too. The reward ` +
      `model prefers the ${WORDS[Number(rewards[1] > rewards[0])]}: ${rewards.map((r) => r.toFixed(2)).join(" against ")}.`;
    show();
    task.querySelector("button")?.focus();
  };
  const button = (words, action) => {
    const node = el("button", { type: "button" }, words);
    node.addEventListener("click", action);
    return node;
  };
  const show = () => {
    const pair = pairs[choices.length];
    task.replaceChildren(...(pair ? [el("p", {}, el("b", {}, `Pair ${choices.length + 1} of ${pairs.length}. `), pair.story.text),
      el("div", { className: "grid" }, ...pair.texts.map((text, i) => el("div", { className: "card" },
        el("p", { className: "summary", dir: "auto" }, text || "(it says nothing)"), button(`The ${WORDS[i]} is better`, () => choose(i)))))]
      : [row(button("Choose again", () => (choices.splice(0), (said.textContent = ""), show())))]));
    const count = (field) => choices.reduce((sum, choice, i) => sum + agree(pairs[i][field], choice), 0);
    const fit = bradleyTerry(choices.map((choice, i) => differences[i].map((x) => (choice ? -x : x))));
    result.replaceChildren(...(choices.length ? [el("div", { className: "card" },
      el("p", {}, `You agree with most of the panel in ${count("votes")} of ${choices.length}, with the reward model in ${count("rewards")}.`),
      el("p", {}, `What your choices are worth, as Bradley and Terry fit it: helpful ${fit.weights[0].toFixed(1)}, honest ` +
        `${fit.weights[1].toFixed(1)}, 20 words less ${fit.weights[2].toFixed(1)}. With so few choices, believe the signs at most.`)),
    plot(`Loss of the fit, from ${fit.losses[0].toFixed(2)} to ${fit.losses[150].toFixed(2)} nats`, { x: [0, 150], y: [0, 0.75],
      xName: "step of gradient descent", yName: "loss, nats a pair; guessing is .69", lines: [{ points: fit.losses.map((l, i) => [i, l]), series: 0 }] })] : []));
  };
  place.append(task, said, result);
  show();
}

// Best of n and the price of KL

function bestOf(n, proxy, gold) { // expectation over all ways to draw n of the N completions of one story
  const N = proxy.length, order = [...proxy.keys()].sort((a, b) => proxy[b] - proxy[a]);
  let chance = n / N, found = [0, 0]; // that the best of all is among them; then the next, where the better ones are not
  order.forEach((i, rank) => {
    found = [found[0] + chance * proxy[i], found[1] + chance * gold[i]];
    chance *= (N - rank - n) / (N - rank - 1 || 1);
  });
  return [Math.log(n) - (n - 1) / n, ...found];
}

function tilted(beta, proxy, gold) { // π ∝ π_ref exp(r / β), the best that any policy can do at this price
  const shares = softmax(proxy, beta);
  return [shares.reduce((sum, p) => sum + (p ? p * Math.log(p * proxy.length) : 0), 0), dot(shares, proxy), dot(shares, gold)];
}

function pricePanel(play, place) {
  const { prices } = play.facts;
  if (!prices) return "This needs an instruction-tuned model, a reward model and RLHF; this run has not all of them.";
  const over = (rule, x) => prices.proxy.map((proxy, i) => rule(x, proxy, prices.gold[i])).reduce((sum, point) =>
    sum.map((value, j) => value + point[j] / prices.proxy.length), [0, 0, 0]);
  const N = prices.proxy[0].length, own = [prices.rlhf.kl, prices.rlhf.proxy, prices.rlhf.gold], said = status();
  const counts = Array.from({ length: N }, (_, i) => over(bestOf, i + 1)), betaOf = (step) => 4 * 0.75 ** step;
  const tilts = Array.from({ length: 16 }, (_, step) => over(tilted, betaOf(step))), figures = el("div", { className: "grid" });
  const draw = () => {
    const chosen = [counts[n.value - 1], tilts[beta.value]], most = Math.max(own[0], counts[N - 1][0], tilts[15][0]) * 1.05;
    const words = ([kl, proxy, gold]) => `reward ${proxy.toFixed(2)}, gold ${gold.toFixed(2)}, KL ${kl.toFixed(2)} nats`;
    figures.replaceChildren(...[[1, "reward (the proxy), std"], [2, "gold score"]].map(([j, yName]) => {
      const all = [...counts, ...tilts, own].map((point) => point[j]), pick = (point) => [point[0], point[j]];
      return plot(`${yName} against KL`, { x: [0, most], y: [Math.min(...all), Math.max(...all)], xName: "KL to the reference, nats", yName,
        lines: [{ points: counts.map(pick), series: 0 }, { points: tilts.map(pick), series: 1, dash: "6 4" }],
        marks: [{ at: pick(chosen[0]), series: 0, shape: "●", name: `best of ${n.value}` },
          { at: pick(chosen[1]), series: 1, shape: "■", name: `β ${betaOf(beta.value).toFixed(2)}` }, { at: pick(own), series: 2, shape: "▲", name: "PPO" }] });
    }));
    said.textContent = `Best of ${n.value}: ${words(chosen[0])}. The best policy at β = ${betaOf(beta.value).toFixed(2)}: ${words(chosen[1])}. ` +
      `PPO’s policy: ${words(own)}.`;
  };
  const n = slider("● n, completions to choose from", { min: 1, max: N, value: 4 }, draw);
  const beta = slider("■ β, price of a nat", { min: 0, max: 15, value: 6, says: (step) => betaOf(step).toFixed(2) }, draw);
  place.append(row(n.node, beta.node), said, figures);
  draw();
}

// Attention

function attentionPanel(play, place) {
  const name = play.languages[play.languages.length - 1], { layers, heads } = play.models[name].config;
  const all = Array.from({ length: layers * heads }, (_, i) => [i, `layer ${Math.floor(i / heads) + 1}, head ${(i % heads) + 1}`]);
  const summary = el("p", { className: "summary" }), story = el("p"), list = el("ul", { className: "grid legend" }), said = status();
  let words = [], read = [], current = 0;
  const wordsOf = (pieces, first) => pieces.reduce((found, piece, i) => { // tokens that stand without a blank are one word
    if (!found.length || /^\s/.test(piece) || /\n$/.test(pieces[i - 1])) found.push({ text: "", tokens: [] });
    found[found.length - 1].text += piece;
    found[found.length - 1].tokens.push(first + i);
    return found;
  }, []);
  const look = () => {
    const word = words[current], seen = word && play.said[name].looked[word.tokens[0] - 1]; // who chose the word stands before it
    if (!seen) return;
    const shares = all.map(([i]) => read.map(({ tokens }) => tokens.reduce((sum, s) => sum + seen[Math.floor(i / heads)][i % heads][s], 0)));
    const shown = head.value === "all" ? read.map((_, s) => mean(shares.map((share) => share[s]))) : shares[head.value];
    [...story.children].forEach((node, s) => node.style.setProperty("--share", `${Math.round((100 * shown[s]) / Math.max(...shown, 1e-9))}%`));
    [...summary.children].forEach((node, i) => node.setAttribute("aria-pressed", i === current));
    const best = (share, count) => [...share.keys()].sort((a, b) => share[b] - share[a]).slice(0, count)
      .map((s) => `${read[s].text.trim() || "begin"} ${percent(share[s])}`).join(", ");
    said.textContent = `Before “${word.text.trim()}”, ${head.value === "all" ? "all heads" : all[head.value][1]} looked most at: ${best(shown, 3)}.`;
    list.replaceChildren(...all.map(([i, title]) => el("li", {}, el("b", {}, title), `: ${best(shares[i], 2)}`)));
  };
  const head = select("shown in the story", [["all", "mean of all heads"], ...all], look);
  play.listeners.push(() => {
    read = wordsOf(play.tokenizer.decodeEach(play.asked), 0);
    words = wordsOf(play.said[name].pieces, play.asked.length);
    story.replaceChildren(...read.map(({ text }) => el("span", { className: "kl look" }, text)));
    summary.replaceChildren(...words.map(({ text }, i) => {
      const node = el("button", { type: "button", className: "word" }, text.trim());
      for (const event of ["pointerenter", "focus", "click"]) node.addEventListener(event, () => ((current = i), look()));
      return node;
    }));
    current = Math.min(4, words.length - 1);
    look();
  });
  place.append(el("p", { className: "soft" }, `The summary of the ${NAMES[name]} model:`), summary, row(head.node), story, said, list);
}

// Bits

function withBits(model, { bits, per, mapping, outliers }) { // the linear layers of the blocks in fewer bits
  const CHANNEL = 7, LARGER = 20, weights = { ...model.weights };
  const scaled = (W, factor) => ({ ...W, values: W.values.map((x, i) => (i % W.columns === CHANNEL ? x * factor : x)) });
  for (const [name, W] of Object.entries(model.weights)) {
    const reads = /\.(query|key|value|inner)\.weight$/.test(name); // what reads a norm’s output
    if (/blocks.*_norm\./.test(name) && outliers !== "none") weights[name] = scaled(W, 1 / LARGER); // the product stays as it is
    if (!reads && !/(attention|feed_forward)\.output\.weight$/.test(name)) continue;
    weights[name] = quantized(reads && outliers !== "none" ? scaled(W, LARGER) : W,
      { bits, per, mapping, keep: reads && outliers === "kept" ? [CHANNEL] : [] });
    weights[name].exact = reads && outliers !== "none" ? scaled(W, LARGER) : W;
  }
  return new Transformer(model.config, weights);
}

function perplexity(play, model) { // of some stories’ references
  const losses = play.facts.references.flatMap((text, i) => {
    const ids = [...play.tokenizer.encode(text), play.tokenizer.special.end];
    const logits = completionLogits(model, reader(model, play.prompt(play.facts.stories[i])), ids);
    return ids.map((id, t) => -Math.log(Math.max(softmax(logits[t])[id], 1e-30)));
  });
  return Math.exp(mean(losses));
}

function numberLine(W, bits) { // one row of weights between the codes of both mappings
  const numbers = W.values.slice(0, W.columns), low = Math.min(...numbers, 0), high = Math.max(...numbers, 0);
  const most = Math.max(high, -low), at = (x) => 10 + ((x + most) / (2 * most)) * 380;
  const stroke = (x, y, height, series) => ["line", { x1: at(x), x2: at(x), y1: y, y2: y + height, stroke: `var(--series-${series})`, "stroke-width": 1 }];
  const codes = (mapping, y, series) => {
    const { scale, zero, least, greatest } = mappingOf(numbers, mapping, bits);
    return Array.from({ length: greatest - least + 1 }, (_, i) => stroke(scale * (least + i - zero), y, 16, series));
  };
  const word = (words, y) => ["text", { x: 10, y }, words];
  return el("figure", { className: "card" }, drawing(`${W.columns} weights of one row between ${low.toFixed(2)} and ${high.toFixed(2)}, with the codes of both mappings`,
    400, 150, word(`absmax: ${2 ** bits - 1} codes`, 14), ...codes("absmax", 20, 0), word("weights of one row", 62),
    ...[...numbers].map((x) => stroke(x, 68, 16, 3)), word(`zero-point: ${2 ** bits} codes`, 110), ...codes("zero-point", 116, 1)),
  el("figcaption", {}, `From −${most.toFixed(2)} to ${most.toFixed(2)}, 0 in the middle.`));
}

function bitsPanel(play, place) {
  const name = play.languages[play.languages.length - 1], model = play.models[name], said = status();
  const card = el("div", { className: "card" }), line = el("div"), first = Object.keys(model.weights).find((key) => /query\.weight$/.test(key));
  let number = 0, before = 0;
  const draw = async () => {
    const mine = ++number, chosen = { bits: bits.value, per: per.value, mapping: mapping.value, outliers: outliers.value };
    await pause();
    if (mine !== number || !play.story) return; // the slider has moved on
    const small = withBits(model, chosen), layers = Object.values(small.weights).filter((W) => W.exact);
    const error = Math.sqrt(mean(layers.map((W) => mean([...W.values].map((x, i) => (x - W.exact.values[i]) ** 2)) / mean([...W.exact.values].map((x) => x * x)))));
    const start = reader(small, play.asked), { end } = play.tokenizer.special;
    const written = generate(small, start.last, start.cache, { newTokens: NEW_TOKENS, temperature: 0, end }).ids;
    const pieces = play.tokenizer.decodeEach(written.filter((id) => id !== end)), text = pieces.join("");
    const judged = { pieces, text, ...play.world.score(play.story, text) };
    card.replaceChildren(el("p", { className: "top" }, el("span", {}, `${NAMES[name]}, ${chosen.bits} bits`), el("span", { className: "soft" }, `gold ${judged.gold.toFixed(2)}`)),
      text.trim() ? markedText(judged) : el("p", { className: "summary soft" }, "(it says nothing)"));
    line.replaceChildren(numberLine(small.weights[first].exact, chosen.bits));
    await pause();
    if (mine !== number) return;
    before ||= perplexity(play, model);
    const numbers = layers.reduce((sum, W) => sum + W.values.length, 0);
    said.textContent = `Perplexity of the references ${perplexity(play, small).toFixed(2)}, as the page holds the model ${before.toFixed(2)}. The weights ` +
      `of the ${layers.length} linear layers are off by ${percent(error)}; without scales they take ${Math.round((numbers * chosen.bits) / 8 / 1000)} kB, as 32-bit floats ${Math.round(numbers * 4 / 1000)} kB.`;
  };
  const bits = slider("bits", { min: 2, max: 8, value: 8 }, draw), per = select("a scale for each", [["row", "row"], ["tensor", "tensor"]], draw);
  const mapping = select("mapping", [["absmax", "absmax"], ["zero-point", "zero-point"]], draw);
  const outliers = select("outlier feature", [["none", "none"], ["planted", "one, 20 times as large"], ["kept", "one, kept as it is (LLM.int8())"]], draw);
  place.append(row(bits.node, per.node, mapping.node, outliers.node), said, el("div", { className: "grid" }, card, line));
  play.listeners.push(draw);
}

// LoRA

function loraPanel(play, place) {
  const { update } = play.facts;
  if (!update) return "This needs a pretrained and an instruction-tuned model; this run has not both.";
  const { rows: m, columns: n, codes, scales } = update, values = Float32Array.from(codes, (code, i) => code * scales[Math.floor(i / n)]);
  const largest = values.reduce((most, x) => Math.max(most, Math.abs(x)), 0), said = status(), figures = el("div", { className: "grid" });
  const map = (numbers, words) => { // blue below 0, orange above, the paler the smaller
    const canvas = el("canvas", { width: n, height: m, role: "img", "aria-label": words }), context = canvas.getContext("2d"), image = context.createImageData(n, m);
    numbers.forEach((x, i) => image.data.set([...(x < 0 ? [0, 114, 178] : [214, 96, 0]), Math.min(255, (600 * Math.abs(x)) / largest)], 4 * i));
    context.putImageData(image, 0, 0);
    return el("figure", { className: "card" }, canvas, el("figcaption", {}, words));
  };
  let found = null;
  const draw = () => {
    found ??= singularValues({ rows: m, columns: n, values });
    const r = rank.value, energy = found.map(({ size }) => size * size), total = energy.reduce((a, b) => a + b, 0), equal = (m * n) / (m + n);
    const held = (rank) => energy.slice(0, rank).reduce((a, b) => a + b, 0) / total, product = new Float32Array(m * n);
    for (const { u, v } of found.slice(0, r)) product.forEach((_, i) => (product[i] += u[Math.floor(i / n)] * v[i % n]));
    figures.replaceChildren(map(values, "the update ΔW"), map(product, `A Bᵀ of rank ${r}`), plot("Share of the update that the first directions hold",
      { x: [0, n], y: [0, 1], xName: "rank", yName: "share of ‖ΔW‖² that it holds", lines: [{ points: [0, ...energy.keys(), n].map((k) => [k, held(k)]), series: 0 }],
        marks: [{ at: [r, held(r)], series: 0, shape: "●" }, { at: [equal, held(Math.round(equal))], series: 1, shape: "◆", name: "break-even" }] }));
    said.textContent = `Rank ${r}: r (m + n) = ${(r * (m + n)).toLocaleString("en")} numbers in place of m n = ${(m * n).toLocaleString("en")}, ${percent((r * (m + n)) / (m * n))}; ` +
      `they hold ${percent(held(r))} of the update. Break-even is rank m n / (m + n) = ${Number(equal.toFixed(1))}: from there on two thin matrices save nothing.`;
  };
  const rank = slider("rank r", { min: 0, max: n, value: 8 }, draw);
  place.append(row(rank.node), said, figures);
  play.listeners.push(() => found || draw()); // after the first summaries, which come first
}
