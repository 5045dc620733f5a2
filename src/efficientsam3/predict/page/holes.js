// Filling small holes in mask logits: `fill_holes` of sam3/holes.py.

const FILLED = 10; // logit of a filled pixel

/**
 * Put small holes on the object: parts of the background (0 or less), connected by sides or corners.
 * @param {{data: Float32Array, width: number, height: number}} logits at the decoder's resolution
 * @param {number} maxArea holes of so many pixels or fewer are filled; 0 fills none
 * @returns the same with 10 in each filled pixel
 */
export function fillHoles(logits, maxArea) {
  if (maxArea <= 0) return logits;
  const { data, width, height } = logits;
  const [filled, seen] = [new Float32Array(data), new Uint8Array(data.length)];
  for (let pixel = 0; pixel < data.length; pixel++) seen[pixel] = data[pixel] <= 0 ? 0 : 1;
  const part = new Int32Array(width * height);
  for (let start = 0; start < part.length; start++) {
    if (seen[start]) continue;
    let area = 0;
    const add = (pixel) => {
      if (seen[pixel]) return;
      seen[pixel] = 1;
      part[area++] = pixel;
    };
    add(start);
    for (let index = 0; index < area; index++) {
      const [x, y] = [part[index] % width, Math.trunc(part[index] / width)];
      for (let row = Math.max(y - 1, 0); row <= Math.min(y + 1, height - 1); row++) {
        for (let column = Math.max(x - 1, 0); column <= Math.min(x + 1, width - 1); column++) add(row * width + column);
      }
    }
    if (area <= maxArea) for (const pixel of part.subarray(0, area)) filled[pixel] = FILLED;
  }
  return { data: filled, width, height };
}
