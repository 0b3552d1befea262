/** Classify files with bounded concurrency, and wait where the service asks for it. */

import { Problem } from "./api.js";
import { bytes } from "./format.js";
import { Queue } from "./queue.js";
import { withRetries } from "./retry.js";

const CONCURRENCY = 4; // browsers open six connections to a server; two are left for the rest of the page

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
      item.update({ state: "running" });
      const result = await withRetries(
        () => this.#service.predict(content, item.file.type, choice, signal),
        {
          signal,
          onPause: (problem) => item.update({ state: "paused", problem }),
          onResume: () => item.update({ state: "running", problem: null }),
        },
      );
      if (!signal.aborted) item.update({ state: "done", ...result });
    } catch (error) {
      if (signal.aborted) return;
      if (!(error instanceof Problem)) throw error;
      item.update({ state: "failed", problem: error });
      if (error.isAboutKey) this.#onKeyNeeded(error);
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
