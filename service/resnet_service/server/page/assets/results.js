/** All images of the page: cards, table, progress, announcements, and the CSV file. */

import { Card, errorDetail, title } from "./card.js";
import { saveText, toCsv } from "./csv.js";
import { createPreview } from "./files.js";
import { byId, count, element, milliseconds, percent, plural } from "./format.js";
import { Queue } from "./queue.js";

const MAX_ITEMS = 1000;
const MAX_SPOKEN = 3;

export class Results {
  #service;
  #onClassify;
  #entries = new Map(); // item -> { card, row, preview }
  #previews = new Queue(1); // decoding takes the memory of the whole bitmap
  #isSummaryDue = false;

  /** `onClassify` is called with an item that has to be classified, the first time and again. */
  constructor(service, onClassify) {
    this.#service = service;
    this.#onClassify = onClassify;
    byId("clear").addEventListener("click", () => this.#clear());
    byId("save").addEventListener("click", () => saveText(toCsv([...this.#entries.keys()]), "results.csv"));
    byId("retry").addEventListener("click", () => this.retryFailed());
    byId("again").addEventListener("click", () => this.#restart([...this.#entries.keys()]));
    for (const radio of document.querySelectorAll("input[name=view]")) {
      radio.addEventListener("change", () => this.#showView(radio.value));
    }
  }

  /** Show items above the earlier ones, and classify them. Returns how many there is no place for. */
  add(items) {
    const added = items.slice(0, MAX_ITEMS - this.#entries.size);
    const entries = added.map((item) => [item, this.#createEntry(item)]);
    this.#entries = new Map([...entries, ...this.#entries]);
    byId("cards").prepend(...entries.map(([, entry]) => entry.card.node));
    byId("rows").prepend(...entries.map(([, entry]) => entry.row));
    for (const item of added) {
      this.#onClassify(item);
      this.#previews.add(() => this.#showPreview(item));
    }
    this.#scheduleSummary();
    return items.length - added.length;
  }

  /** Classify all images again whose request failed for a reason that a new attempt can change. */
  retryFailed(isDue = () => true) {
    this.#restart([...this.#entries.keys()].filter((item) => item.state === "failed" && isDue(item.problem)));
  }

  #createEntry(item) {
    const actions = { retry: () => this.#restart([item]), remove: () => this.#remove(item) };
    const entry = { card: new Card(item, this.#service, actions), row: element("tr"), preview: null };
    drawRow(entry.row, item);
    item.onChange = () => {
      entry.card.draw(item);
      drawRow(entry.row, item);
      if (item.isFinished) this.#speak(item);
      this.#scheduleSummary();
    };
    return entry;
  }

  async #showPreview(item) {
    if (!this.#entries.has(item)) return; // removed before its turn
    const url = await createPreview(item.file);
    const entry = this.#entries.get(item);
    if (entry) {
      entry.preview = url;
      entry.card.showPreview(url, item.name);
    } else if (url) {
      URL.revokeObjectURL(url);
    }
  }

  #restart(items) {
    for (const item of items) {
      item.reset();
      this.#onClassify(item);
    }
  }

  #remove(item) {
    const { card, row } = this.#entries.get(item);
    const neighbor = card.node.nextElementSibling ?? card.node.previousElementSibling;
    this.#forget(item);
    card.node.remove();
    row.remove();
    (neighbor?.querySelector(".remove") ?? byId("choose")).focus();
    this.#scheduleSummary();
  }

  #clear() {
    for (const item of [...this.#entries.keys()]) this.#forget(item);
    byId("cards").replaceChildren();
    byId("rows").replaceChildren();
    byId("choose").focus();
    this.#scheduleSummary();
  }

  #forget(item) {
    const { card, preview } = this.#entries.get(item);
    card.release();
    item.onChange = () => {};
    item.controller.abort(); // the service stops working on it when the connection ends
    if (preview) URL.revokeObjectURL(preview);
    this.#entries.delete(item);
  }

  #showView(view) {
    byId("cards").hidden = view !== "cards";
    byId("table").hidden = view !== "table";
  }

  /** Say the result of one image to screen readers; of many, only the summary. */
  #speak(item) {
    if (this.#entries.size > MAX_SPOKEN) return;
    const probability = item.state === "done" ? `, ${percent(item.body.predictions[0].probability)}` : "";
    const detail = errorDetail(item);
    byId("announcement").textContent = `${item.name}: ${title(item)}${probability}${detail && `. ${detail}`}`;
  }

  /** Draw the summary once per frame, however many images have changed. */
  #scheduleSummary() {
    if (this.#isSummaryDue) return;
    this.#isSummaryDue = true;
    setTimeout(() => {
      this.#isSummaryDue = false;
      this.#drawSummary();
    }, 50);
  }

  #drawSummary() {
    const items = [...this.#entries.keys()];
    const finished = items.filter((item) => item.isFinished).length;
    const failed = items.filter((item) => item.state === "failed").length;
    const isRunning = finished < items.length;
    document.body.classList.toggle("has-results", items.length > 0);
    byId("results").hidden = items.length === 0;
    byId("retry").hidden = failed === 0;
    const progress = byId("progress");
    progress.hidden = !isRunning;
    progress.max = Math.max(1, items.length);
    progress.value = finished;
    const failures = failed ? `, ${count(failed)} failed` : "";
    const text = isRunning
      ? `${count(finished)} of ${plural(items.length, "image")}${failures}`
      : `${plural(items.length, "image")}${failures}`;
    byId("progress-text").textContent = text;
    if (!isRunning && items.length > MAX_SPOKEN) byId("announcement").textContent = `Classified ${text}`;
  }
}

function drawRow(row, item) {
  const { body, browserMs } = item;
  const best = body?.predictions[0];
  const name = element("th");
  name.scope = "row";
  name.append(element("bdi", "", item.name));
  const detail = errorDetail(item);
  const label = element("td", item.state, detail ? `${title(item)}: ${detail}` : title(item));
  const cells = [
    best ? percent(best.probability) : "",
    body ? `${body.model} ${body.version}` : "",
    body ? milliseconds(body.timing_ms.total) : "",
    body ? milliseconds(browserMs) : "",
  ].map((text, column) => element("td", column === 1 ? "" : "number", text));
  if (!best) label.colSpan = 5;
  row.replaceChildren(name, label, ...(best ? cells : []));
}
