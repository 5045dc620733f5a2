// Asking the model: pictures and prompts go to the worker, answers to the scene.

import { Client } from "./client.js";
import { chosen, element, isBusy, say, work } from "./page.js";
import { clearScene, keepPrompts, redraw, showObjects, showPicture, state } from "./scene.js";

const AS_STORED = { colorSpaceConversion: "none", premultiplyAlpha: "none" };
const client = new Client((progress) => say(progress, true));
let turn = 0; // of the latest prompt: an older one's answer is not shown

/** Start the model as chosen under "Computing". */
export async function startModel() {
  await client.open(element.provider.value, element.variant.value);
  say("Open a picture.");
  if (state.picture) await openPicture(state.picture.blob, state.picture.name);
}

/** Show a picture and encode it. */
export async function openPicture(blob, name) {
  const bitmap = await createImageBitmap(blob, AS_STORED).catch(() => null);
  if (!bitmap) throw new Error(`${name} is no picture that this browser can read: give a JPEG, PNG or WebP file.`);
  turn++;
  showPicture(bitmap, blob, name);
  const { canvas } = element;
  await client.ask("encode", { bitmap, maskSize: [canvas.height, canvas.width] }, [bitmap]);
  say(`${name}, ${state.picture.width} × ${state.picture.height} pixels, is ready.`);
}

/** Add a point, in pixels of the picture, and outline the object. */
export function addPoint(point, label) {
  keepPrompts("object");
  state.points = [...state.points, point];
  state.labels = [...state.labels, label];
  return outline();
}

/** Take a box, xyxy in pixels of the picture, as the object's or as an example, and ask. */
export function addBox(box, label) {
  keepPrompts(chosen("mode"));
  if (chosen("mode") === "object") {
    state.objectBox = box;
    return outline();
  }
  state.examples = [...state.examples, box];
  state.exampleLabels = [...state.exampleLabels, label];
  return detect();
}

function outline() {
  const { points, labels, objectBox: box } = state;
  redraw();
  if (box || labels.includes(1)) return work(() => ask("outline", { points, labels, box }));
  turn++;
  showObjects([]);
  return say("Add a positive point on the object.");
}

/** Find what the words and the examples say. */
export function detect() {
  return work(async () => {
    const phrase = element.phrase.value.trim() || null;
    if (!state.picture) throw new Error("No picture is open: open one first.");
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
    throw new Error("The lowest score is no number from 0 to 1: change it.");
  }
  return threshold;
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
  if (state.picture && !isBusy()) say("Cleared.");
}
