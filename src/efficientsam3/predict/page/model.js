// An `export-onnx` directory, prompted by onnxruntime-web: the calls and answers of `OnnxSAM3`.

import { download, get } from "./files.js";
import { fillHoles } from "./holes.js";
import { boxOfMask, toMask } from "./masks.js";
import { contentSize, toInput } from "./preprocess.js";
import { Tokenizer } from "./tokenizer.js";

const PADDING_LABEL = -10; // of a box that only pads
const CORNER_LABELS = [2, 3]; // of a box's top left and bottom right, as in SAM's prompt encoder
const VISUAL_PROMPT = "visual"; // the phrase of boxes alone

export class Model {
  #sessions = new Map();
  #phrases = new Map();
  #answer = { prompt: "", values: null };
  #placement = null;
  #values = {};

  /**
   * @param {object} ort onnxruntime-web
   * @param {string} folder URL of the directory, with a slash at the end
   * @param {object} manifest model.json
   * @param {{provider: string, variant: string, say: (text: string) => void}} how execution provider, variant of the
   *     image encoder, and where progress goes
   */
  constructor(ort, folder, manifest, how) {
    Object.assign(this, { ort, folder, manifest, how });
  }

  /** Run the image encoder once; masks will have `maskSize` [height, width]. */
  async encode(image, maskSize) {
    const { preprocessing } = this.manifest;
    const side = preprocessing.image_size;
    [this.#values, this.#answer, this.#placement] = [{}, { prompt: "", values: null }, null];
    const pixels = this.#floats(toInput(image, preprocessing), [1, 3, side, side]);
    this.#values = await this.#run("image_encoder", { pixels });
    const size = [image.height, image.width];
    this.#placement = { size, maskSize, content: contentSize(...size, preprocessing), side };
  }

  /**
   * Everything that fits a phrase and examples.
   * @param {{phrase: string|null, boxes: number[][], labels: number[], threshold: number}} prompt boxes xyxy in pixels
   *     of the image, labels 1 (like this) or 0 (not like this)
   * @returns {Promise<{score: number, box: number[], mask: Uint8Array}[]>} best first
   */
  async detect({ phrase, boxes, labels, threshold }) {
    const prompt = JSON.stringify([phrase, boxes, labels]);
    if (this.#answer.prompt !== prompt) {
      const text = await this.#textFeatures(phrase ?? VISUAL_PROMPT);
      const levels = await this.#levels("detector_neck");
      const asked = boxes.length ? boxes.flatMap((box) => this.#boxToInput(box)) : [0, 0, 0, 0];
      const marks = boxes.length ? labels : [PADDING_LABEL];
      const given = {
        boxes: this.#floats(asked, [1, marks.length, 4]),
        box_labels: this.#longs(marks, [1, marks.length]),
      };
      this.#answer = { prompt, values: await this.#run("detector", { ...levels, ...text, ...given }) };
    }
    const { scores, pred_boxes: found, mask_logits: logits } = this.#answer.values;
    return ranked(scores.data, threshold).map((index) => ({
      score: scores.data[index],
      box: this.#boxToImage(found.data.subarray(4 * index, 4 * index + 4)),
      mask: this.#mask(logits, index),
    }));
  }

  /**
   * The one object of points and a box (or null), in pixels of the image: the best of the three masks, with holes of
   * `maxHoleArea` pixels of the logits or fewer filled.
   */
  async track({ points, labels, box, maxHoleArea }) {
    const levels = await this.#levels("interactive_neck");
    const given = box ? [...points, box.slice(0, 2), box.slice(2)] : points;
    const marks = box ? [...labels, ...CORNER_LABELS] : labels;
    const { iou_scores: scores, mask_logits: logits } = await this.#run("interactive", {
      ...levels,
      points: this.#floats(
        given.flatMap((point) => this.#pointToInput(point)),
        [1, given.length, 2],
      ),
      labels: this.#longs(marks, [1, marks.length]),
    });
    const [best] = ranked(scores.data);
    const mask = this.#mask(logits, best, maxHoleArea);
    const { size, maskSize } = this.#placement;
    const scale = [size[1] / maskSize[1], size[0] / maskSize[0]];
    const tight = boxOfMask(mask, maskSize).map((value, axis) => value * scale[axis % 2]);
    return [{ score: Math.min(Math.max(scores.data[best], 0), 1), box: tight, mask }];
  }

  /** A neck's levels of the embedding, computed once per image. */
  async #levels(neck) {
    if (!this.#placement) throw new Error("No image is open: open one first.");
    const names = this.#graph(neck).outputs.map(({ name }) => name);
    if (!(names[0] in this.#values)) {
      Object.assign(this.#values, await this.#run(neck, { embedding: this.#values.embedding }));
    }
    return Object.fromEntries(names.map((name) => [name, this.#values[name]]));
  }

  async #textFeatures(phrase) {
    if (!this.#phrases.has(phrase)) this.#phrases.set(phrase, await this.#encodeText(phrase));
    return this.#phrases.get(phrase);
  }

  async #encodeText(phrase) {
    const { tokenizer, visual_prompt: visual } = this.manifest;
    if (!tokenizer) {
      if (phrase !== VISUAL_PROMPT || !visual) throw new Error("This model has no text encoder: give example boxes.");
      const features = this.#floats(visual.flat(), [1, visual.length, visual[0].length]);
      return {
        text_features: features,
        text_mask: this.#longs(
          visual.map(() => 1),
          [1, visual.length],
        ),
      };
    }
    this.tokenizer ??= new Tokenizer(await (await get(this.folder + tokenizer.file)).json());
    const length = tokenizer.context_length;
    const ids = this.tokenizer.encode(phrase);
    if (ids.length > length)
      throw new Error(`The words have ${ids.length} tokens, at most ${length} fit: shorten them.`);
    const padded = Array.from({ length }, (_, index) => ids[index] ?? tokenizer.pad_id);
    const mask = this.#longs(
      padded.map((_, index) => Number(index < ids.length)),
      [1, length],
    );
    const answer = await this.#run("text_encoder", { input_ids: this.#longs(padded, [1, length]), text_mask: mask });
    return { ...answer, text_mask: mask };
  }

  #graph(name) {
    const graph = this.manifest.graphs[name];
    if (!graph) throw new Error(`This model was exported without its ${name.replace("_", " ")}.`);
    return graph;
  }

  async #run(name, inputs) {
    const session = await this.#session(name);
    this.how.say(`Running the ${name.replace("_", " ")}`);
    return session.run(inputs);
  }

  async #session(name) {
    if (!this.#sessions.has(name)) {
      const variant = name === "image_encoder" && this.how.variant !== "fp32" ? this.manifest.variants : {};
      const { file, bytes } = variant[this.how.variant] ?? this.#graph(name);
      const label = name.replace("_", " ");
      const content = await download(this.folder + file, bytes, (share) =>
        this.how.say(`Loading the ${label}: ${share} %`),
      );
      this.how.say(`Preparing the ${label}`);
      const options = { executionProviders: [this.how.provider] };
      this.#sessions.set(name, await this.ort.InferenceSession.create(content, options));
    }
    return this.#sessions.get(name);
  }

  #pointToInput([x, y]) {
    const { size, content } = this.#placement;
    return [x * Math.fround(content[1] / size[1]), y * Math.fround(content[0] / size[0])];
  }

  /** xyxy in pixels of the image to cxcywh in [0, 1] of the input. */
  #boxToInput(box) {
    const { side } = this.#placement;
    const [x0, y0, x1, y1] = [...this.#pointToInput(box.slice(0, 2)), ...this.#pointToInput(box.slice(2))].map(
      (v) => v / side,
    );
    return [(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0];
  }

  /** xyxy in [0, 1] of the input to pixels of the image. */
  #boxToImage(box) {
    const { size, content, side } = this.#placement;
    return Array.from(box, (value, corner) => {
      const axis = 1 - (corner % 2);
      return Math.min(Math.max((value * side * size[axis]) / content[axis], 0), size[axis]);
    });
  }

  #mask(logits, index, maxHoleArea = 0) {
    const [height, width] = logits.dims.slice(2);
    const data = logits.data.subarray(index * height * width, (index + 1) * height * width);
    const { content, side, maskSize } = this.#placement;
    return toMask(fillHoles({ data, width, height }, maxHoleArea), content, side, maskSize);
  }

  #floats(values, dims) {
    return new this.ort.Tensor("float32", Float32Array.from(values), dims);
  }

  #longs(values, dims) {
    return new this.ort.Tensor("int64", BigInt64Array.from(values, BigInt), dims);
  }
}

/** Indices of the scores above the threshold, best first, equal ones in their order. */
function ranked(scores, threshold = -Infinity) {
  const kept = Array.from(scores.keys()).filter((index) => scores[index] > Math.fround(threshold));
  return kept.sort((one, other) => scores[other] - scores[one]);
}
