// From an image to the encoder's input: what `Preprocessing` of model.json says, computed as Pillow computes it, so
// that an image becomes the same numbers here as for `efficientsam3 predict`.

const PRECISION = 22; // bits of Pillow's fixed-point weights (Resample.c)

/** [height, width] that an image covers in the square input, at its top left: `Preprocessing.content_size`. */
export function contentSize(height, width, { image_size: side, resize }) {
  if (resize === "square") return [side, side];
  const scale = side / Math.max(height, width);
  return [height, width].map((length) => Math.max(1, Math.floor(length * scale + 0.5)));
}

/**
 * RGBA pixels to the encoder's input.
 * @param {{data: Uint8ClampedArray, width: number, height: number}} image RGBA, row by row
 * @param {object} preprocessing of model.json: image_size, resize, mean, std
 * @returns {Float32Array} (3, S, S), normalised, zeros where the input is padding
 */
export function toInput(image, preprocessing) {
  const { image_size: side, mean, std } = preprocessing;
  const [height, width] = contentSize(image.height, image.width, preprocessing);
  const rgb = resizeBilinear(dropAlpha(image), width, height).data;
  const input = new Float32Array(3 * side * side);
  for (let channel = 0; channel < 3; channel++) {
    const values = normalised(mean[channel], std[channel]);
    for (let y = 0; y < height; y++) {
      const row = (channel * side + y) * side;
      for (let x = 0; x < width; x++) input[row + x] = values[rgb[(y * width + x) * 3 + channel]];
    }
  }
  return input;
}

/**
 * `Image.resize(..., BILINEAR)` of Pillow: a triangle as wide as the shrinking needs, 8 bits between the two passes, of
 * which the one that leaves less comes first (Pillow before 13 began with rows, at most one grey level away).
 * @param {{data: Uint8ClampedArray, width: number, height: number}} image RGB
 */
export function resizeBilinear(image, width, height) {
  const across = (given) => (given.width === width ? given : resizeRows(given, width));
  const down = (given) => (given.height === height ? given : transpose(resizeRows(transpose(given), height)));
  return width * image.height <= height * image.width ? down(across(image)) : across(down(image));
}

/** What each of the 256 grey levels becomes, in 32-bit arithmetic. */
function normalised(mean, std) {
  const [shift, scale] = [Math.fround(mean), Math.fround(std)];
  const values = new Float32Array(256);
  for (let level = 0; level < 256; level++) {
    values[level] = Math.fround(Math.fround(Math.fround(level / 255) - shift) / scale);
  }
  return values;
}

function dropAlpha({ data, width, height }) {
  const rgb = new Uint8ClampedArray(width * height * 3);
  for (let pixel = 0; pixel < width * height; pixel++) {
    rgb[pixel * 3] = data[pixel * 4];
    rgb[pixel * 3 + 1] = data[pixel * 4 + 1];
    rgb[pixel * 3 + 2] = data[pixel * 4 + 2];
  }
  return { data: rgb, width, height };
}

function transpose({ data, width, height }) {
  const turned = new Uint8ClampedArray(data.length);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const [from, to] = [(y * width + x) * 3, (x * height + y) * 3];
      turned[to] = data[from];
      turned[to + 1] = data[from + 1];
      turned[to + 2] = data[from + 2];
    }
  }
  return { data: turned, width: height, height: width };
}

function resizeRows({ data, width, height }, target) {
  const resized = new Uint8ClampedArray(target * height * 3);
  const columns = Array.from({ length: target }, (_, x) => triangle(x, width, target));
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < target; x++) {
      const { first, weights } = columns[x];
      let red = 1 << (PRECISION - 1),
        green = red,
        blue = red; // a half, for rounding
      for (let tap = 0, at = (y * width + first) * 3; tap < weights.length; tap++, at += 3) {
        red += data[at] * weights[tap];
        green += data[at + 1] * weights[tap];
        blue += data[at + 2] * weights[tap];
      }
      const to = (y * target + x) * 3;
      resized[to] = red >> PRECISION;
      resized[to + 1] = green >> PRECISION;
      resized[to + 2] = blue >> PRECISION;
    }
  }
  return { data: resized, width: target, height };
}

/** The first source pixel of a target pixel, and the integer weights from there on. */
function triangle(index, length, target) {
  const scale = length / target;
  const support = Math.max(scale, 1);
  const centre = (index + 0.5) * scale;
  const first = Math.max(0, Math.trunc(centre - support + 0.5));
  const last = Math.min(length, Math.trunc(centre + support + 0.5));
  const weights = [];
  for (let at = first; at < last; at++) weights.push(Math.max(0, 1 - Math.abs((at - centre + 0.5) * (1 / support))));
  const total = weights.reduce((sum, weight) => sum + weight, 0);
  return { first, weights: weights.map((weight) => Math.floor((weight / total) * 2 ** PRECISION + 0.5)) };
}
