/** Requests to the service: API key, errors in words, and the time that the browser sees. */

const KEY_NAME = "resnet-service-api-key";
const OFFLINE = "Cannot reach the service";

/** An error of the service (RFC 9457), or of the connection, which has the status 0. */
export class Problem extends Error {
  constructor(status, title, detail, retryAfterS = null) {
    super(detail ? `${title}: ${detail}` : title);
    this.status = status;
    this.title = title;
    this.detail = detail;
    this.retryAfterS = retryAfterS;
  }

  /** Whether the API key is missing, unknown, or not for this part of the API. */
  get isAboutKey() {
    return this.status === 401 || this.status === 403;
  }
}

/** The service. `onReach` is called with true after each response, and with false if there is none. */
export class Service {
  #onReach;

  constructor(onReach) {
    this.#onReach = onReach;
    this.key = sessionStorage.getItem(KEY_NAME) ?? "";
  }

  /** Use an API key until the tab is closed; an empty one forgets it. */
  setKey(key) {
    this.key = key;
    if (key) sessionStorage.setItem(KEY_NAME, key);
    else sessionStorage.removeItem(KEY_NAME);
  }

  /** Send a request; raises Problem if there is no response, or one that is an error. */
  async fetch(path, options = {}) {
    const headers = new Headers(options.headers);
    if (this.key) headers.set("Authorization", `Bearer ${this.key}`);
    let response;
    try {
      response = await fetch(path, { cache: "no-store", credentials: "same-origin", ...options, headers });
    } catch (error) {
      if (options.signal?.aborted) throw error;
      this.#onReach(false);
      throw new Problem(0, OFFLINE, "There is no connection, or the service has stopped.");
    }
    this.#onReach(true);
    if (!response.ok) throw await toProblem(response);
    return response;
  }

  async json(path, options) {
    return this.#read(await this.fetch(path, options), "json", options);
  }

  async text(path, options) {
    return this.#read(await this.fetch(path, options), "text", options);
  }

  /**
   * Classify a file; returns the response body, the stages in milliseconds by name (Server-Timing), and the
   * time that the browser has waited.
   */
  async predict(content, type, choice, signal) {
    const startedAt = performance.now();
    const headers = { "Content-Type": imageType(type) };
    const options = { method: "POST", body: content, headers, signal };
    const response = await this.fetch(`predict${query(choice)}`, options);
    const body = await this.#read(response, "json", options);
    const browserMs = performance.now() - startedAt;
    return { body, stages: parseServerTiming(response.headers.get("Server-Timing") ?? ""), browserMs };
  }

  /** Explain the best class of a classified file; returns the image with the heat over it. */
  async explain(content, type, { model, version, predictions: [best] }, signal) {
    const headers = { "Content-Type": imageType(type), Accept: "image/png" };
    const options = { method: "POST", body: content, headers, signal };
    const path = `explain${query({ model, version }, { class_id: best.class_id })}`;
    return this.#read(await this.fetch(path, options), "blob", options);
  }

  /** Read a body. The connection can end within it. */
  async #read(response, kind, options) {
    try {
      return await response[kind]();
    } catch (error) {
      if (options?.signal?.aborted) throw error;
      if (error instanceof SyntaxError) throw new Problem(response.status, "The response is not JSON", "");
      this.#onReach(false);
      throw new Problem(0, OFFLINE, "The connection was closed within the response.");
    }
  }
}

/** The type of an image file; browsers do not know all formats. */
function imageType(type) {
  return type.startsWith("image/") ? type : "application/octet-stream";
}

/** The query that chooses a model and a version, and has other parameters; empty for the default. */
export function query(choice, others = {}) {
  const parameters = new URLSearchParams(others);
  if (choice?.model) parameters.set("model", choice.model);
  if (choice?.version) parameters.set("version", choice.version);
  const text = parameters.toString();
  return text ? `?${text}` : "";
}

async function toProblem(response) {
  const seconds = Number.parseFloat(response.headers.get("Retry-After") ?? "");
  const retryAfterS = Number.isFinite(seconds) ? seconds : null;
  let body = {};
  try {
    body = await response.json();
  } catch {
    // A proxy in front of the service may respond with HTML, or with nothing.
  }
  const title = typeof body.title === "string" ? body.title : `HTTP status ${response.status}`;
  const detail = body.detail ?? body.error;
  return new Problem(response.status, title, typeof detail === "string" ? detail : "", retryAfterS);
}

function parseServerTiming(header) {
  const matches = header.matchAll(/([\w-]+);dur=([\d.]+)/g);
  return Object.fromEntries([...matches].map(([, name, duration]) => [name, Number(duration)]));
}
