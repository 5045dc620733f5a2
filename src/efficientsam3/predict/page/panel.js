// The list of what was found.

import { colour } from "./draw.js";

/**
 * One button per object; pressed, it shows that object alone.
 * @param {HTMLOListElement} list
 * @param {{score: number}[]} objects
 * @param {(only: number|null) => void} choose
 */
export function listObjects(list, objects, choose) {
  const buttons = objects.map(({ score }, index) => button(index, score));
  buttons.forEach((pressed, index) =>
    pressed.addEventListener("click", () => {
      const only = pressed.getAttribute("aria-pressed") === "true" ? null : index;
      buttons.forEach((other, at) => other.setAttribute("aria-pressed", String(at === only)));
      choose(only);
    }),
  );
  list.replaceChildren(
    ...buttons.map((shown) => {
      const item = document.createElement("li");
      item.append(shown);
      return item;
    }),
  );
}

function button(index, score) {
  const made = document.createElement("button");
  made.type = "button";
  made.title = "Show this one alone";
  made.setAttribute("aria-pressed", "false");
  made.append(swatch(index), text("span", `Object ${index + 1}`, ""), text("span", score.toFixed(3), "score"));
  return made;
}

function text(tag, content, className) {
  const made = document.createElement(tag);
  made.textContent = content;
  made.className = className;
  return made;
}

/** A canvas, as the page's policy allows no style in its elements. */
function swatch(index) {
  const made = document.createElement("canvas");
  [made.width, made.height] = [1, 1];
  const context = made.getContext("2d");
  context.fillStyle = `rgb(${colour(index).join(" ")})`;
  context.fillRect(0, 0, 1, 1);
  made.setAttribute("aria-hidden", "true");
  return made;
}
