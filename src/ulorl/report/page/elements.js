// Elements, numbers and colours. All text of the page goes through text nodes: outputs of a model are never markup.

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

function option(value, label, chosen) {
  return element("option", { value, selected: value === chosen }, label);
}

function labelled(label, control, extra = {}) {
  return element("label", extra, element("span", {}, label), control);
}

// A number as it is read: percent, a count with separators, or 4 significant digits.
function formatted(value, unit) {
  if (value === null || value === undefined) return "–";
  if (unit === "percent") return `${Number((100 * value).toPrecision(value > 0.1 ? 3 : 2))}%`;
  if (Number.isInteger(value)) return value.toLocaleString("en-US");
  if (unit === "count") return value.toLocaleString("en-US", { maximumFractionDigits: Math.abs(value) < 100 ? 1 : 0 });
  if (Math.abs(value) >= 1e-3 && Math.abs(value) < 1e6) return String(Number(value.toPrecision(4)));
  return value.toExponential(2);
}

function plural(number, word) {
  return `${number.toLocaleString("en-US")} ${word}${number === 1 ? "" : "s"}`;
}

// The colours of the style sheet, which differ in a light and a dark theme, and in print.
function color(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

const SERIES = 8; // colours of curves
const HUES = 6; // colours of versions; version v has colour v mod 6
const DASHES = ["solid", "dashed", "dotted", [8, 3, 2, 3], [2, 2]];

const seriesColor = (place) => color(`s${place % SERIES}`);
const versionColor = (version) => (version === null ? color("grid") : color(`bar${version % HUES}`));
