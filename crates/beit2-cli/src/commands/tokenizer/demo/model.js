// The tokenizer: pixels to token ids, similarities and attention. Runs in a worker; knows no document.
// Sums are in f64 and results in f32, so ids are those of `beit2 tokenizer encode` but for ties within rounding.

"use strict";

/** Tensors of a safetensors file (f32 or f16) by name: {shape, values}. */
function readTensors(buffer) {
  const length = Number(new DataView(buffer).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, length)));
  const tensors = {};
  delete header.__metadata__;
  for (const [name, { dtype, shape, data_offsets: [from, to] }] of Object.entries(header)) {
    const bytes = buffer.slice(8 + length + from, 8 + length + to);
    tensors[name] = { shape, values: dtype === "F16" ? widened(new Uint16Array(bytes)) : new Float32Array(bytes) };
  }
  return tensors;
}

/** Half precision as f32. */
function widened(halves) {
  const values = new Float32Array(halves.length);
  for (let at = 0; at < halves.length; at++) {
    const sign = halves[at] & 0x8000 ? -1 : 1, exponent = (halves[at] >> 10) & 31, fraction = halves[at] & 1023;
    values[at] = sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -14 * (fraction / 1024));
  }
  return values;
}

/** x [rows, inputs] · weightᵀ [outputs, inputs] + bias. */
function linear(x, rows, weight, bias) {
  const [outputs, inputs] = weight.shape, w = weight.values, y = new Float32Array(rows * outputs);
  // Four rows share each weight that is read.
  for (let row = 0; row < rows; row += 4) {
    const a = row * inputs, b = Math.min(row + 1, rows - 1) * inputs;
    const c = Math.min(row + 2, rows - 1) * inputs, d = Math.min(row + 3, rows - 1) * inputs;
    for (let output = 0; output < outputs; output++) {
      const from = output * inputs, start = bias ? bias[output] : 0;
      let p = start, q = start, r = start, s = start;
      for (let at = 0; at < inputs; at++) {
        const value = w[from + at];
        p += x[a + at] * value;
        q += x[b + at] * value;
        r += x[c + at] * value;
        s += x[d + at] * value;
      }
      y[row * outputs + output] = p;
      if (row + 1 < rows) y[(row + 1) * outputs + output] = q;
      if (row + 2 < rows) y[(row + 2) * outputs + output] = r;
      if (row + 3 < rows) y[(row + 3) * outputs + output] = s;
    }
  }
  return y;
}

function layerNorm(x, rows, weight, bias, eps) {
  const width = weight.length, y = new Float32Array(x.length);
  for (let row = 0; row < rows; row++) {
    const from = row * width;
    let mean = 0, variance = 0;
    for (let at = 0; at < width; at++) mean += x[from + at];
    mean /= width;
    for (let at = 0; at < width; at++) variance += (x[from + at] - mean) ** 2;
    const scale = 1 / Math.sqrt(variance / width + eps);
    for (let at = 0; at < width; at++) y[from + at] = (x[from + at] - mean) * scale * weight[at] + bias[at];
  }
  return y;
}

/** erf to 1e-15 or so: its series for small values, a continued fraction of erfc for others. */
function erf(x) {
  const z = Math.abs(x);
  if (z > 6) return Math.sign(x);
  if (z < 2.5) {
    let term = x, sum = x;
    for (let n = 1; n < 80 && Math.abs(term) > 1e-17 * Math.abs(sum); n++) {
      term *= -x * x / n;
      sum += term / (2 * n + 1);
    }
    return 2 / Math.sqrt(Math.PI) * sum;
  }
  let fraction = 0;
  for (let n = 60; n > 0; n--) fraction = n / 2 / (z + fraction);
  return Math.sign(x) * (1 - Math.exp(-z * z) / Math.sqrt(Math.PI) / (z + fraction));
}

/** erf at steps of 1/2048 up to 6, between which it is interpolated with its slope: exact to 1e-11, and quick. */
const STEPS = 2048, ERF = Float64Array.from({ length: 6 * STEPS + 2 }, (_, at) => erf(at / STEPS));
function gelu(x) {
  for (let at = 0; at < x.length; at++) {
    const z = Math.min(Math.abs(x[at]) / Math.SQRT2, 6), nearest = Math.round(z * STEPS), from = nearest / STEPS;
    const slope = 2 / Math.sqrt(Math.PI) * Math.exp(-from * from), step = z - from;
    const value = ERF[nearest] + slope * step * (1 - from * step);
    x[at] *= (1 + (x[at] < 0 ? -value : value)) / 2;
  }
  return x;
}

class Tokenizer {
  /** `about`: image_size, patch_size, heads, depth, eps, mean, std of channels. */
  constructor(about, buffer) {
    this.about = about;
    this.tensors = readTensors(buffer);
    this.grid = about.image_size / about.patch_size;
    this.tokens = this.grid ** 2 + 1;
    // Unit length, so that products are cosines.
    const { shape: [count, width], values } = this.tensors["quantize.embedding.weight"];
    this.codes = { shape: [count, width], values: Float32Array.from(values) };
    for (let code = 0; code < count; code++) normalise(this.codes.values.subarray(code * width, (code + 1) * width));
  }

  values(name) {
    return this.tensors[name] && this.tensors[name].values;
  }

  /** Bytes [S, S, channels] → tokens [T, D], CLS first. */
  embed(bytes) {
    const { image_size: side, patch_size: patch, channels, mean, std } = this.about, grid = this.grid;
    const weight = this.tensors["encoder.patch_embed.proj.weight"], inputs = channels * patch * patch;
    const patches = new Float32Array(grid * grid * inputs);
    for (let y = 0; y < side; y++)
      for (let x = 0; x < side; x++)
        for (let channel = 0; channel < channels; channel++) {
          const at = Math.floor(y / patch) * grid + Math.floor(x / patch);
          const within = (channel * patch + y % patch) * patch + x % patch;
          const value = bytes[(y * side + x) * channels + channel] / 255;
          patches[at * inputs + within] = (value - mean[channel]) / std[channel];
        }
    const width = weight.shape[0];
    const flat = { shape: [width, inputs], values: weight.values };
    const rows = linear(patches, grid * grid, flat, this.values("encoder.patch_embed.proj.bias"));
    const x = new Float32Array(this.tokens * width);
    x.set(this.values("encoder.cls_token"));
    x.set(rows, width);
    const positions = this.values("encoder.pos_embed");
    if (positions) for (let at = 0; at < x.length; at++) x[at] += positions[at];
    return x;
  }

  /** Weights [H, T, T] and values [T, D] of an attention. */
  attend(qkv, width) {
    const { tokens } = this, { heads } = this.about, size = width / heads, scale = 1 / Math.sqrt(size);
    const weights = new Float32Array(heads * tokens * tokens), y = new Float32Array(tokens * width);
    for (let head = 0; head < heads; head++)
      for (let query = 0; query < tokens; query++) {
        const row = weights.subarray((head * tokens + query) * tokens, (head * tokens + query + 1) * tokens);
        const q = query * 3 * width + head * size;
        let largest = -Infinity, sum = 0;
        for (let key = 0; key < tokens; key++) {
          const k = key * 3 * width + width + head * size;
          let dot = 0;
          for (let at = 0; at < size; at++) dot += qkv[q + at] * qkv[k + at];
          row[key] = dot * scale;
          largest = Math.max(largest, row[key]);
        }
        for (let key = 0; key < tokens; key++) sum += row[key] = Math.exp(row[key] - largest);
        for (let key = 0; key < tokens; key++) {
          row[key] /= sum;
          const v = key * 3 * width + 2 * width + head * size, to = query * width + head * size;
          for (let at = 0; at < size; at++) y[to + at] += row[key] * qkv[v + at];
        }
      }
    return { weights, y };
  }

  /** One block in place; its attention weights [H, T, T]. */
  block(number, x) {
    const at = name => `encoder.blocks.${number}.${name}`, { tokens } = this, width = x.length / tokens;
    const norm = name => layerNorm(x, tokens, this.values(at(name + ".weight")), this.values(at(name + ".bias")), this.about.eps);
    const layer = (input, name) => linear(input, tokens, this.tensors[at(name + ".weight")], this.values(at(name + ".bias")));
    const add = (branch, gamma) => {
      for (let i = 0; i < x.length; i++) x[i] += gamma ? gamma[i % width] * branch[i] : branch[i];
    };
    const qkvWeight = this.tensors[at("attn.qkv.weight")], bias = new Float32Array(3 * width); // keys have none
    if (this.values(at("attn.q_bias"))) {
      bias.set(this.values(at("attn.q_bias")));
      bias.set(this.values(at("attn.v_bias")), 2 * width);
    }
    const { weights, y } = this.attend(linear(norm("norm1"), tokens, qkvWeight, bias), width);
    add(layer(y, "attn.proj"), this.values(at("gamma_1")));
    add(layer(gelu(layer(norm("norm2"), "mlp.fc1")), "mlp.fc2"), this.values(at("gamma_2")));
    return weights;
  }

  /** Everything about an image [S, S, channels] of bytes: ids [N], cosines [N, K] with the codes, attention [H, T, T] of each block. */
  run(bytes, progress = () => {}) {
    const { depth, eps } = this.about, attention = [], x = this.embed(bytes), width = x.length / this.tokens;
    for (let number = 0; number < depth; number++) {
      attention.push(this.block(number, x));
      progress((number + 1) / (depth + 1));
    }
    const patches = layerNorm(x, this.tokens, this.values("encoder.fc_norm.weight"), this.values("encoder.fc_norm.bias"), eps).subarray(width);
    const count = this.tokens - 1, task = "encode_task_layer.";
    const hidden = linear(patches, count, this.tensors[task + "0.weight"], this.values(task + "0.bias")).map(Math.tanh);
    const z = linear(hidden, count, this.tensors[task + "2.weight"], this.values(task + "2.bias"));
    const [codes, size] = this.codes.shape, ids = [];
    for (let patch = 0; patch < count; patch++) normalise(z.subarray(patch * size, (patch + 1) * size));
    const cosines = linear(z, count, this.codes, null);
    for (let patch = 0; patch < count; patch++) {
      let best = 0;
      for (let code = 1; code < codes; code++)
        if (cosines[patch * codes + code] > cosines[patch * codes + best]) best = code;
      ids.push(best);
    }
    return { ids, cosines, attention, grid: this.grid, heads: this.about.heads, codes };
  }
}

function normalise(vector) {
  let square = 0;
  for (const value of vector) square += value * value;
  const norm = Math.max(Math.sqrt(square), 1e-12);
  for (let at = 0; at < vector.length; at++) vector[at] /= norm;
}

if (typeof WorkerGlobalScope !== "undefined") {
  let model;
  onmessage = ({ data: { about, weights, bytes } }) => {
    if (weights) model = new Tokenizer(about, weights);
    if (bytes) postMessage({ result: model.run(bytes, done => postMessage({ done })) });
  };
}
