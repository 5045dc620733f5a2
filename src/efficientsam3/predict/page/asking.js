// Asking the model: images and prompts go to the worker, answers to the scene.

import { Client } from "./client.js";
import { chosen, element, isBusy, say, work } from "./page.js";
import { clearScene, keepPrompts, redraw, showObjects, showImage, state } from "./scene.js";

const AS_STORED = { colorSpaceConversion: "none", premultiplyAlpha: "none" };
const client = new Client((progress) => say(progress, true));
let turn = 0; // of the latest prompt: an older one's answer is not shown

/** Start the model as chosen under "Computing". */
export async function startModel() {
  await client.open(element.provider.value, element.variant.value);
  say("Open an image.");
  if (state.image) await openImage(state.image.blob, state.image.name);
}

/** Show an image and encode it. */
export async function openImage(blob, name) {
  const bitmap = await createImageBitmap(blob, AS_STORED).catch(() => null);
  if (!bitmap) throw new Error(`${name} is not an image that this browser can read: give a JPEG, PNG or WebP file.`);
  turn++;
  showImage(bitmap, blob, name);
  const { canvas } = element;
  await client.ask("encode", { bitmap, maskSize: [canvas.height, canvas.width] }, [bitmap]);
  say(`${name}, ${state.image.width} × ${state.image.height} pixels, is ready.`);
}

/** Add a point, in pixels of the image, and segment the object. */
export function addPoint(point, label) {
  keepPrompts("object");
  state.points = [...state.points, point];
  state.labels = [...state.labels, label];
  return track();
}

/** Take a box, xyxy in pixels of the image, as the object's or as an example, and ask. */
export function addBox(box, label) {
  keepPrompts(chosen("mode"));
  if (chosen("mode") === "object") {
    state.objectBox = box;
    return track();
  }
  state.examples = [...state.examples, box];
  state.exampleLabels = [...state.exampleLabels, label];
  return detect();
}

/** Segment the object of the points and the box as they are. */
export function track() {
  const { points, labels, objectBox: box } = state;
  redraw();
  if (box || labels.includes(1)) return work(() => ask("track", { points, labels, box, maxHoleArea: maxHoleArea() }));
  turn++;
  showObjects([]);
  return say("Add a positive point on the object.");
}

/** Find what the words and the examples say. */
export function detect() {
  return work(async () => {
    const phrase = element.phrase.value.trim() || null;
    if (!state.image) throw new Error("No image is open: open one first.");
    if (!phrase && !state.examples.length) {
      throw new Error("There is nothing to find: type what, or drag a box around an example.");
    }
    const threshold = lowestScore();
    keepPrompts("examples");
    await ask("detect", { phrase, boxes: state.examples, labels: state.exampleLabels, threshold });
  });
}

function lowestScore() {
  const text = element.threshold.value;
  const threshold = Number(text);
  if (text === "" || !(threshold >= 0 && threshold <= 1)) {
    throw new Error("The lowest score must be a number from 0 to 1: change it.");
  }
  return threshold;
}

function maxHoleArea() {
  const text = element.holes.value;
  const area = Number(text);
  if (text === "" || !(Number.isInteger(area) && area >= 0)) {
    throw new Error("The largest hole to fill must be a whole number of pixels, 0 for none: change it.");
  }
  return area;
}

async function ask(action, prompt) {
  const mine = ++turn;
  const wanted = () => mine === turn;
  const start = performance.now();
  const objects = await client.ask(action, prompt, [], wanted);
  if (!objects || !wanted()) return;
  showObjects(objects);
  const seconds = ((performance.now() - start) / 1000).toFixed(1);
  say(`${objects.length} ${objects.length === 1 ? "object" : "objects"} found in ${seconds} s.`);
}

/** Forget prompts and answers, those under way too. */
export function clear() {
  turn++;
  clearScene();
  if (state.image && !isBusy()) say("Cleared.");
}
