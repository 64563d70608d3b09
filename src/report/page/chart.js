// One chart: a metric of all runs over the steps, with axes, values at the pointer, and arrow keys.

const MARGIN = { left: 54, right: 10, top: 8, bottom: 22 };
const FEW_POINTS = 40;
const charts = [];

/** About `count` round numbers from `low` to `high`. */
function ticks(low, high, count) {
  const span = high - low || 1;
  const rough = span / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => span / size <= count) ?? 10 * power;
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i += 1) found.push(i * step);
  return found.map((value) => Number(value.toPrecision(12)));
}

/** Powers of ten, or round numbers where there are not two of them. */
function logTicks(low, high) {
  const powers = [];
  for (let i = Math.ceil(low - 1e-9); i <= high + 1e-9; i += 1) powers.push(i);
  const every = Math.ceil(powers.length / 6);
  return powers.length > 1 ? powers.filter((_, i) => i % every === 0) : ticks(low, high, 4);
}

/** Exponential mean of the values so far; early ones are not drawn to zero. */
function smoothed(values, weight) {
  let mean = 0;
  let mass = 0;
  return values.map((value) => {
    mean = weight * mean + (1 - weight) * value;
    mass = weight * mass + (1 - weight);
    return mean / mass;
  });
}

/** Steps, values and places on the axis of a metric in a run; null where it has none. */
function pointsOf(run, name) {
  const { steps, secs, series } = RUNS[run].curves;
  const curve = series[name];
  if (!curve) return null;
  const at = curve.steps ?? steps;
  const keep = at.map((_, i) => i).filter((i) => isNumber(curve.values[i]));
  const place = placeOf(run);
  const found = keep.map((i) => ({ step: at[i], value: curve.values[i], x: place(at[i]) })).filter((point) => isNumber(point.x));
  return found.length > 0 ? found : null;

  /** The place of a step: itself, or what the nearest row from it on says. */
  function placeOf(run) {
    if (chosen.axis === "step") return (step) => step;
    const tokens = RUNS[run].curves.series.num_tokens?.values;
    const list = chosen.axis === "time" ? secs : tokens;
    return (step) => {
      let low = 0;
      let high = steps.length - 1;
      while (low < high) {
        const middle = (low + high) >> 1;
        if (steps[middle] < step) low = middle + 1;
        else high = middle;
      }
      return chosen.axis === "tokens" && !isNumber(list?.[low]) && step === 0 ? 0 : list?.[low];
    };
  }
}

const axisLabel = (x) => (chosen.axis === "time" ? duration(x) : number(x));
const axisWord = { step: "step", tokens: "tokens", time: "after" };

function chart(name) {
  const picture = svg("svg", { role: "img" });
  const enlarge = el("button", { type: "button", "aria-pressed": "false", title: "Larger or smaller", onclick: toggle }, "⤢");
  enlarge.setAttribute("aria-label", `Enlarge ${name}`);
  const figure = el("figure", { class: "chart", tabindex: "0", "data-name": name },
    el("figcaption", {}, el("span", { title: name }, name), enlarge), picture);
  const self = { name, figure, draw, cross };
  let curves = [];
  let scale = null;
  let overlay = null;
  let cursor = null;

  function toggle() {
    const isWide = figure.classList.toggle("wide");
    enlarge.setAttribute("aria-pressed", String(isWide));
  }

  function read() {
    curves = visible().map((run) => ({ run, points: pointsOf(run, name) })).filter((curve) => curve.points);
    for (const curve of curves) {
      if (chosen.log) curve.points = curve.points.filter((point) => point.value > 0);
      const values = curve.points.map((point) => (chosen.log ? Math.log10(point.value) : point.value));
      curve.raw = values;
      curve.smooth = chosen.smoothing > 0 && curve.points.length > 3 ? smoothed(values, chosen.smoothing) : null;
    }
    curves = curves.filter((curve) => curve.points.length > 0);
  }

  function draw() {
    read();
    const width = picture.clientWidth;
    const height = picture.clientHeight;
    if (width === 0) return;
    const parts = [];
    overlay = svg("g", {});
    if (curves.length === 0) {
      scale = null;
      const why = chosen.log ? "no value above 0" : "no values in the runs shown";
      parts.push(svg("text", { x: width / 2, y: height / 2, "text-anchor": "middle" }, why));
    } else {
      scale = scales(width, height);
      parts.push(...axes(width, height));
      for (const curve of curves) parts.push(...lines(curve));
    }
    picture.setAttribute("viewBox", `0 0 ${width} ${height}`);
    picture.setAttribute("aria-label", summary());
    picture.replaceChildren(...parts, overlay);
  }

  function scales(width, height) {
    const xs = curves.flatMap((curve) => [curve.points[0].x, curve.points.at(-1).x]);
    let [x0, x1] = [Math.min(...xs), Math.max(...xs)];
    let y0 = Infinity;
    let y1 = -Infinity;
    for (const { raw } of curves) for (const value of raw) { y0 = Math.min(y0, value); y1 = Math.max(y1, value); }
    if (x0 === x1) { x0 -= 0.5; x1 += 0.5; }
    const pad = y0 === y1 ? Math.abs(y0) * 0.1 || 0.5 : (y1 - y0) * 0.05;
    y0 -= pad;
    y1 += pad;
    const inner = [width - MARGIN.left - MARGIN.right, height - MARGIN.top - MARGIN.bottom];
    return {
      x0, x1, y0, y1,
      x: (value) => MARGIN.left + ((value - x0) / (x1 - x0)) * inner[0],
      y: (value) => MARGIN.top + (1 - (value - y0) / (y1 - y0)) * inner[1],
      back: (px) => x0 + ((px - MARGIN.left) / inner[0]) * (x1 - x0),
    };
  }

  function axes(width, height) {
    const bottom = height - MARGIN.bottom;
    const yTicks = chosen.log ? logTicks(scale.y0, scale.y1) : ticks(scale.y0, scale.y1, height > 300 ? 8 : 4);
    const xTicks = ticks(scale.x0, scale.x1, Math.max(2, Math.floor(width / 90)));
    return [
      ...yTicks.flatMap((value) => [
        svg("line", { class: "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: scale.y(value), y2: scale.y(value) }),
        svg("text", { x: MARGIN.left - 6, y: scale.y(value) + 4, "text-anchor": "end" }, number(chosen.log ? 10 ** value : value)),
      ]),
      svg("line", { class: "axis", x1: MARGIN.left, x2: width - MARGIN.right, y1: bottom, y2: bottom }),
      ...xTicks.map((value) => {
        const x = scale.x(value);
        const anchor = x > width - 30 ? "end" : "middle";
        return svg("text", { x: anchor === "end" ? width - 2 : x, y: height - 6, "text-anchor": anchor }, axisLabel(value));
      }),
    ];
  }

  function lines(curve) {
    const path = (values, attributes) => {
      const points = values.map((value, i) => `${scale.x(curve.points[i].x).toFixed(1)},${scale.y(value).toFixed(1)}`);
      return svg("path", { d: `M${points.join("L")}`, stroke: color(curve.run), "stroke-dasharray": dashes(curve.run) || null, ...attributes });
    };
    const parts = curve.smooth ? [path(curve.raw, { class: "raw" }), path(curve.smooth)] : [path(curve.raw)];
    if (curve.points.length <= FEW_POINTS) {
      curve.raw.forEach((value, i) => parts.push(dot(curve.run, curve.points[i].x, value, 2.2)));
    }
    return parts;
  }

  const dot = (run, x, value, r) => svg("circle", { cx: scale.x(x), cy: scale.y(value), r, fill: color(run) });

  function summary() {
    const parts = curves.map(({ run, points }) => `${RUNS[run].label} from ${number(points[0].value)} to ${number(points.at(-1).value)}`);
    return `${name}: ${parts.join("; ") || "no values"}`;
  }

  /** The point of each curve that is nearest to a place, within the reach of its ends. */
  function nearest(place) {
    return curves.map((curve) => {
      let low = 0;
      let high = curve.points.length - 1;
      while (high - low > 1) {
        const middle = (low + high) >> 1;
        if (curve.points[middle].x < place) low = middle;
        else high = middle;
      }
      const index = Math.abs(curve.points[low].x - place) <= Math.abs(curve.points[high].x - place) ? low : high;
      return { curve, index, point: curve.points[index] };
    });
  }

  /** Draws the line at a place; the chart at the pointer has dots, too. */
  function cross(place, withDots) {
    if (!overlay) return;
    if (!scale || place === null || place < scale.x0 || place > scale.x1) return overlay.replaceChildren();
    const x = scale.x(place);
    const parts = [svg("line", { class: "cross", x1: x, x2: x, y1: MARGIN.top, y2: picture.clientHeight - MARGIN.bottom })];
    if (withDots) nearest(place).forEach(({ curve, index, point }) => parts.push(dot(curve.run, point.x, (curve.smooth ?? curve.raw)[index], 3.6)));
    return overlay.replaceChildren(...parts);
  }

  /** Shows the values at a place on the axis. */
  function show(place, clientX, clientY) {
    const found = nearest(place);
    if (found.length === 0) return;
    const at = found.map(({ point }) => point.x).reduce((a, b) => (Math.abs(b - place) < Math.abs(a - place) ? b : a));
    cursor = at;
    const rows = found.sort((a, b) => b.point.value - a.point.value).map(({ curve, index, point }) => {
      const own = point.x === at ? "" : ` @ ${axisLabel(point.x)}`;
      const mean = curve.smooth ? ` (${number(chosen.log ? 10 ** curve.smooth[index] : curve.smooth[index])})` : "";
      return [curve.run, RUNS[curve.run].label, `${number(point.value)}${mean}${own}`];
    });
    const step = chosen.axis === "step" ? "" : `, step ${number(found.find(({ point }) => point.x === at).point.step)}`;
    showTip(`${axisWord[chosen.axis]} ${axisLabel(at)}${step}`, rows, clientX, clientY);
    charts.forEach((other) => other.cross(at, other === self));
  }

  function leave() {
    cursor = null;
    hideTip();
    charts.forEach((other) => other.cross(null));
  }

  picture.addEventListener("pointermove", (event) => {
    if (!scale) return;
    show(scale.back(event.clientX - picture.getBoundingClientRect().left), event.clientX, event.clientY);
  });
  picture.addEventListener("pointerleave", leave);
  figure.addEventListener("blur", leave);
  figure.addEventListener("keydown", (event) => {
    if (!scale || event.target !== figure) return;
    const places = [...new Set(curves.flatMap((curve) => curve.points.map((point) => point.x)))].sort((a, b) => a - b);
    const now = cursor === null ? -1 : places.findIndex((place) => place >= cursor);
    const next = {
      ArrowRight: Math.min(now + 1, places.length - 1), ArrowLeft: now < 0 ? places.length - 1 : Math.max(now - 1, 0),
      Home: 0, End: places.length - 1,
    }[event.key];
    if (event.key === "Escape") return leave();
    if (next === undefined) return undefined;
    event.preventDefault();
    const box = picture.getBoundingClientRect();
    return show(places[next], box.left + scale.x(places[next]), box.top + MARGIN.top);
  });
  drawAtWidth(picture, draw);
  charts.push(self);
  return self;
}
