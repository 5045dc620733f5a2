// The page's start, and what its controls do.

import { addBox, addPoint, clear, detect, openImage, startModel, track } from "./asking.js";
import { get } from "./files.js";
import { chosen, element, say, work } from "./page.js";
import { listen } from "./pointer.js";
import { redraw, state, toImage } from "./scene.js";

const OTHER_SIGN = "With Shift or the right button, it is of the other sign.";
const HINTS = {
  object: `Click on the object, or drag a box around it. A negative point is not on the object. ${OTHER_SIGN}`,
  examples: `Drag boxes around examples of what to find, or of what not to find; the words count too. ${OTHER_SIGN}`,
};
const sign = (other) => Number(chosen("sign")) ^ Number(other);

listen(element.canvas, {
  point(at, other) {
    if (chosen("mode") === "object") addPoint(toImage(at), sign(other));
    else say("Drag a box around an example.");
  },
  box: (box, other) => addBox(toImage(box), sign(other)),
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
element.threshold.addEventListener("change", () => {
  if (state.objects.length && !state.points.length && !state.objectBox) detect();
});
element.holes.addEventListener("change", () => {
  if (state.points.length || state.objectBox) track();
});
element.modes.addEventListener("change", hint);
element.computing.addEventListener("change", () => work(startModel));
element.file.addEventListener("change", () => {
  openFile(element.file.files[0]);
  element.file.value = "";
});
element.images.addEventListener("change", () => openServed(element.images.value));
window.addEventListener("resize", redraw);
for (const name of ["dragover", "dragleave", "drop"]) {
  element.drop.addEventListener(name, (event) => {
    event.preventDefault();
    element.drop.classList.toggle("over", name === "dragover");
    if (name === "drop") openFile(event.dataTransfer.files[0]);
  });
}

function hint() {
  element.hint.textContent = HINTS[chosen("mode")];
}

function openFile(file) {
  if (file) work(() => openImage(file, file.name));
}

function openServed(name) {
  if (name) work(async () => openImage(await (await get(`images/${encodeURIComponent(name)}`)).blob(), name));
}

/** Only what the model and the browser can do is offered. */
function offer({ source, graphs, tokenizer, variants }, images, settings) {
  element.model.textContent = source;
  element.words.hidden = !graphs.detector || !tokenizer;
  const [object, examples] = document.querySelectorAll('input[name="mode"]');
  [object.disabled, examples.disabled] = [!graphs.interactive, !graphs.detector];
  (graphs.interactive ? object : examples).checked = true;
  element.holes.value = settings.max_hole_area;
  element.holes.parentElement.hidden = !graphs.interactive;
  hint();
  for (const name of Object.keys(variants)) element.variant.add(new Option(name));
  if (navigator.gpu) element.provider.add(new Option("GPU (WebGPU)", "webgpu"));
  element.images.replaceChildren(new Option("Choose an image", ""), ...images.map((name) => new Option(name)));
  element.images.hidden = !images.length;
}

async function readJson(url) {
  return (await get(url)).json();
}

await work(async () => {
  offer(...(await Promise.all(["model/model.json", "images.json", "settings.json"].map(readJson))));
  await startModel();
});
const parameters = new URLSearchParams(location.search);
const asked = parameters.get("image") ?? parameters.get("picture"); // "picture" is the former name
if (asked) {
  element.images.value = asked;
  openServed(asked);
}
