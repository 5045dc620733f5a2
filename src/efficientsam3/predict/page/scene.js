// What is asked and found of the open image, and its drawing.

import { draw, paintLayer } from "./draw.js";
import { element } from "./page.js";
import { listObjects } from "./panel.js";

const LONGEST_SIDE = 1600; // of the canvas and the masks, in pixels; the model sees the image in full
const { canvas } = element;

/**
 * Prompts in pixels of the image, masks of `objects` in pixels of the canvas; `pending` and `cursor` are what the
 * pointer does. One model is asked at a time: the tracker (points and objectBox) or the detector (examples).
 */
export const state = { image: null, only: null, layer: null, ...noPrompts() };

function noPrompts() {
  const none = { points: [], labels: [], objectBox: null, examples: [], exampleLabels: [] };
  return { ...none, objects: [], pending: null, cursor: null };
}

/** Show an image, with nothing asked of it. */
export function showImage(bitmap, blob, name) {
  const { width, height } = bitmap;
  const scale = Math.min(1, LONGEST_SIDE / Math.max(width, height));
  [canvas.width, canvas.height] = [width, height].map((length) => Math.max(1, Math.round(length * scale)));
  canvas.style.setProperty("--aspect", canvas.width / canvas.height);
  const shown = new OffscreenCanvas(canvas.width, canvas.height);
  shown.getContext("2d", { alpha: false }).drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  state.image = { blob, name, width, height, shown };
  canvas.hidden = false;
  element.empty.hidden = true;
  clearScene();
}

/** Forget prompts and answers. */
export function clearScene() {
  Object.assign(state, noPrompts());
  showObjects([]);
}

/** Forget the prompts of the model that is not asked. */
export function keepPrompts(kind) {
  const forget = kind === "object" ? ["examples", "exampleLabels"] : ["points", "labels"];
  for (const name of forget) state[name] = [];
  if (kind === "examples") state.objectBox = null;
  redraw();
}

/** @param {{score: number, mask: Uint8Array}[]} objects best first */
export function showObjects(objects) {
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

/** Draw the scene as it is. */
export function redraw() {
  if (!state.image) return;
  const { image, layer, labels, pending, cursor } = state;
  const boxes = state.examples.map((box, index) => ({ box: toCanvas(box), label: state.exampleLabels[index] }));
  if (state.objectBox) boxes.push({ box: toCanvas(state.objectBox), label: 1 });
  element.clear.disabled = !(state.objects.length || state.points.length || boxes.length);
  if (pending) boxes.push(pending);
  draw(canvas, { bitmap: image.shown, layer, points: state.points.map(toCanvas), labels, boxes, cursor });
}

/** x and y in turn, from pixels of the canvas to pixels of the image. */
export function toImage(values) {
  const scale = [state.image.width / canvas.width, state.image.height / canvas.height];
  return values.map((value, index) => value * scale[index % 2]);
}

function toCanvas(values) {
  const scale = [canvas.width / state.image.width, canvas.height / state.image.height];
  return values.map((value, index) => value * scale[index % 2]);
}
