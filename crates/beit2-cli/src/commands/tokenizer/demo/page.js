// What one sees: an image, its tokens, the nearest codes of a patch and where it looks.

"use strict";

const $ = id => document.getElementById(id);
const about = JSON.parse($("config").textContent);
const side = about.image_size, patch = about.patch_size;
const state = { result: null, pixels: null, patch: 0, code: 0 };

/** Bytes of base64, piece by piece: a whole model at once is too long for atob. */
function decoded(text) {
  const PIECE = 1 << 22, padding = text.endsWith("==") ? 2 : text.endsWith("=") ? 1 : 0;
  const bytes = new Uint8Array(text.length / 4 * 3 - padding);
  for (let from = 0, to = 0; from < text.length; from += PIECE) {
    const piece = atob(text.slice(from, from + PIECE));
    for (let at = 0; at < piece.length; at++) bytes[to++] = piece.charCodeAt(at);
  }
  return bytes.buffer;
}

const worker = new Worker(URL.createObjectURL(new Blob([$("model").textContent], { type: "text/javascript" })));
const weights = decoded($("weights").textContent.trim());
worker.postMessage({ about, weights }, [weights]);
$("weights").remove();

/** What the model makes of bytes [S, S, 3]. */
function tokenize(bytes) {
  return new Promise((resolve, reject) => {
    worker.onerror = event => reject(new Error(event.message));
    worker.onmessage = ({ data: { done, result } }) => {
      if (result) resolve(result);
      else $("progress").value = done;
    };
    worker.postMessage({ bytes });
  });
}

/** The bytes that the model sees of an image file. */
async function pixelsOf(blob) {
  const bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none" });
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "white";
  context.fillRect(0, 0, bitmap.width, bitmap.height);
  context.drawImage(bitmap, 0, 0);
  return view(context.getImageData(0, 0, bitmap.width, bitmap.height).data, bitmap.width, bitmap.height, side);
}

async function show(blob) {
  $("error").textContent = "";
  try {
    const pixels = await pixelsOf(blob).catch(() => { throw new Error("The browser cannot read this image; try PNG or JPEG."); });
    $("progress").hidden = false;
    const result = await tokenize(pixels);
    Object.assign(state, { result, pixels, patch: Math.floor(result.ids.length / 2) + (result.grid >> 1) });
    if (state.patch >= result.ids.length) state.patch = 0;
    state.code = result.ids[state.patch];
    $("views").hidden = false;
    draw();
  } catch (error) {
    $("error").textContent = error.message;
  }
  $("progress").hidden = true;
  return state.result;
}

/** Colours that neighbouring codes do not share. */
const colour = code => `hsl(${code * 137.508 % 360} ${55 + code * 7 % 30}% ${42 + code * 13 % 26}%)`;

/** A canvas of the image's size, `zoom` times as fine, with the image on it if it is wanted. */
function canvasOf(id, withImage) {
  const canvas = $(id), zoom = Math.max(1, Math.ceil(448 / side)), context = canvas.getContext("2d");
  canvas.width = canvas.height = side * zoom;
  if (withImage) {
    const rgba = new Uint8ClampedArray(side * side * 4).fill(255);
    for (let at = 0; at < side * side; at++) rgba.set(state.pixels.subarray(3 * at, 3 * at + 3), 4 * at);
    const small = new OffscreenCanvas(side, side);
    small.getContext("2d").putImageData(new ImageData(rgba, side, side), 0, 0);
    context.imageSmoothingEnabled = false;
    context.drawImage(small, 0, 0, canvas.width, canvas.height);
  }
  return { context, step: patch * zoom };
}

function each(visit) {
  const { grid, ids } = state.result;
  ids.forEach((id, at) => visit(at, id, at % grid, Math.floor(at / grid)));
}

function outline({ context, step }) {
  each((at, id, x, y) => {
    if (id !== state.code && at !== state.patch) return;
    for (const [width, style] of [[4, "#000c"], [2, at === state.patch ? "#ff3b6b" : "#fff"]]) {
      context.lineWidth = width;
      context.strokeStyle = style;
      context.strokeRect(x * step + 2, y * step + 2, step - 4, step - 4);
    }
  });
}

function draw() {
  const { ids, cosines, attention, heads, codes, grid } = state.result, of = code => ids.filter(id => id === code).length;
  outline(canvasOf("image", true));
  const map = canvasOf("map", false);
  each((at, id, x, y) => {
    map.context.fillStyle = colour(id);
    map.context.fillRect(x * map.step, y * map.step, map.step, map.step);
  });
  outline(map);
  $("said").textContent = `Patch ${state.patch} (row ${Math.floor(state.patch / grid) + 1}, column ${state.patch % grid + 1}) has code `
    + `${ids[state.patch]}, shared with ${of(ids[state.patch]) - 1} other patches; the image has ${new Set(ids).size} different codes in ${ids.length} patches.`;

  const row = cosines.subarray(state.patch * codes, (state.patch + 1) * codes);
  const nearest = Array.from(row.keys()).sort((a, b) => row[b] - row[a]).slice(0, 10);
  $("codes").replaceChildren(...nearest.map(code => {
    const line = document.createElement("tr"), swatch = document.createElement("span");
    line.dataset.code = code;
    line.className = code === state.code ? "chosen" : "";
    swatch.className = "swatch";
    swatch.style.background = colour(code);
    line.append(...[code, row[code].toFixed(3), of(code)].map(text => Object.assign(document.createElement("td"), { textContent: text })));
    line.firstChild.prepend(swatch);
    line.onclick = () => { state.code = code; draw(); };
    return line;
  }));

  if (!$("block").length) {
    attention.forEach((_, at) => $("block").add(new Option(at + 1, at)));
    $("block").value = attention.length - 1;
    $("head").add(new Option("mean", -1));
    for (let head = 0; head < heads; head++) $("head").add(new Option(head + 1, head));
  }
  const chosen = Number($("head").value), tokens = ids.length + 1, seen = new Float32Array(ids.length);
  for (let head = 0; head < heads; head++) {
    if (chosen >= 0 && head !== chosen) continue;
    const from = (head * tokens + state.patch + 1) * tokens + 1;
    ids.forEach((_, at) => seen[at] += attention[$("block").value][from + at] / (chosen >= 0 ? 1 : heads));
  }
  const most = Math.max(...seen), look = canvasOf("attention", true);
  each((at, id, x, y) => {
    look.context.fillStyle = `rgb(8 10 30 / ${0.88 * (1 - Math.sqrt(seen[at] / most))})`;
    look.context.fillRect(x * look.step, y * look.step, look.step, look.step);
  });
}

for (const id of ["image", "map", "attention"]) {
  $(id).onclick = event => {
    const box = $(id).getBoundingClientRect(), { grid, ids } = state.result;
    const at = (position, length) => Math.min(Math.floor(position / length * grid), grid - 1);
    state.patch = at(event.clientY - box.top, box.height) * grid + at(event.clientX - box.left, box.width);
    state.code = ids[state.patch];
    draw();
  };
}
$("block").onchange = $("head").onchange = draw;
$("file").onchange = event => event.target.files[0] && show(event.target.files[0]);
const drop = $("drop");
document.ondragover = event => { event.preventDefault(); drop.classList.add("over"); };
document.ondragleave = () => drop.classList.remove("over");
document.ondrop = event => {
  event.preventDefault();
  drop.classList.remove("over");
  if (event.dataTransfer.files[0]) show(event.dataTransfer.files[0]);
};
$("about").textContent = `${about.name}: ${about.depth} blocks of ${about.width} values, ${about.codes} codes, images of ${side} px in patches of ${patch} px. `
  + "An image becomes one code for each patch.";
