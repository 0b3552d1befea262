/** Work in order of arrival, with bounded concurrency. */

export class Queue {
  #limit;
  #running = 0;
  #waiting = [];

  constructor(limit) {
    this.#limit = limit;
  }

  /** Call an asynchronous function as soon as fewer than the limit run; it handles its own errors. */
  add(work) {
    this.#waiting.push(work);
    this.#next();
  }

  async #next() {
    if (this.#running >= this.#limit || this.#waiting.length === 0) return;
    this.#running += 1;
    try {
      await this.#waiting.shift()();
    } finally {
      this.#running -= 1;
      this.#next();
    }
  }
}
