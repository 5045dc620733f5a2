// Mouse, finger and keyboard on the canvas become points and boxes, in pixels of the canvas.

const CLICK = 4; // pixels of the screen that a click may move
const STEPS = 60; // key presses from side to side

/**
 * @param {HTMLCanvasElement} canvas
 * @param {{point: (at: number[], other: boolean) => void, box: (box: number[], other: boolean) => void,
 *     show: (box: number[]|null, cursor: number[]|null, other: boolean) => void, clear: () => void}} on
 *     `other`: with Shift or the right button, the other sign than chosen; `show`: a box under way, the keyboard's mark
 */
export function listen(canvas, on) {
  listenToPointer(canvas, on);
  listenToKeys(canvas, on);
}

function listenToPointer(canvas, on) {
  let start = null;
  const isClick = (event) => Math.hypot(event.clientX - start.x, event.clientY - start.y) < CLICK;
  canvas.addEventListener("contextmenu", (event) => event.preventDefault());
  canvas.addEventListener("pointerdown", (event) => {
    if (event.button !== 0 && event.button !== 2) return;
    canvas.setPointerCapture(event.pointerId);
    start = {
      x: event.clientX,
      y: event.clientY,
      at: place(canvas, event),
      other: event.shiftKey || event.button === 2,
    };
  });
  canvas.addEventListener("pointermove", (event) => {
    if (start && !isClick(event)) on.show(boxOf(start.at, place(canvas, event)), null, start.other);
  });
  canvas.addEventListener("pointercancel", () => {
    start = null;
    on.show(null, null, false);
  });
  canvas.addEventListener("pointerup", (event) => {
    if (!start) return;
    const [{ at, other }, click] = [start, isClick(event)];
    start = null;
    on.show(null, null, false);
    if (click) on.point(at, other);
    else finish(boxOf(at, place(canvas, event)), other, on);
  });
}

function listenToKeys(canvas, on) {
  let [cursor, corner] = [null, null];
  const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  const show = (other) => on.show(corner && boxOf(corner, cursor), cursor, other);
  const actions = {
    Enter: (other) => on.point(cursor, other),
    b: (other) => {
      if (corner) finish(boxOf(corner, cursor), other, on);
      corner = corner ? null : cursor;
    },
    Escape: () => (corner = null),
    Delete: () => {
      corner = null;
      on.clear();
    },
  };
  canvas.addEventListener("keydown", (event) => {
    const key = event.key === "B" ? "b" : event.key;
    if (event.altKey || event.metaKey || !(key in moves || key in actions)) return;
    event.preventDefault();
    cursor = within(canvas, cursor ?? [canvas.width / 2, canvas.height / 2]);
    if (key in moves) {
      const step = event.ctrlKey ? 1 : Math.max(canvas.width, canvas.height) / STEPS;
      cursor = within(
        canvas,
        moves[key].map((sign, axis) => cursor[axis] + sign * step),
      );
    } else actions[key](event.shiftKey);
    show(event.shiftKey);
  });
  canvas.addEventListener("blur", () => {
    [cursor, corner] = [null, null];
    show(false);
  });
}

function finish(box, other, on) {
  if (box[0] < box[2] && box[1] < box[3]) on.box(box, other);
}

function place(canvas, event) {
  const shown = canvas.getBoundingClientRect();
  const scale = canvas.width / shown.width;
  return within(canvas, [(event.clientX - shown.left) * scale, (event.clientY - shown.top) * scale]);
}

function within(canvas, [x, y]) {
  return [Math.min(Math.max(x, 0), canvas.width), Math.min(Math.max(y, 0), canvas.height)];
}

function boxOf([x0, y0], [x1, y1]) {
  return [Math.min(x0, x1), Math.min(y0, y1), Math.max(x0, x1), Math.max(y0, y1)];
}
