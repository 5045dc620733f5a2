// The page: what is asked, and what is shown.

import { Client } from "./client.js";
import { draw, paintLayer } from "./draw.js";
import { get } from "./files.js";
import { listObjects } from "./panel.js";
import { listen } from "./pointer.js";

const LONGEST_SIDE = 1600; // of the canvas and the masks, in pixels; the model sees the picture in full
const AS_STORED = { colorSpaceConversion: "none", premultiplyAlpha: "none" };
const HINTS = {
  object: "Click on the object, or drag a box around it. With Shift or the right button, the point is of the other sign.",
  examples: "Drag boxes around examples of what to find, with the words or without. With Shift or the right button, the box is of the other sign.",
};
const element = Object.fromEntries(Array.from(document.querySelectorAll("[id]"), (found) => [found.id, found]));
const { canvas } = element;
const client = new Client((text) => say(text, true));

/** Prompts in pixels of the picture; masks in pixels of the canvas. */
export const state = { picture: null, manifest: null, busy: 0, turn: 0, only: null, layer: null, ...noPrompts() };

function noPrompts() {
  return { points: [], labels: [], objectBox: null, examples: [], exampleLabels: [], objects: [], pending: null, cursor: null };
}

/** Do something that may take long or fail; the page says so. */
async function work(task) {
  state.busy++;
  element.computing.disabled = true;
  element.error.hidden = true;
  try {
    await task();
  } catch (error) {
    element.error.textContent = error.message;
    element.error.hidden = false;
    say("");
  } finally {
    state.busy--;
    element.computing.disabled = state.busy > 0;
    element.status.classList.toggle("busy", state.busy > 0);
  }
}

function say(text, busy = false) {
  element.status.textContent = text;
  element.status.classList.toggle("busy", busy);
}

async function open(blob, name) {
  const bitmap = await createImageBitmap(blob, AS_STORED).catch(() => null);
  if (!bitmap) throw new Error(`${name} is no picture that this browser can read: give a JPEG, PNG or WebP file.`);
  const { width, height } = bitmap;
  const scale = Math.min(1, LONGEST_SIDE / Math.max(width, height));
  [canvas.width, canvas.height] = [width, height].map((length) => Math.max(1, Math.round(length * scale)));
  const shown = new OffscreenCanvas(canvas.width, canvas.height);
  shown.getContext("2d", { alpha: false }).drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  state.picture = { blob, name, width, height, shown };
  canvas.hidden = false;
  element.empty.hidden = true;
  clear();
  await client.ask("encode", { bitmap, maskSize: [canvas.height, canvas.width] }, [bitmap]);
  say(`${name}, ${width} × ${height} pixels, is ready.`);
}

/** Show what the prompts of one predictor find; an answer that was overtaken by a later prompt is not shown. */
async function ask(action, prompt) {
  const turn = ++state.turn;
  const wanted = () => turn === state.turn;
  const start = performance.now();
  const objects = await client.ask(action, prompt, [], wanted);
  if (!objects || !wanted()) return;
  show(objects);
  const seconds = ((performance.now() - start) / 1000).toFixed(1);
  say(`${objects.length} ${objects.length === 1 ? "object" : "objects"} found in ${seconds} s.`);
}

function outline() {
  const { points, labels, objectBox: box } = state;
  if (!box && !labels.includes(1)) {
    show([]);
    return say("Add a positive point on the object.");
  }
  return work(() => ask("outline", { points, labels, box }));
}

function detect() {
  const phrase = element.phrase.value.trim() || null;
  const threshold = Number(element.threshold.value);
  return work(async () => {
    if (!state.picture) throw new Error("No picture is open: open one first.");
    if (!phrase && !state.examples.length) throw new Error("Nothing to find: type what, or drag a box around an example.");
    if (element.threshold.value === "" || !(threshold >= 0 && threshold <= 1)) {
      throw new Error(`The lowest score ${element.threshold.value} is no number from 0 to 1: change it.`);
    }
    Object.assign(state, { points: [], labels: [], objectBox: null });
    redraw();
    await ask("detect", { phrase, boxes: state.examples, labels: state.exampleLabels, threshold });
  });
}

function show(objects) {
  Object.assign(state, { objects, only: null });
  listObjects(element.objects, objects, (only) => {
    state.only = only;
    paint();
  });
  element.none.hidden = objects.length > 0;
  paint();
}

function paint() {
  state.layer = state.objects.length ? paintLayer(state.objects, canvas, state.only) : null;
  redraw();
}

function redraw() {
  if (!state.picture) return;
  const { picture, layer, labels, pending, cursor } = state;
  const [across, down] = scale();
  const shrink = (values) => values.map((value, index) => value / (index % 2 ? down : across));
  const boxes = state.examples.map((box, index) => ({ box: shrink(box), label: state.exampleLabels[index] }));
  if (state.objectBox) boxes.push({ box: shrink(state.objectBox), label: 1 });
  if (pending) boxes.push(pending);
  draw(canvas, { bitmap: picture.shown, layer, points: state.points.map(shrink), labels, boxes, cursor });
  element.clear.disabled = !(state.objects.length || state.points.length || boxes.length);
}

function clear() {
  Object.assign(state, noPrompts(), { turn: state.turn + 1 });
  show([]);
  if (state.picture && !state.busy) say("Cleared.");
}

/** Pixels of the picture per pixel of the canvas. */
function scale() {
  return [state.picture.width / canvas.width, state.picture.height / canvas.height];
}

function toPicture(values) {
  return values.map((value, index) => value * scale()[index % 2]);
}

const chosen = (name) => document.querySelector(`input[name="${name}"]:checked`)?.value;
const sign = (other) => Number(chosen("sign")) ^ Number(other);

listen(canvas, {
  point(at, other) {
    if (chosen("mode") !== "object") return say("Drag a box around an example.");
    Object.assign(state, { examples: [], exampleLabels: [] });
    state.points = [...state.points, toPicture(at)];
    state.labels = [...state.labels, sign(other)];
    redraw();
    outline();
  },
  box(box, other) {
    if (chosen("mode") === "object") {
      Object.assign(state, { examples: [], exampleLabels: [], objectBox: toPicture(box) });
      redraw();
      return outline();
    }
    state.examples = [...state.examples, toPicture(box)];
    state.exampleLabels = [...state.exampleLabels, sign(other)];
    detect();
  },
  show(box, cursor, other) {
    const label = chosen("mode") === "object" ? 1 : sign(other);
    Object.assign(state, { pending: box && { box, label }, cursor });
    redraw();
  },
  clear,
});

element.clear.addEventListener("click", clear);
element.words.addEventListener("submit", (event) => {
  event.preventDefault();
  detect();
});
element.modes.addEventListener("change", () => (element.hint.textContent = HINTS[chosen("mode")]));
element.threshold.addEventListener("change", () => {
  if (state.objects.length && !state.points.length && !state.objectBox) detect();
});
element.file.addEventListener("change", () => {
  const [file] = element.file.files;
  if (file) work(() => open(file, file.name));
  element.file.value = "";
});
element.pictures.addEventListener("change", () => openServed(element.pictures.value));
element.computing.addEventListener("change", () => work(startModel));
window.addEventListener("resize", redraw);
for (const [name, over] of [["dragover", true], ["dragleave", false], ["drop", false]]) {
  element.drop.addEventListener(name, (event) => {
    event.preventDefault();
    element.drop.classList.toggle("over", over);
    const file = name === "drop" ? event.dataTransfer.files[0] : null;
    if (file) work(() => open(file, file.name));
  });
}

function openServed(name) {
  if (name) work(async () => open(await (await get(`pictures/${encodeURIComponent(name)}`)).blob(), name));
}

async function startModel() {
  await client.open(element.provider.value, element.variant.value);
  say("Open a picture.");
  if (state.picture) await open(state.picture.blob, state.picture.name);
}

/** Only what the model and the browser can do is offered. */
function offer({ source, graphs, tokenizer, variants }, pictures) {
  element.model.textContent = source;
  element.words.hidden = !graphs.detector || !tokenizer;
  const [object, examples] = document.querySelectorAll('input[name="mode"]');
  [object.disabled, examples.disabled] = [!graphs.interactive, !graphs.detector];
  (graphs.interactive ? object : examples).checked = true;
  element.hint.textContent = graphs.interactive || graphs.detector ? HINTS[chosen("mode")] : "This model takes no prompts.";
  for (const name of Object.keys(variants)) element.variant.add(new Option(name));
  if (navigator.gpu) element.provider.add(new Option("GPU (WebGPU)", "webgpu"));
  if (pictures.length) element.pictures.replaceChildren(new Option("Choose a picture", ""), ...pictures.map((name) => new Option(name)));
  element.pictures.hidden = !pictures.length;
}

await work(async () => {
  const [manifest, pictures] = await Promise.all(["model/model.json", "pictures.json"].map(async (url) => (await get(url)).json()));
  state.manifest = manifest;
  offer(manifest, pictures);
  await startModel();
});
const asked = new URLSearchParams(location.search).get("picture");
if (asked) {
  element.pictures.value = asked;
  openServed(asked);
}
