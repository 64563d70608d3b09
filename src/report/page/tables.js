// The tables: runs beside each other, every metric, settings and their differences; and what is not on the page.

const figure = (run, name) => run.curves.figures[name];
const has = (name) => RUNS.some((run) => figure(run, name));
const at = ([step, value]) => [number(value), el("small", {}, ` @ ${number(step)}`)];

/** The columns of the table of runs, those that some run has a value for. */
const COLUMNS = [
  ["reward, final", "reward", (run) => [number(figure(run, "reward").final)]],
  ["reward, best", "reward", (run) => at(figure(run, "reward").high)],
  ["accuracy, before → after", "eval_accuracy", (run) => change(run, "eval_accuracy")],
  ["accuracy, best", "eval_accuracy", (run) => at(figure(run, "eval_accuracy").high)],
  ["validation loss, before → after", "eval_loss", (run) => change(run, "eval_loss")],
  ["loss, final", "loss", (run) => [number(figure(run, "loss").final)]],
  ["KL, final", "kl", (run) => [number(figure(run, "kl").final)]],
  ["entropy, final", "entropy", (run) => [number(figure(run, "entropy").final)]],
  ["length, final", "completions/mean_length", (run) => [number(figure(run, "completions/mean_length").final)]],
  ["tokens/s", "perf/tokens_per_sec", (run) => [number(Math.round(figure(run, "perf/tokens_per_sec").final))]],
];

function change(run, name) {
  const { first, last } = figure(run, name);
  return first[0] === 0 && last[0] > 0 ? [`${number(first[1])} → ${number(last[1])}`] : [number(last[1])];
}

function table(head, rows) {
  return el("div", { class: "scroll", tabindex: "0" }, el("table", {},
    el("thead", {}, el("tr", {}, ...head)), el("tbody", {}, ...rows.map((cells) => el("tr", {}, ...cells)))));
}

const runHead = (run, index) => el("th", { scope: "row", title: run.folder }, swatch(index), run.label);
const columnHead = (run, index) => el("th", { scope: "col" }, swatch(index), run.label);

function buildRuns() {
  // The loss of a policy gradient says little of how a run went.
  const columns = COLUMNS.filter(([, name]) => has(name) && !(name === "loss" && has("reward")));
  const head = ["run", "state", "steps", "time", ...columns.map(([title]) => title)];
  const rows = RUNS.map((run, index) => [
    runHead(run, index),
    el("td", {}, run.status),
    el("td", { class: "number" }, number(run.curves.steps.at(-1))),
    el("td", { class: "number" }, duration(run.curves.secs.findLast(isNumber))),
    ...columns.map(([, name, cells]) => el("td", { class: "number" }, ...(figure(run, name) ? cells(run) : ["–"]))),
  ]);
  section("runs").append(
    table(head.map((title, i) => el("th", { scope: "col", class: i < 2 ? null : "number" }, title)), rows),
    el("p", { class: "soft" }, "Final: the mean of the last 10 values. Best: the highest single value, with its step."),
    el("details", {}, el("summary", {}, "Every metric"), allMetrics()));
  const notes = RUNS.flatMap(notesOf);
  if (notes.length > 0) {
    section("runs").append(el("h3", {}, "What is not on this page"), el("ul", { class: "notes" }, ...notes.map((note) => el("li", {}, note))));
  }
}

function allMetrics() {
  const names = [...new Set(RUNS.flatMap((run) => Object.keys(run.curves.figures)))];
  const head = ["metric", "run", "first", "final", "lowest", "highest", "values"];
  const rows = names.flatMap((name) => RUNS.flatMap((run, index) => {
    const found = figure(run, name);
    if (!found) return [];
    const cell = (...content) => el("td", { class: "number" }, ...content);
    return [[
      el("th", { scope: "row", class: "mono" }, name), el("td", {}, swatch(index), run.label),
      cell(number(found.first[1])), cell(number(found.final)), cell(...at(found.low)), cell(...at(found.high)), cell(number(found.num_values)),
    ]];
  }));
  return table(head.map((title, i) => el("th", { scope: "col", class: i < 2 ? null : "number" }, title)), rows);
}

function notesOf(run) {
  const { curves, texts, problems, label } = run;
  const notes = [...problems];
  if (curves.thinning > 1) {
    notes.push(`curves show the mean of each ${curves.thinning} of ${number(curves.num_rows)} rows (metrics with few values show each); the tables count all`);
  }
  const numLeft = texts.total - texts.rows.length;
  if (numLeft > 0) notes.push(`${plural(numLeft, "completion")} of ${number(texts.total)}, those of steps in between; the distributions count all`);
  if (texts.num_cut > 0) notes.push(`the ends of ${plural(texts.num_cut, "very long completion")}`);
  if (!run.config) notes.push("settings: the folder has no run_config.toml");
  return notes.map((note) => `${label}: ${note}`);
}

function buildSettings() {
  const keys = [...new Set(RUNS.flatMap((run) => Object.keys(run.config ?? {})))];
  if (keys.length === 0) {
    section("settings").append(el("p", { class: "empty" }, "The runs left no settings."));
    return;
  }
  const values = (key) => RUNS.map((run) => run.config?.[key] ?? "");
  const known = RUNS.map((run, index) => index).filter((index) => RUNS[index].config);
  const differs = (key) => key !== "output_dir" && new Set(known.map((index) => values(key)[index])).size > 1;
  const rows = (list) => list.map((key) => [
    el("th", { scope: "row", class: "mono" }, key), ...values(key).map((value) => el("td", { class: "text mono" }, value)),
  ]);
  const head = [el("th", { scope: "col" }, "setting"), ...RUNS.map(columnHead)];
  if (known.length > 1) {
    const different = keys.filter(differs);
    section("settings").append(different.length > 0 ? table(head, rows(different))
      : el("p", { class: "empty" }, "The runs have the same settings."));
  }
  const copy = () => head.map((cell) => cell.cloneNode(true));
  section("settings").append(el("details", { open: known.length === 1 },
    el("summary", {}, `All ${keys.length} settings that were set or saved`), table(copy(), rows(keys))));
}

document.title = `${RUNS.map((run) => run.label).join(", ").slice(0, 80)} – candlewick report`;
document.getElementById("about").textContent = `${plural(RUNS.length, "run")}, written ${DATA.written} by candlewick ${DATA.version}`;
buildRuns();
buildSettings();
