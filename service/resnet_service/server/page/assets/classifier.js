/** Classify files with bounded concurrency, and wait where the service asks for it. */

import { Problem } from "./api.js";
import { bytes } from "./format.js";
import { Queue } from "./queue.js";

const CONCURRENCY = 4; // browsers open six connections to a server; two are left for the rest of the page
const MAX_ATTEMPTS = 5;
const MAX_WAIT_S = 60;

/** One file: its state is waiting, running, paused, done or failed. `onChange` is called after each change. */
export class Item {
  constructor(file, name) {
    this.file = file;
    this.name = name;
    this.state = "waiting";
    this.onChange = () => {};
    this.controller = new AbortController();
  }

  /** Forget the previous result, to classify the file again. */
  reset() {
    this.controller.abort();
    this.controller = new AbortController();
    this.update({ state: "waiting", body: null, problem: null, browserMs: null, stages: null });
  }

  update(changes) {
    Object.assign(this, changes);
    this.onChange(this);
  }

  get isFinished() {
    return this.state === "done" || this.state === "failed";
  }
}

export class Classifier {
  #service;
  #queue = new Queue(CONCURRENCY);
  #onKeyNeeded;
  #maxBytes = Infinity;

  /** `onKeyNeeded` is called with the Problem if the service does not accept the API key. */
  constructor(service, onKeyNeeded) {
    this.#service = service;
    this.#onKeyNeeded = onKeyNeeded;
  }

  /** Set the largest file that the service accepts. */
  setLimit(maxBytes) {
    this.#maxBytes = maxBytes;
  }

  /** Classify an item with a model; `choice` is kept for the curl command. */
  add(item, choice) {
    item.choice = choice;
    const { signal } = item.controller;
    this.#queue.add(() => this.#classify(item, choice, signal));
  }

  async #classify(item, choice, signal) {
    if (signal.aborted) return;
    try {
      if (item.file.size > this.#maxBytes) {
        throw new Problem(413, "Too large", `${bytes(item.file.size)}; the limit is ${bytes(this.#maxBytes)}.`);
      }
      const content = await read(item.file);
      const result = await this.#predict(item, content, choice, signal);
      if (!signal.aborted) item.update({ state: "done", ...result });
    } catch (error) {
      if (signal.aborted) return;
      if (!(error instanceof Problem)) throw error;
      item.update({ state: "failed", problem: error });
      if (error.isAboutKey) this.#onKeyNeeded(error);
    }
  }

  /** Send the request, again after Retry-After if the service is busy or the key's rate is exceeded. */
  async #predict(item, content, choice, signal) {
    for (let attempt = 1; ; attempt += 1) {
      item.update({ state: "running" });
      try {
        return await this.#service.predict(content, item.file.type, choice, signal);
      } catch (error) {
        const isBusy = error instanceof Problem && (error.status === 429 || error.status === 503);
        const seconds = error.retryAfterS;
        if (!isBusy || !(seconds <= MAX_WAIT_S) || seconds === null || attempt === MAX_ATTEMPTS) throw error;
        item.update({ state: "paused", problem: error });
        await pause(seconds, signal);
        item.update({ problem: null });
      }
    }
  }
}

/** Read a file first: if that failed within the request, it would look like a lost connection. */
async function read(file) {
  try {
    return await file.arrayBuffer();
  } catch {
    throw new Problem(400, "Cannot read the file", "It has changed or is gone, or it is a folder.");
  }
}

function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, seconds * 1000);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    });
  });
}
