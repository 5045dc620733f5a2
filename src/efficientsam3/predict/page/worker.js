// The model in a thread of its own, so that the page stays alive while it computes. One request at a time: client.js.

import { get } from "./files.js";
import { Model } from "./model.js";

const RUNTIMES = { wasm: "ort.wasm.min.mjs", webgpu: "ort.webgpu.min.mjs" };
const MOST_THREADS = 8;
const runtime = new URL("onnxruntime-web/", import.meta.url).href;
const folder = new URL("model/", import.meta.url).href;
let model = null;

const actions = {
  /** Take the runtime and the directory; graphs are loaded when they are needed. */
  async open({ provider, variant }) {
    const ort = await import(runtime + RUNTIMES[provider]);
    ort.env.logLevel = "error";
    ort.env.wasm.wasmPaths = runtime;
    ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(navigator.hardwareConcurrency, MOST_THREADS) : 1;
    const manifest = await (await get(`${folder}model.json`)).json();
    model = new Model(ort, folder, manifest, { provider, variant, say: (progress) => postMessage({ progress }) });
  },

  async encode({ bitmap, maskSize }) {
    const context = new OffscreenCanvas(bitmap.width, bitmap.height).getContext("2d", { alpha: false });
    context.drawImage(bitmap, 0, 0);
    bitmap.close();
    await model.encode(context.getImageData(0, 0, context.canvas.width, context.canvas.height), maskSize);
  },

  detect: (prompt) => model.detect(prompt),
  track: (prompt) => model.track(prompt),
};

self.onmessage = async ({ data: { action, argument } }) => {
  try {
    const value = await actions[action](argument);
    postMessage({ value }, Array.isArray(value) ? value.map(({ mask }) => mask.buffer) : []);
  } catch (error) {
    postMessage({ error: sentence(error) });
  }
};

/** One sentence of an error; those of the runtime have many lines, or are numbers. */
function sentence(error) {
  const text = String(error?.message ?? error)
    .split("\n")[0]
    .trim();
  return /^\d*$/.test(text) ? "The graph could not be run: the browser has too little memory for it." : text;
}
