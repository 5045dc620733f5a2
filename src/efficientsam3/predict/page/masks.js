// From mask logits over the encoder's input to masks of the image: `Placement.masks_to_image` of sam3/geometry.py.

/**
 * Bilinear interpolation with half-pixel centres, without antialiasing.
 * @param {{data: Float32Array, width: number, height: number}} level row by row
 * @returns the same, `width` x `height`
 */
export function upsample(level, width, height) {
  const [columns, rows] = [taps(level.width, width), taps(level.height, height)];
  const data = new Float32Array(width * height);
  const row = new Float32Array(level.width);
  for (let y = 0; y < height; y++) {
    const [above, below, down] = [rows.low[y] * level.width, rows.high[y] * level.width, rows.weight[y]];
    for (let x = 0; x < level.width; x++) {
      const value = level.data[above + x];
      row[x] = value + (level.data[below + x] - value) * down;
    }
    for (let x = 0; x < width; x++) {
      const value = row[columns.low[x]];
      data[y * width + x] = value + (row[columns.high[x]] - value) * columns.weight[x];
    }
  }
  return { data, width, height };
}

/** For each target pixel, the two source pixels around its centre and the weight of the second. */
function taps(length, target) {
  const [low, high, weight] = [new Int32Array(target), new Int32Array(target), new Float32Array(target)];
  for (let index = 0; index < target; index++) {
    const centre = Math.min(Math.max((index + 0.5) * (length / target) - 0.5, 0), length - 1);
    low[index] = Math.trunc(centre);
    high[index] = Math.min(low[index] + 1, length - 1);
    weight[index] = centre - low[index];
  }
  return { low, high, weight };
}

/**
 * Logits to a mask.
 * @param {{data: Float32Array, width: number, height: number}} logits over the whole square input
 * @param {number[]} content height and width of the input that the image covers
 * @param {number} side of the input
 * @param {number[]} size height and width of the mask
 * @returns {Uint8Array} 1 on the object, row by row
 */
export function toMask(logits, content, side, [height, width]) {
  const shown = content[0] === side && content[1] === side ? logits : cut(upsample(logits, side, side), content);
  const values = upsample(shown, width, height).data;
  return Uint8Array.from(values, (value) => (value > 0 ? 1 : 0));
}

function cut({ data, width }, [height, cutWidth]) {
  const kept = new Float32Array(height * cutWidth);
  for (let y = 0; y < height; y++) kept.set(data.subarray(y * width, y * width + cutWidth), y * cutWidth);
  return { data: kept, width: cutWidth, height };
}

/** Tight box [x0, y0, x1, y1] of a mask in pixel edges, zeros for an empty one. */
export function boxOfMask(mask, [height, width]) {
  let [x0, y0, x1, y1] = [width, height, 0, 0];
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      if (!mask[y * width + x]) continue;
      [x0, x1] = [Math.min(x0, x), Math.max(x1, x + 1)];
      [y0, y1] = [Math.min(y0, y), y + 1];
    }
  }
  return x1 > x0 ? [x0, y0, x1, y1] : [0, 0, 0, 0];
}
