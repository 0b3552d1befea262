/** Numbers as text, and small helpers for the document. Text is only ever set as text, never as HTML. */

export const byId = (id) => document.getElementById(id);

/** Create an element with a class and with text; both may be empty. */
export function element(tag, className = "", text = "") {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text) node.textContent = text;
  return node;
}

export const percent = (fraction) => `${(fraction * 100).toFixed(1)} %`;

/** Milliseconds, with more digits for shorter times. */
export function milliseconds(value) {
  if (value >= 1000) return `${(value / 1000).toFixed(value < 10_000 ? 2 : 1)} s`;
  return `${value.toFixed(value < 10 ? 1 : 0)} ms`;
}

export function bytes(value) {
  if (value < 1000) return `${value} B`;
  if (value < 1e6) return `${(value / 1e3).toFixed(0)} KB`;
  return `${Number((value / 1e6).toFixed(1))} MB`;
}

export const count = (value) => value.toLocaleString("en");

/** "1 image", "2 images". */
export const plural = (value, noun) => `${count(value)} ${noun}${value === 1 ? "" : "s"}`;
