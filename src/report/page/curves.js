// The section of the curves: the bar, and the charts in groups.

const GROUPS = [
  ["Reward", (name) => /^(reward|frac_reward|frac_completions|rewards\/|dynamic_sampling\/)/.test(name)],
  ["Evaluation", (name) => name.startsWith("eval_")],
  ["Length of completions", (name) => name.startsWith("completions/")],
  ["Optimizer", (name) => ["grad_norm", "learning_rate", "epoch", "num_tokens"].includes(name)],
  ["Time and memory", (name) => name === "step_time" || name.startsWith("perf/")],
  ["Loss and policy", () => true],
];
const ORDER = ["Reward", "Evaluation", "Loss and policy", "Length of completions", "Optimizer", "Time and memory"];
const FIRST = ["reward", "eval_accuracy", "eval_reward", "eval_loss", "loss", "kl", "entropy", "completions/mean_length"];
const CLOSED = ["Time and memory"];

function buildCurves() {
  const names = [...new Set(RUNS.flatMap((run) => Object.keys(run.curves.series)))];
  const groups = new Map(ORDER.map((title) => [title, []]));
  for (const name of names) groups.get(GROUPS.find(([, holds]) => holds(name))[0]).push(name);
  const place = (name) => (FIRST.includes(name) ? FIRST.indexOf(name) : FIRST.length);
  section("curves").append(bar());
  if (names.length === 0) section("curves").append(el("p", { class: "empty" }, "The runs have logged no values yet."));
  for (const [title, members] of groups) {
    if (members.length === 0) continue;
    members.sort((a, b) => place(a) - place(b));
    section("curves").append(group(title, members));
  }
  listeners.push(eachFrame(() => charts.forEach((one) => { if (one.figure.offsetParent) one.draw(); })));
}

/** The one value that a metric has everywhere, or null. */
function constant(name) {
  const values = RUNS.flatMap((run) => run.curves.series[name]?.values ?? []).filter(isNumber);
  return values.every((value) => value === values[0]) && values.length > 1 ? values[0] : null;
}

/** Each metric with the first that has the same curves in every run, or null where that is itself. */
function twinsOf(names) {
  const firsts = new Map();
  return names.map((name) => {
    const curves = JSON.stringify(RUNS.map((run) => run.curves.series[name] ?? null));
    if (!firsts.has(curves)) firsts.set(curves, name);
    const first = firsts.get(curves);
    return [name, first === name ? null : first];
  });
}

function group(title, names) {
  const fixed = names.filter((name) => constant(name) !== null);
  const twins = twinsOf(names.filter((name) => !fixed.includes(name)));
  const figures = twins.filter(([, first]) => first === null).map(([name]) => chart(name).figure);
  const words = fixed.map((name) => `${name} = ${number(constant(name))}`).join(", ");
  const same = twins.filter(([, first]) => first !== null).map(([name, first]) => `${name} = ${first}`).join(", ");
  const details = el("details", { open: !CLOSED.includes(title), class: "group" },
    el("summary", {}, el("h3", {}, title)),
    el("div", { class: "charts" }, ...figures),
    fixed.length > 0 ? el("p", { class: "constant" }, `The same in every step: ${words}.`) : null,
    same ? el("p", { class: "constant" }, `The same curves: ${same}.`) : null);
  // What was chosen while it was closed.
  details.addEventListener("toggle", () => changed());
  return details;
}

function bar() {
  const boxes = RUNS.map((run, index) => {
    const box = el("input", { type: "checkbox", checked: true, onchange: (event) => {
      if (event.target.checked) chosen.hidden.delete(index);
      else chosen.hidden.add(index);
      changed();
    } });
    return el("label", { title: run.folder }, box, swatch(index), run.label);
  });
  const shown = el("output", {}, "0");
  const slider = el("input", { type: "range", min: 0, max: 0.99, step: 0.01, value: 0, oninput: (event) => {
    chosen.smoothing = Number(event.target.value);
    shown.value = chosen.smoothing.toFixed(2).replace(/\.?0+$/, "");
    changed();
  } });
  const has = (name) => RUNS.some((run) => run.curves.series[name]);
  const axes = [["step", "steps"], ...(has("num_tokens") ? [["tokens", "tokens"]] : []), ["time", "time"]];
  const axis = el("select", { onchange: (event) => { chosen.axis = event.target.value; changed(); } },
    ...axes.map(([value, word]) => el("option", { value }, word)));
  const log = el("input", { type: "checkbox", onchange: (event) => { chosen.log = event.target.checked; changed(); } });
  const filter = el("input", { type: "search", placeholder: "kl, length…", size: 12, oninput: (event) => {
    const words = event.target.value.toLowerCase().split(/[\s,]+/).filter(Boolean);
    for (const { name, figure } of charts) {
      figure.hidden = words.length > 0 && !words.some((word) => name.toLowerCase().includes(word));
    }
    for (const details of document.querySelectorAll("details.group")) {
      const some = [...details.querySelectorAll("figure")].some((figure) => !figure.hidden);
      details.hidden = words.length > 0 && !some;
      if (words.length > 0 && some) details.open = true;
    }
  } });
  return el("div", { class: "bar", role: "group", "aria-label": "How the curves are shown" },
    el("fieldset", { "aria-label": "Runs" }, ...boxes),
    el("label", {}, "Smoothing", slider, shown),
    el("label", {}, "Over", axis),
    el("label", {}, log, "Logarithmic"),
    el("label", {}, "Filter", filter));
}

buildCurves();
