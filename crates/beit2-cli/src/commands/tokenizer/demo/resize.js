// An image as the tokenizer sees it: the shorter side resized as Pillow does it (bicubic, 8 bits, fixed point), the centre cut out.
// The same bytes as the program's.

"use strict";

/** Pillow's kernel for `from` pixels to become `to`: first pixel and weights in fixed point of every output. */
function kernel(from, to) {
  const scale = from / to, wide = Math.max(scale, 1), support = 2 * wide, outputs = [];
  const cubic = x => {
    x = Math.abs(x);
    if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
    return x < 2 ? (((x - 5) * x + 8) * x - 4) * -0.5 : 0;
  };
  for (let at = 0; at < to; at++) {
    const center = (at + 0.5) * scale;
    const first = Math.max(Math.trunc(center - support + 0.5), 0), end = Math.min(Math.trunc(center + support + 0.5), from);
    let weights = [], sum = 0;
    for (let x = first; x < end; x++) {
      weights.push(cubic((x - center + 0.5) / wide));
      sum += weights[weights.length - 1];
    }
    weights = weights.map(weight => {
      const fixed = weight / sum * 2 ** 22;
      return Math.trunc(fixed < 0 ? fixed - 0.5 : fixed + 0.5);
    });
    outputs.push({ first, weights });
  }
  return outputs;
}

/** One pass along rows of `width` RGB pixels; transposed, so that two passes do both directions. */
function pass(rgb, width, height, to) {
  const out = new Uint8ClampedArray(to * height * 3), kernels = width === to ? null : kernel(width, to);
  for (let y = 0; y < height; y++)
    for (let x = 0; x < to; x++)
      for (let channel = 0; channel < 3; channel++) {
        let value = rgb[(y * width + x) * 3 + channel];
        if (kernels) {
          const { first, weights } = kernels[x];
          let sum = 2 ** 21;
          weights.forEach((weight, at) => sum += rgb[(y * width + first + at) * 3 + channel] * weight);
          value = Math.min(Math.max(Math.floor(sum / 2 ** 22), 0), 255);
        }
        out[(x * height + y) * 3 + channel] = value;
      }
  return out;
}

/** RGBA of any size → RGB [side, side]. */
function view(rgba, width, height, side) {
  const rgb = new Uint8ClampedArray(width * height * 3);
  for (let at = 0; at < width * height; at++) rgb.set(rgba.subarray(4 * at, 4 * at + 3), 3 * at);
  const scaled = length => Math.floor(side * length / Math.min(width, height));
  const [across, down] = [scaled(width), scaled(height)];
  const resized = pass(pass(rgb, width, height, across), height, across, down);
  const even = value => value % 1 === 0.5 ? 2 * Math.round(value / 2) : Math.round(value);
  const [left, top] = [even((across - side) / 2), even((down - side) / 2)];
  const cut = new Uint8ClampedArray(side * side * 3);
  for (let y = 0; y < side; y++) {
    const from = ((top + y) * across + left) * 3;
    cut.set(resized.subarray(from, from + side * 3), y * side * 3);
  }
  return cut;
}
