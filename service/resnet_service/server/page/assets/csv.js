/** Results as CSV (RFC 4180), safe to open in a spreadsheet. */

const TOP_K = 5;

const COLUMNS = [
  ["file", (item) => item.name],
  ["bytes", (item) => item.file.size],
  ["state", (item) => item.state],
  ...Array.from({ length: TOP_K }, (_, rank) => [
    [`label_${rank + 1}`, (item) => item.body?.predictions[rank]?.label],
    [`probability_${rank + 1}`, (item) => item.body?.predictions[rank]?.probability],
  ]).flat(),
  ["model", (item) => item.body?.model],
  ["version", (item) => item.body?.version],
  ["device", (item) => item.body?.device],
  ...["decode", "queue", "device", "total"].map((stage) => [
    `${stage}_ms`,
    (item) => item.body?.timing_ms[stage],
  ]),
  ["browser_ms", (item) => item.browserMs && Number(item.browserMs.toFixed(1))],
  ["error", (item) => item.problem?.message],
];

/** Return the items as CSV text; it starts with a byte order mark, without which Excel does not read UTF-8. */
export function toCsv(items) {
  const rows = items.map((item) => COLUMNS.map(([, value]) => value(item)));
  const lines = [COLUMNS.map(([name]) => name), ...rows].map((cells) => cells.map(cell).join(","));
  return `\ufeff${lines.join("\r\n")}\r\n`;
}

function cell(value) {
  if (value === undefined || value === null) return "";
  if (typeof value === "number") return String(value);
  // A spreadsheet would calculate what begins like a formula, also from a file name. Spaces before do not help.
  const text = /^\s*[=+\-@|\t\r＝＋－＠]/.test(value) ? `'${value}` : value;
  return `"${text.replace(/"/g, '""')}"`;
}

/** Offer a text as a file to save. */
export function saveText(text, name) {
  const url = URL.createObjectURL(new Blob([text], { type: "text/csv;charset=utf-8" }));
  const link = document.createElement("a");
  link.href = url;
  link.download = name;
  link.click();
  URL.revokeObjectURL(url);
}
