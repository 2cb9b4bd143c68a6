// Weights: from the page's bytes to matrices, and to fewer bits; to be read beside weights.py and quant/mappings.py.
"use strict";
async function inflate(base64) { // base64 of deflated bytes -> bytes
  const letters = atob(base64), packed = new Uint8Array(letters.length);
  for (let i = 0; i < packed.length; i++) packed[i] = letters.charCodeAt(i);
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}
function half(bits) { // a 16-bit float
  const size = (bits >> 10) & 31, fraction = (bits & 1023) / 1024;
  return (bits >> 15 ? -1 : 1) * (size ? 2 ** (size - 15) * (1 + fraction) : 2 ** -14 * fraction);
}

// models: {model: {from, tensors: [[name, rows, columns]]}} -> {model: {name: {rows, columns, values, codes, scales}}}
// A matrix is int8 codes and one 16-bit scale a row, x̂ = s q; a vector is 16-bit floats. Codes are stored as what they
// differ by from those that the same weights of the model `from`, which training began with, would have.
function unpackWeights(bytes, models) {
  const codes = new Int8Array(bytes.buffer, bytes.byteOffset), unpacked = {};
  const all = Object.entries(models).flatMap(([model, { from, tensors }]) =>
    tensors.map(([name, rows, columns]) => ({ model, from, name, rows, columns })));
  let at = 0, number = all.reduce((sum, { rows, columns }) => sum + (rows ? rows * columns : 0), 0);
  const nextHalf = () => half(bytes[number++] | (bytes[number++] << 8));
  for (const { model, from, name, rows, columns } of all) {
    const matrix = { rows: rows || 1, columns, values: new Float32Array((rows || 1) * columns) };
    (unpacked[model] ??= {})[name] = matrix;
    if (!rows) matrix.values.forEach((_, i) => (matrix.values[i] = nextHalf()));
    else {
      const before = from ? unpacked[from][name] : undefined;
      matrix.codes = codes.slice(at, (at += rows * columns));
      matrix.scales = Float64Array.from({ length: rows }, nextHalf);
      for (let row = 0, i = 0; row < rows; row++) for (; i < (row + 1) * columns; i++) {
        const scale = matrix.scales[row], other = before ? before.codes[i] * before.scales[row] : 0;
        matrix.codes[i] += Math.floor(other / scale + 0.5); // modulo 256
        matrix.values[i] = matrix.codes[i] * scale;
      }
    }
  }
  return unpacked;
}

// quant/mappings.py: scale s and zero-point z of numbers, x̂ = s (q − z)
function mappingOf(numbers, mapping, bits) {
  const Q = 2 ** (bits - 1) - 1;
  let low = 0, high = 0;
  for (const x of numbers) [low, high] = [Math.min(low, x), Math.max(high, x)];
  if (mapping === "absmax") return { scale: Math.max(high, -low) / Q || 1e-38, zero: 0, least: -Q, greatest: Q };
  const scale = (high - low) / (2 * Q + 1) || 1e-38;
  return { scale, zero: -Q - 1 - Math.round(low / scale), least: -Q - 1, greatest: Q };
}
function roundTrip(x, { scale, zero, least, greatest }) {
  return scale * (Math.min(greatest, Math.max(least, Math.round(x / scale) + zero)) - zero);
}
function quantized(W, { bits, per, mapping, keep = [] }) { // W as it comes back; columns in `keep` stay as they are
  const { rows, columns } = W, values = W.values.slice(), kept = new Set(keep);
  const own = (row) => W.values.subarray(row * columns, (row + 1) * columns).filter((_, j) => !kept.has(j));
  const whole = per === "tensor" ? mappingOf(W.values.filter((_, i) => !kept.has(i % columns)), mapping, bits) : null;
  for (let row = 0; row < rows; row++) {
    const map = whole ?? mappingOf(own(row), mapping, bits);
    for (let at = row * columns; at < (row + 1) * columns; at++)
      if (!kept.has(at % columns)) values[at] = roundTrip(W.values[at], map);
  }
  return { rows, columns, values };
}
