/** One image as a card: a preview, its classes as bars, the time per stage, and its actions. */

import { Problem } from "./api.js";
import { copyText, curlCommand } from "./copy.js";
import { byId, bytes, element, milliseconds, percent } from "./format.js";

/** What a state that has no result yet is called. */
export const STATES = { waiting: "Waiting", running: "Classifying", paused: "Waiting for the service" };

export class Card {
  #heatUrl = null;

  constructor(item, service, actions) {
    this.node = byId("card-template").content.firstElementChild.cloneNode(true);
    this.#part("h3 bdi").textContent = item.name;
    this.#part(".size").textContent = bytes(item.file.size);
    this.#part(".copy-json").addEventListener("click", (event) =>
      copy(event.currentTarget, JSON.stringify(item.body, null, 2)),
    );
    this.#part(".copy-curl").addEventListener("click", (event) =>
      copy(event.currentTarget, curlCommand(item.name, item.choice, service.key !== "")),
    );
    this.#part(".explain").addEventListener("click", () => this.#explain(item, service));
    this.#part(".try-again").addEventListener("click", () => actions.retry(item));
    this.#part(".remove").addEventListener("click", () => actions.remove(item));
    for (const button of this.node.querySelectorAll("button")) {
      button.setAttribute("aria-label", `${button.textContent}, ${item.name}`);
    }
    this.draw(item);
  }

  #part(selector) {
    return this.node.querySelector(selector);
  }

  /** Show the preview at this URL, or a placeholder with the name's suffix if there is none. */
  showPreview(url, name) {
    const image = this.#part(".picture");
    const placeholder = this.#part(".placeholder");
    image.hidden = !url;
    placeholder.hidden = Boolean(url);
    if (url) image.src = url;
    else placeholder.textContent = (/\.(\w{1,5})$/.exec(name)?.[1] ?? "file").toUpperCase();
  }

  /** Free the memory of the explanation, if there is one. */
  release() {
    if (this.#heatUrl) URL.revokeObjectURL(this.#heatUrl);
    this.#heatUrl = null;
    this.#showHeat(false);
  }

  /** Show the places that speak for the best class, or the image again. */
  async #explain(item, service) {
    const button = this.#part(".explain");
    const { signal } = item.controller;
    this.#showExplainError("");
    if (!this.#heatUrl) {
      button.disabled = true;
      try {
        const png = await service.explain(await item.file.arrayBuffer(), item.file.type, item.body, signal);
        if (signal.aborted) return;
        this.#heatUrl = URL.createObjectURL(png);
        this.#part(".heat").src = this.#heatUrl;
        this.#part(".heat").alt = `Places that speak for ${title(item)}, light`;
      } catch (error) {
        if (signal.aborted) return;
        this.#showExplainError(error instanceof Problem ? error.message : `Cannot read the file: ${error.message}`);
        return;
      } finally {
        button.disabled = false;
      }
    }
    this.#showHeat(this.#part(".heat").hidden);
  }

  #showHeat(isShown) {
    this.#part(".heat").hidden = !isShown;
    this.#part(".explain").setAttribute("aria-pressed", String(isShown));
  }

  #showExplainError(text) {
    this.#part(".explain-error").textContent = text;
    this.#part(".explain-error").hidden = !text;
  }

  draw(item) {
    const { body, problem, state } = item;
    const isDone = state === "done";
    this.node.dataset.state = state;
    const text = this.#part(".state");
    text.textContent = isDone ? "" : title(item);
    text.hidden = isDone;
    const detail = this.#part(".error-detail");
    detail.textContent = errorDetail(item);
    detail.hidden = !problem;
    this.#part(".bars").replaceChildren(...(isDone ? body.predictions.map(bar) : []));
    this.#part(".copy-json").hidden = !isDone;
    this.#part(".explain").hidden = !isDone;
    if (!isDone) {
      this.release();
      this.#showExplainError("");
    }
    this.#part(".try-again").hidden = state !== "failed";
    this.#part(".times").hidden = !isDone;
    this.#part(".waterfall").replaceChildren(...(isDone ? stages(item).map(stage) : []));
  }
}

/** The best class, the error, or what is happening. */
export function title({ state, body, problem }) {
  if (state === "done") return body.predictions[0].label;
  if (state === "failed") return problem.title;
  return STATES[state];
}

/** The detail of an error, and when the request is sent again. */
export function errorDetail({ state, problem }) {
  if (!problem) return "";
  if (state === "paused") {
    return `${problem.title}: ${problem.detail} Sent again after ${Math.ceil(problem.retryAfterS)} s.`;
  }
  const wait = problem.retryAfterS === null ? "" : ` Try again in ${Math.ceil(problem.retryAfterS)} s.`;
  return problem.detail + wait;
}

function bar({ label, probability }) {
  const row = element("li");
  const track = element("span", "track");
  const value = element("span", "value");
  value.style.width = `${probability * 100}%`;
  track.append(value);
  row.append(element("span", "label", label), element("span", "percent", percent(probability)), track);
  return row;
}

/**
 * Return the stages with their start and duration in milliseconds. The service knows durations, not instants:
 * they follow each other, and the network, which is before and after, is drawn at the beginning.
 */
function stages({ body, stages: header, browserMs }) {
  const { decode, queue, device, total } = body.timing_ms;
  const network = Math.max(0, browserMs - total);
  const parts = [
    ["network", network],
    ["wait", header.wait ?? 0],
    ["read", header.read ?? 0],
    ["decode", decode],
    ["queue", queue],
    ["device", device],
  ].filter(([name, duration]) => duration > 0 || !["wait", "read"].includes(name));
  const scale = Math.max(browserMs, network + total);
  let start = 0;
  const rows = parts.map(([name, duration]) => {
    const row = { name, duration, start, scale };
    start += duration;
    return row;
  });
  return [
    ...rows,
    { name: "service", duration: total, start: network, scale },
    { name: "total", duration: scale, start: 0, scale },
  ];
}

function stage({ name, duration, start, scale }) {
  const row = element("div", `stage ${name}`);
  const value = element("dd");
  const track = element("span", "track");
  const mark = element("span", "value");
  mark.style.marginLeft = `${(100 * start) / scale}%`;
  mark.style.width = `${(100 * duration) / scale}%`;
  track.append(mark);
  value.append(track, element("span", "duration", milliseconds(duration)));
  row.append(element("dt", "", name), value);
  return row;
}

async function copy(button, text) {
  const before = button.textContent;
  button.textContent = (await copyText(text)) ? "Copied" : "Copying failed";
  byId("announcement").textContent = button.textContent;
  button.disabled = true;
  setTimeout(() => {
    button.textContent = before;
    button.disabled = false;
  }, 1200);
}
