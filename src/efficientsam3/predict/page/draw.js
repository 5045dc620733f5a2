// What is seen on the canvas: the image, masks in colours with their edges, and the prompts.

const [POSITIVE, NEGATIVE] = ["#00c800", "#dc0000"]; // as on the overlays of `efficientsam3 predict`
const GOLDEN_ANGLE = 0.618034; // of the hue circle: neighbours in a list get colours that are far apart
const FIRST_HUE = 0.58;
const INSIDE = 110; // opacity of a mask, of 255

/** [red, green, blue] of the object with this number. */
export function colour(index) {
  const hue = 6 * ((FIRST_HUE + index * GOLDEN_ANGLE) % 1);
  return [5, 3, 1].map((shift) => {
    const k = (shift + hue) % 6;
    return Math.round(255 * (1 - 0.85 * Math.max(0, Math.min(k, 4 - k, 1))));
  });
}

/**
 * Masks as one transparent layer, the best on top.
 * @param {{mask: Uint8Array}[]} objects best first; masks of `width` x `height`
 * @param {number|null} only number of the one to show, or null for all
 */
export function paintLayer(objects, { width, height }, only) {
  const image = new ImageData(width, height);
  for (let index = objects.length - 1; index >= 0; index--) {
    if (only === null || only === index) paintMask(image, objects[index].mask, colour(index));
  }
  const layer = new OffscreenCanvas(width, height);
  layer.getContext("2d").putImageData(image, 0, 0);
  return layer;
}

function paintMask({ data, width, height }, mask, [red, green, blue]) {
  for (let pixel = 0; pixel < mask.length; pixel++) {
    if (!mask[pixel]) continue;
    const x = pixel % width;
    const inside =
      x > 0 && x < width - 1 && mask[pixel - 1] && mask[pixel + 1] && mask[pixel - width] && mask[pixel + width];
    data[4 * pixel] = red;
    data[4 * pixel + 1] = green;
    data[4 * pixel + 2] = blue;
    data[4 * pixel + 3] = inside ? INSIDE : 255;
  }
}

/**
 * Draw everything.
 * @param {HTMLCanvasElement} canvas
 * @param {object} scene bitmap, layer (or null), points, labels, boxes [{box, label}], cursor ([x, y] or null); all in
 *     pixels of the canvas
 */
export function draw(canvas, { bitmap, layer, points, labels, boxes, cursor }) {
  const context = canvas.getContext("2d", { alpha: false });
  const unit = canvas.width / Math.max(1, canvas.clientWidth); // a pixel of the screen
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  if (layer) context.drawImage(layer, 0, 0);
  for (const { box, label } of boxes) drawBox(context, box, label, unit);
  points.forEach((point, index) => drawPoint(context, point, labels[index], unit));
  if (cursor) drawCursor(context, cursor, unit);
}

/** Negative ones are dashed, so that colour is not all that tells. */
function drawBox(context, [x0, y0, x1, y1], label, unit) {
  for (const [style, width] of [
    ["#ffffff", 4],
    [label ? POSITIVE : NEGATIVE, 2],
  ]) {
    context.setLineDash(label ? [] : [8 * unit, 5 * unit]);
    context.strokeStyle = style;
    context.lineWidth = width * unit;
    context.strokeRect(x0, y0, x1 - x0, y1 - y0);
  }
  context.setLineDash([]);
}

/** A disc with a plus or a minus. */
function drawPoint(context, [x, y], label, unit) {
  context.beginPath();
  context.arc(x, y, 8 * unit, 0, 2 * Math.PI);
  context.fillStyle = label ? POSITIVE : NEGATIVE;
  context.fill();
  context.strokeStyle = "#ffffff";
  context.lineWidth = 2 * unit;
  context.stroke();
  cross(context, x, y, 4 * unit, Boolean(label));
}

function drawCursor(context, [x, y], unit) {
  for (const [style, width] of [
    ["#ffffff", 4],
    ["#000000", 1.5],
  ]) {
    context.strokeStyle = style;
    context.lineWidth = width * unit;
    cross(context, x, y, 12 * unit, true);
  }
}

function cross(context, x, y, arm, upright) {
  context.beginPath();
  context.moveTo(x - arm, y);
  context.lineTo(x + arm, y);
  if (upright) {
    context.moveTo(x, y - arm);
    context.lineTo(x, y + arm);
  }
  context.stroke();
}
