/** A small line chart of one series, as SVG. */

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 280;
const HEIGHT = 64;
const TOP = 14; // room for the label of the maximum

/** Draw the latest values at the right, in a chart with room for `capacity` values. */
export function drawChart(parent, values, capacity, label) {
  const max = Math.max(1, ...values);
  const x = (index) => WIDTH - ((values.length - 1 - index) * WIDTH) / (capacity - 1);
  const y = (value) => HEIGHT - 1 - (value / max) * (HEIGHT - TOP - 2);
  const points = values.map((value, index) => `${x(index).toFixed(1)},${y(value).toFixed(1)}`);
  const svg = create("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": label });
  svg.append(create("line", { class: "base", x1: 0, x2: WIDTH, y1: HEIGHT - 0.5, y2: HEIGHT - 0.5 }));
  if (points.length > 1) {
    const area = [`${x(0).toFixed(1)},${HEIGHT}`, ...points, `${WIDTH},${HEIGHT}`];
    svg.append(create("polygon", { class: "area", points: area.join(" ") }));
    svg.append(create("polyline", { class: "line", points: points.join(" ") }));
  }
  const text = create("text", { class: "max", x: 0, y: 9 });
  text.textContent = `max ${max.toFixed(max < 10 ? 1 : 0)}/s`;
  svg.append(text);
  parent.replaceChildren(svg);
}

function create(name, attributes) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  return node;
}
