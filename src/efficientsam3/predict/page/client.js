// The page's side of worker.js.

export class Client {
  #worker = null;
  #settle = null;
  #last = Promise.resolve();

  /** @param {(text: string) => void} say where progress goes */
  constructor(say) {
    this.say = say;
  }

  /** Restart with an execution provider and a variant of the image encoder. */
  open(provider, variant) {
    this.#worker?.terminate();
    this.#settle?.({ error: "Restarted." });
    this.#last = Promise.resolve();
    this.#worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
    this.#worker.onmessage = ({ data }) => (data.progress ? this.say(data.progress) : this.#settle?.(data));
    this.#worker.onerror = ({ message }) =>
      this.#settle?.({ error: message || "The page's worker could not be started." });
    return this.ask("open", { provider, variant });
  }

  /**
   * Run an action of the worker after those before it; its value, or an Error of one sentence.
   * @param {() => boolean} wanted asked when its turn has come; if not, it is skipped and the value is undefined
   */
  ask(action, argument, transferred = [], wanted = () => true) {
    const answer = this.#last.then(() => (wanted() ? this.#send(action, argument, transferred) : undefined));
    this.#last = answer.catch(() => {});
    return answer;
  }

  #send(action, argument, transferred) {
    return new Promise((resolve, reject) => {
      this.#settle = ({ value, error }) => {
        this.#settle = null;
        if (error === undefined) resolve(value);
        else reject(new Error(error));
      };
      this.#worker.postMessage({ action, argument }, transferred);
    });
  }
}
