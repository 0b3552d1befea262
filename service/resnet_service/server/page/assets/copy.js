/** Copying text: the JSON of a response, and the same request as a curl command. */

import { query } from "./api.js";

/** Return a curl command for a POSIX shell that sends the file of this name. The key itself is left out. */
export function curlCommand(name, choice, hasKey) {
  const url = new URL(`predict${query(choice)}`, document.baseURI).href;
  // curl separates the parts of a form field with commas and semicolons, except in double quotes.
  const path = /[,;"\\]/.test(name) ? `"${name.replace(/["\\]/g, "\\$&")}"` : name;
  const key = hasKey ? '-H "Authorization: Bearer $API_KEY" ' : "";
  return `curl ${key}-F ${shellQuote(`file=@${path}`)} ${shellQuote(url)}`;
}

function shellQuote(text) {
  return /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replace(/'/g, "'\\''")}'`;
}

/** Copy text to the clipboard; over plain HTTP, browsers have the old command only. Returns the success. */
export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return copyWithCommand(text); // no permission, or `clipboard` is undefined because the page is not secure
  }
}

function copyWithCommand(text) {
  const focused = document.activeElement;
  const area = document.createElement("textarea");
  area.value = text;
  area.className = "visually-hidden";
  document.body.append(area);
  area.select();
  const success = document.execCommand("copy");
  area.remove();
  focused?.focus();
  return success;
}
