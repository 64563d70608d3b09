// The section of the distributions: for each run a heat map of rewards and one of answers, steps from left to right.

const ROW = 19;
const MAP = { left: 104, right: 8, top: 4, bottom: 22 };

/** Small shares must be seen, too: the colour grows with the root of the share. */
const strength = (share) => Math.sqrt(share);

const binLabel = ([low, high]) => (low === high ? number(low) : `${number(low)} to ${number(high)}`);

/** A heat map; `counts[column][row]`, rows from top to bottom. */
function heatMap(run, word, labels, counts) {
  const height = MAP.top + MAP.bottom + ROW * labels.length;
  const picture = svg("svg", { role: "img", height, style: `height:${height}px` });
  const figure = el("figure", { tabindex: "0", class: "map" },
    el("figcaption", {}, swatch(run), el("span", {}, RUNS[run].label)), picture);
  const totals = counts.map((column) => column.reduce((a, b) => a + b, 0));
  let cursor = null;
  let place = null;

  function draw() {
    const width = picture.clientWidth;
    const cell = (width - MAP.left - MAP.right) / counts.length;
    place = { cell, x: (column) => MAP.left + column * cell, y: (row) => MAP.top + row * ROW };
    const parts = labels.map((label, row) => {
      const short = label.length > 15 ? `${label.slice(0, 14)}…` : label;
      return svg("text", { x: MAP.left - 6, y: place.y(row) + 13.5, "text-anchor": "end" }, short, svg("title", {}, label));
    });
    counts.forEach((column, at) => column.forEach((count, row) => {
      if (count === 0) return;
      const opacity = strength(count / totals[at]).toFixed(3);
      parts.push(svg("rect", { class: "cell", x: place.x(at).toFixed(1), y: place.y(row), width: (cell + 0.2).toFixed(1), height: ROW, "fill-opacity": opacity }));
    }));
    parts.push(svg("rect", { class: "frame", x: MAP.left, y: MAP.top, width: cell * counts.length, height: ROW * labels.length }));
    const every = Math.ceil(counts.length / Math.max(2, Math.floor(width / 90)));
    counts.forEach((_, at) => {
      if (at % every === 0) parts.push(svg("text", { x: place.x(at) + cell / 2, y: height - 6, "text-anchor": "middle" }, number(DATA.ranges[at][0])));
    });
    picture.setAttribute("viewBox", `0 0 ${width} ${height}`);
    picture.setAttribute("aria-label", `Each ${word} of ${RUNS[run].label} by step; arrow keys read the cells`);
    picture.replaceChildren(...parts);
  }

  function show(column, row, x, y) {
    const [first, last] = DATA.ranges[column];
    const steps = first === last ? `step ${number(first)}` : `steps ${number(first)} to ${number(last)}`;
    const count = counts[column][row];
    const share = totals[column] > 0 ? ` (${percent(count / totals[column])})` : "";
    showTip(steps, [`${word}: ${labels[row]}`, `${number(count)} of ${plural(totals[column], "completion")}${share}`], x, y);
    picture.querySelector(".cursor")?.remove();
    picture.append(svg("rect", { class: "cursor", x: place.x(column), y: place.y(row), width: place.cell, height: ROW }));
  }

  function leave() {
    cursor = null;
    hideTip();
    picture.querySelector(".cursor")?.remove();
  }

  picture.addEventListener("pointermove", (event) => {
    const box = picture.getBoundingClientRect();
    const column = Math.floor((event.clientX - box.left - MAP.left) / place.cell);
    const row = Math.floor((event.clientY - box.top - MAP.top) / ROW);
    if (column >= 0 && column < counts.length && row >= 0 && row < labels.length) show(column, row, event.clientX, event.clientY);
    else leave();
  });
  picture.addEventListener("pointerleave", leave);
  figure.addEventListener("blur", leave);
  figure.addEventListener("keydown", (event) => {
    const move = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] }[event.key];
    if (event.key === "Escape") return leave();
    if (!move || !place) return undefined;
    event.preventDefault();
    const limit = (value, size) => Math.max(0, Math.min(size - 1, value));
    cursor = cursor ? [limit(cursor[0] + move[0], counts.length), limit(cursor[1] + move[1], labels.length)] : [0, 0];
    const box = picture.getBoundingClientRect();
    return show(...cursor, box.left + place.x(cursor[0]), box.top + place.y(cursor[1]) + ROW);
  });
  drawAtWidth(picture, draw);
  return figure;
}

/** Rows of which at least one count is not 0 come last as `rest` says; the others always. */
function mapOf(run, word, counts, labels, order, rest) {
  const rows = [...order, ...rest.filter((row) => counts.some((column) => column[row] > 0))];
  return heatMap(run, word, rows.map((row) => labels[row]), counts.map((column) => rows.map((row) => column[row])));
}

/** How many of all completions have an answer that has a row of its own. */
function shareOfCommonAnswers() {
  const columns = RUNS.flatMap((run) => run.distribution.answers);
  const sum = (counts) => counts.reduce((a, b) => a + b, 0);
  const total = sum(columns.map(sum));
  return total > 0 ? sum(columns.map((column) => sum(column.slice(0, DATA.answers.length)))) / total : 0;
}

function buildMaps() {
  const withTexts = RUNS.map((_, run) => run).filter((run) => RUNS[run].texts.total > 0);
  if (withTexts.length === 0) {
    section("maps").append(el("p", { class: "empty" }, "No completions were logged (`log_completions`, or a run that samples none)."));
    return;
  }
  const numBins = DATA.bins.length;
  const numAnswers = DATA.answers.length;
  const figures = [];
  const grid = (map) => el("div", { class: "maps" }, ...withTexts.map((run) => {
    const figure = map(run);
    figures.push([run, figure]);
    return figure;
  }));
  const rewards = (run) => mapOf(run, "reward", RUNS[run].distribution.rewards, [...DATA.bins.map(binLabel), "none"],
    DATA.bins.map((_, row) => numBins - 1 - row), [numBins]);
  const answers = (run) => mapOf(run, "answer", RUNS[run].distribution.answers, [...DATA.answers, "another", "none found"],
    DATA.answers.map((_, row) => row), [numAnswers, numAnswers + 1]);
  const scale = el("span", { class: "scale" }, "0 %",
    ...[0, 0.05, 0.25, 0.5, 1].map((share) => el("i", { style: `--share:${strength(share)}`, title: percent(share) })), "100 %");
  section("maps").append(el("p", { class: "soft" }, "Share of a step's logged completions: ", scale));
  if (numBins > 0) section("maps").append(el("details", { open: true }, el("summary", {}, el("h3", {}, "Rewards")), grid(rewards)));
  if (numAnswers > 0) {
    const share = shareOfCommonAnswers();
    section("maps").append(el("details", { open: share > 0.3 },
      el("summary", {}, el("h3", {}, "Answers"), el("span", { class: "soft" },
        ` the integers that completions end in, or whole texts where the grader compares texts; the ${plural(numAnswers, "most common answer")}: ${percent(share)} of all`)),
      grid(answers)));
  }
  listeners.push(() => figures.forEach(([run, figure]) => { figure.hidden = chosen.hidden.has(run); }));
}

buildMaps();
