/** Live figures from /metrics, every two seconds and only while the page is visible. */

import { drawChart } from "./chart.js";
import { byId, milliseconds } from "./format.js";
import { compare, hasRestarted, readMetrics } from "./prometheus.js";

const INTERVAL_MS = 2000;
const WINDOW = 5; // scrapes: figures are those of ten seconds
const CHARTED = 60;

export class Live {
  #service;
  #onModels;
  #scrapes = []; // { at, metrics }, the oldest first
  #rates = [];
  #isForbidden = false;
  #isRunning = false;
  #timer = null;

  /** `onModels` is called when other models are served than before, for example after a reload. */
  constructor(service, onModels) {
    this.#service = service;
    this.#onModels = onModels;
    document.addEventListener("visibilitychange", () => this.#run());
  }

  /** Begin, or begin again with another API key. */
  start() {
    this.#isForbidden = false;
    this.#run();
  }

  async #run() {
    clearTimeout(this.#timer);
    if (document.hidden || this.#isRunning) return;
    this.#isRunning = true;
    try {
      await this.#update();
    } finally {
      this.#isRunning = false;
    }
    if (!document.hidden) this.#timer = setTimeout(() => this.#run(), INTERVAL_MS);
  }

  async #update() {
    try {
      // Without permission, the health of the service still says whether it can be reached.
      if (this.#isForbidden) await this.#service.fetch("healthz");
      else this.#add(readMetrics(await this.#service.text("metrics")));
    } catch (problem) {
      if (problem.isAboutKey) this.#forbid(problem);
      this.#scrapes = [];
    }
  }

  #add(metrics) {
    byId("live").hidden = false;
    byId("live-message").hidden = true;
    const at = performance.now();
    const previous = this.#scrapes.at(-1);
    if (previous && previous.metrics.models !== metrics.models) this.#onModels();
    if (previous && (hasRestarted(previous.metrics, metrics) || at - previous.at > 3 * INTERVAL_MS)) {
      this.#scrapes = [];
    }
    this.#scrapes.push({ at, metrics });
    if (this.#scrapes.length > WINDOW + 1) this.#scrapes.shift();
    const [first] = this.#scrapes;
    const last = this.#scrapes.at(-2);
    if (!last) return;
    const figures = compare(first.metrics, metrics, (at - first.at) / 1000);
    byId("rate").textContent = figures.rate.toFixed(figures.rate < 10 ? 1 : 0);
    byId("batch").textContent = figures.batchSize === null ? "–" : figures.batchSize.toFixed(1);
    byId("p50").textContent = figures.p50Ms === null ? "–" : milliseconds(figures.p50Ms);
    byId("p95").textContent = figures.p95Ms === null ? "–" : milliseconds(figures.p95Ms);
    this.#rates.push(compare(last.metrics, metrics, (at - last.at) / 1000).rate);
    if (this.#rates.length > CHARTED) this.#rates.shift();
    drawChart(byId("chart"), this.#rates, CHARTED, `Requests per second: ${byId("rate").textContent}`);
  }

  #forbid(problem) {
    this.#isForbidden = true;
    byId("live").hidden = true;
    byId("live-message").textContent =
      problem.status === 401
        ? "Live figures need an API key with the scope metrics."
        : "This API key does not have the scope metrics, which live figures need.";
    byId("live-message").hidden = false;
  }
}
