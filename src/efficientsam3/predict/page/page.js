// The page's elements, and what it says while it works.

/** By id. */
export const element = Object.fromEntries(Array.from(document.querySelectorAll("[id]"), (found) => [found.id, found]));
let tasks = 0;

/** Say where things stand; `busy` while something is computed. */
export function say(text, busy = false) {
  element.status.textContent = text;
  element.status.classList.toggle("busy", busy);
}

/** Do something that may take long or fail; the page says so. */
export async function work(task) {
  tasks++;
  element.computing.disabled = true;
  element.error.hidden = true;
  try {
    await task();
  } catch (error) {
    element.error.textContent = error.message;
    element.error.hidden = false;
    say("");
  } finally {
    tasks--;
    element.computing.disabled = isBusy();
    element.status.classList.toggle("busy", isBusy());
  }
}

/** Whether anything is being computed. */
export function isBusy() {
  return tasks > 0;
}

/** Value of a group of radio buttons: `mode` object or examples, `sign` 1 or 0. */
export function chosen(name) {
  return document.querySelector(`input[name="${name}"]:checked`)?.value;
}
