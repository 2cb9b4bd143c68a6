// The decoder of transformer.py in plain JavaScript, to be read beside it: same names, same order.
//
// It reads one token a call, so there is no batch and no padding; who may look at whom is said by what the cache holds.
//     S tokens read so far    D width    H heads    d = D / H    V vocabulary    k positions of the short convolution
// A matrix is {rows, columns, values}, values row by row; a vector's matrix has one row. Weights: see weights.js.
"use strict";

class Cache { // cache.py: keys and values of what was read
  constructor(config) {
    const room = () => Array.from({ length: config.layers }, () => new Float32Array(config.context * config.width));
    [this.keys, this.values] = [room(), room()]; // N times (S, D)
    this.recent = Array.from({ length: 2 * config.layers }, () => []); // the last k − 1 inputs of each convolution
    this.length = 0; // S
    this.looked = null; // where a list is put, each call adds its attention: [layer][head] (S)
  }
  copy() {
    const other = Object.assign(Object.create(Cache.prototype), this);
    for (const name of ["keys", "values", "recent"]) other[name] = this[name].map((part) => part.slice());
    return other;
  }
}

const ACTIVATIONS = {
  relu: (x) => Math.max(x, 0),
  gelu: (x) => 0.5 * x * (1 + erf(x / Math.SQRT2)),
  gelu_tanh: (x) => 0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3))),
};
function erf(x) { // Abramowitz & Stegun 1964, 7.1.26: error below 1.5e-7
  const t = 1 / (1 + 0.3275911 * Math.abs(x));
  const series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))));
  return Math.sign(x) * (1 - series * Math.exp(-x * x));
}

function linear(x, W, b = null) { // W x + b: x (columns) -> (rows)
  const { rows, columns, values } = W, y = new Float32Array(rows);
  for (let i = 0, at = 0; i < rows; i++) {
    let even = b ? b.values[i] : 0, odd = 0, j = 0; // two sums side by side are a third faster than one
    for (; j + 1 < columns; j += 2, at += 2) {
      even += values[at] * x[j];
      odd += values[at + 1] * x[j + 1];
    }
    y[i] = even + odd + (j < columns ? values[at++] * x[j] : 0);
  }
  return y;
}

function layerNorm(x, weight, bias) { // (D)
  let mean = 0, variance = 0;
  for (const value of x) mean += value / x.length;
  for (const value of x) variance += (value - mean) ** 2 / x.length;
  const scale = 1 / Math.sqrt(variance + 1e-5);
  return x.map((value, i) => (value - mean) * scale * weight.values[i] + bias.values[i]);
}
function softmax(logits, temperature = 1) { // (V) -> (V)
  const highest = logits.reduce((a, b) => Math.max(a, b), -Infinity);
  const shares = new Float64Array(logits).map((logit) => Math.exp((logit - highest) / temperature));
  const sum = shares.reduce((a, b) => a + b, 0);
  return shares.map((share) => share / sum);
}

// softmax(q Kᵀ / √d) V of one head: the one query of this call, d numbers from `head`; keys and values (S, D).
function attention(query, keys, values, S, D, d, head, mixed) {
  const scores = new Float64Array(S); // (S)
  for (let s = 0; s < S; s++) {
    for (let i = head; i < head + d; i++) scores[s] += query[i] * keys[s * D + i];
    scores[s] /= Math.sqrt(d);
  }
  const shares = softmax(scores); // (S)
  for (let s = 0; s < S; s++) for (let i = head; i < head + d; i++) mixed[i] += shares[s] * values[s * D + i];
  return shares;
}

function rotate(x, position, heads, base = 10000) { // (D): turn each pair (xᵢ, xᵢ₊d/2) of a head by its position
  const d = x.length / heads, turned = new Float32Array(x.length);
  for (let i = 0; i < d / 2; i++) {
    const angle = position * base ** ((-2 * i) / d), cos = Math.cos(angle), sin = Math.sin(angle);
    for (let first = i; first < x.length; first += d) {
      const second = first + d / 2;
      turned[first] = x[first] * cos - x[second] * sin;
      turned[second] = x[second] * cos + x[first] * sin;
    }
  }
  return turned;
}

const add = (x, y) => x.map((value, i) => value + y[i]);
class Transformer { // with what stands on it: LanguageModel's logits, ScalarModel's number; weights: name -> matrix
  constructor(config, weights) { Object.assign(this, { config, weights }); }
  part(layer, name) { return this.weights[`body.blocks.${layer}.${name}`]; }
  linear(x, layer, name) { return linear(x, this.part(layer, `${name}.weight`), this.part(layer, `${name}.bias`)); }
  attention(x, layer, cache) { // class Attention: (D) -> (D)
    const { width: D, heads: H, positions } = this.config, d = D / H, S = cache.length + 1;
    let [query, key, value] = ["query", "key", "value"].map((name) => this.linear(x, layer, `attention.${name}`)); // (D)
    if (positions === "rotary") [query, key] = [query, key].map((x) => rotate(x, cache.length, H));
    cache.keys[layer].set(key, cache.length * D);
    cache.values[layer].set(value, cache.length * D);
    const mixed = new Float32Array(D), looked = [];
    for (let head = 0; head < D; head += d)
      looked.push(attention(query, cache.keys[layer], cache.values[layer], S, D, d, head, mixed));
    if (cache.looked) cache.looked[cache.looked.length - 1].push(looked);
    return this.linear(mixed, layer, "attention.output");
  }
  feedForward(x, layer) { // class FeedForward, W₂ f(W₁ x): (D) -> (D)
    const inner = this.linear(x, layer, "feed_forward.inner").map(ACTIVATIONS[this.config.activation]); // (4 D)
    return this.linear(inner, layer, "feed_forward.output");
  }
  block(x, layer, cache) { // class Block: each part adds its result to the stream; (D) -> (D)
    const norm = (x, name) => layerNorm(x, this.part(layer, `${name}.weight`), this.part(layer, `${name}.bias`));
    x = add(x, this.attention(this.mixed(0, norm(x, "attention_norm"), layer, cache), layer, cache));
    return add(x, this.feedForward(this.mixed(1, norm(x, "feed_forward_norm"), layer, cache), layer));
  }
  mixed(place, x, layer, cache) { // (D) with its short convolution, if it has one
    const W = this.part(layer, `convolutions.${place}.weight`);
    return W ? shortConvolution(x, W, cache.recent[2 * layer + place]) : x;
  }
  row(name, i) { return this.weights[name].values.slice(i * this.config.width, (i + 1) * this.config.width); } // (D)
  forward(token, cache) { // one token in, its (D) vector after the last norm out
    if (cache.length >= this.config.context) throw new RangeError(`more than ${this.config.context} tokens`);
    let x = this.row("body.token_embedding.weight", token);
    if (this.config.positions === "learned") x = add(x, this.row("body.position_embedding.weight", cache.length));
    if (cache.looked) cache.looked.push([]);
    for (let layer = 0; layer < this.config.layers; layer++) x = this.block(x, layer, cache);
    cache.length += 1;
    return layerNorm(x, this.weights["body.norm.weight"], this.weights["body.norm.bias"]);
  }
  read(tokens, cache) { return tokens.map((token) => this.forward(token, cache)); } // the vector of each token
  logits(hidden) { // (D) -> (V), with the table that turned tokens into vectors
    return linear(hidden, this.weights["body.token_embedding.weight"]);
  }
  score(hidden, read) { // reward model: the head's number at the last of a completion's vectors, or their mean
    const numbers = hidden.map((x) => linear(x, this.weights["head.weight"], this.weights["head.bias"])[0]);
    return read === "end" ? numbers[numbers.length - 1] : numbers.reduce((a, b) => a + b, 0) / numbers.length;
  }
}

function shortConvolution(x, W, recent) { // xₜ + Σᵢ wᵢ ⊙ xₜ₋ᵢ, the farthest first; W (k, D)
  const line = [...recent, x], y = x.slice(), missing = W.rows - line.length;
  line.forEach((before, i) => before.forEach((value, j) => (y[j] += W.values[(missing + i) * x.length + j] * value)));
  recent.push(x);
  if (recent.length > W.rows - 1) recent.shift();
  return y;
}

// generation.py
function randomNumbers(seed) { // mulberry32: uniform numbers in [0, 1) from a seed
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

function sampleToken(logits, temperature, uniform) { // the first whose cumulative probability exceeds the number
  if (temperature === 0) return logits.indexOf(logits.reduce((a, b) => Math.max(a, b), -Infinity));
  const probabilities = softmax(logits, temperature);
  let cumulative = 0;
  const found = probabilities.findIndex((p) => (cumulative += p) > uniform);
  return found < 0 ? probabilities.length - 1 : found;
}

// Continue a prompt that `cache` has read: its ids with the end token, and the logits (R, V) each was drawn from.
function generate(model, last, cache, { newTokens, temperature, random, end }) {
  const ids = [], logits = [];
  for (let hidden = last; ; hidden = model.forward(ids[ids.length - 1], cache)) {
    logits.push(model.logits(hidden));
    ids.push(sampleToken(logits[logits.length - 1], temperature, random ? random() : 0));
    if (ids[ids.length - 1] === end || ids.length === newTokens) return { ids, logits };
  }
}

// tokenizer.py: byte-level byte-pair encoding
class Tokenizer {
  constructor({ bytes, merges, special }) { // ids of the 256 bytes; (first, second, joined) of each merge, in order
    Object.assign(this, { special, bytes }); // special: {begin, end}
    this.merges = new Map(merges.map(([first, second, joined], rank) => [`${first},${second}`, { rank, joined }]));
    this.pieces = new Map(bytes.map((id, byte) => [id, [byte]])); // id -> bytes; special tokens have none
    for (const [first, second, joined] of merges)
      this.pieces.set(joined, [...this.pieces.get(first), ...this.pieces.get(second)]);
  }
  encode(text) {
    const words = text.match(/'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+/gu) ?? [];
    return words.flatMap((word) => {
      const ids = Array.from(new TextEncoder().encode(word), (byte) => this.bytes[byte]);
      for (;;) { // again and again join the pair that was learned first
        const pairs = ids.slice(1).map((id, i) => this.merges.get(`${ids[i]},${id}`) ?? { rank: Infinity });
        const best = pairs.reduce((a, pair, i) => (pair.rank < pairs[a].rank ? i : a), 0);
        if (!pairs.length || pairs[best].rank === Infinity) return ids;
        ids.splice(best, 2, pairs[best].joined);
      }
    });
  }
  decodeEach(ids) { // the text that each id adds; half a letter waits for its other half
    const decoder = new TextDecoder();
    const piece = (id) => Uint8Array.from(this.pieces.get(id) ?? []);
    return ids.map((id, i) => decoder.decode(piece(id), { stream: i + 1 < ids.length }));
  }
}
