// What the parts of the page share: the data, elements, numbers, colours, the tip at the pointer, the choices of the bar.

const DATA = JSON.parse(document.getElementById("data").textContent);
const RUNS = DATA.runs;
const NUM_COLORS = 8;
const SVG = "http://www.w3.org/2000/svg";

// The choices of the bar over the curves; whoever draws asks to be told of changes.
const chosen = { hidden: new Set(), smoothing: 0, axis: "step", log: false };
const listeners = [];
const changed = () => listeners.forEach((listener) => listener());

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== undefined && value !== null && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  // Text is added as text, never as marks of the page.
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

const el = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
const svg = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);
const section = (id) => document.getElementById(id);

const isNumber = (value) => typeof value === "number" && Number.isFinite(value);

/** A value with four digits; whole numbers up to a million as they are. */
function number(value) {
  if (!isNumber(value)) return "–";
  if (Number.isInteger(value) && Math.abs(value) < 1e7) return value.toLocaleString("en-US");
  const size = Math.abs(value);
  if (size >= 1e6 || size < 1e-3) return value.toExponential(2).replace("e+", "e").replace(/\.?0+e/, "e");
  return String(Number(value.toPrecision(4)));
}

const percent = (share) => (share > 0 && share < 0.01 ? "<1 %" : `${Math.round(100 * share)} %`);

function duration(secs) {
  if (!isNumber(secs)) return "–";
  const s = Math.round(secs);
  const two = (n) => String(n).padStart(2, "0");
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${two(s % 60)} s`;
  return `${Math.floor(s / 3600)} h ${two(Math.floor(s / 60) % 60)} min`;
}

const plural = (n, word) => `${number(n)} ${word}${n === 1 ? "" : "s"}`;
const color = (run) => `var(--run-${run % NUM_COLORS})`;
/** After the last colour they begin again, as dashes. */
const dashes = (run) => ["", "7 3", "2 3", "9 3 2 3"][Math.floor(run / NUM_COLORS) % 4];
const swatch = (run) =>
  el("span", { class: "swatch", "aria-hidden": "true", style: `border-color:${color(run)};${dashes(run) && "border-style:dashed"}` });
const visible = () => RUNS.map((_, run) => run).filter((run) => !chosen.hidden.has(run));

const tip = document.getElementById("tip");

/** Shows lines at a point of the window, within it. A line is a text, or [run, name, value]. */
function showTip(title, lines, x, y) {
  const rows = lines.map((line) =>
    typeof line === "string" ? el("div", {}, line) : el("div", {}, el("span", {}, swatch(line[0]), line[1]), el("span", {}, line[2])),
  );
  tip.replaceChildren(el("b", {}, title), ...rows);
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  const left = x + 16 + box.width > innerWidth ? x - 16 - box.width : x + 16;
  const top = Math.min(y + 12, innerHeight - box.height - 6);
  tip.style.transform = `translate(${Math.max(4, left)}px, ${Math.max(4, top)}px)`;
}

const hideTip = () => { tip.hidden = true; };
addEventListener("scroll", hideTip, { passive: true });
addEventListener("keydown", (event) => { if (event.key === "Escape") hideTip(); });

/** Calls `draw` when the element has a width, and whenever that changes. */
function drawAtWidth(node, draw) {
  new ResizeObserver(() => { if (node.clientWidth > 0) draw(); }).observe(node);
}

/** Calls at most once a frame. */
function eachFrame(work) {
  let waits = false;
  return () => {
    if (waits) return;
    waits = true;
    requestAnimationFrame(() => { waits = false; work(); });
  };
}
