// The section of the completions: search, filters, order, and as many as one can read.

const PAGE = 24;
const LONG = 700;
// How a row is stored.
const [STEP, PROMPT, COMPLETION, REWARD, ADVANTAGE, FINISH, SCORES] = [0, 1, 2, 3, 4, 5, 6];

const ORDERS = {
  "last step first": (a, b) => b.row[STEP] - a.row[STEP],
  "first step first": (a, b) => a.row[STEP] - b.row[STEP],
  "highest reward": by((row) => row[REWARD], -1),
  "lowest reward": by((row) => row[REWARD], 1),
  "largest advantage": by((row) => row[ADVANTAGE], -1),
  "smallest advantage": by((row) => row[ADVANTAGE], 1),
  longest: by((row) => row[COMPLETION].length, -1),
  shortest: by((row) => row[COMPLETION].length, 1),
};

/** Rows without the value come last. */
function by(value, sign) {
  return (a, b) => {
    const [x, y] = [value(a.row), value(b.row)];
    if (!isNumber(x) || !isNumber(y)) return Number(isNumber(y)) - Number(isNumber(x));
    return sign * (x - y);
  };
}

/** Characters that cannot be seen become pictures of themselves. */
const seen = (text) => text.replace(/[\u0000-\u0008\u000b-\u001f]/g, (c) => String.fromCharCode(0x2400 + c.charCodeAt(0)));

/** The text with what was searched for marked. */
function marked(text, word) {
  const shown = seen(text);
  if (!word) return [shown];
  const lower = shown.toLowerCase();
  // Lower case may be longer than the text; then its places are not those of the text.
  if (lower.length !== shown.length) return [shown];
  const parts = [];
  let end = 0;
  for (let at = lower.indexOf(word); at >= 0; at = lower.indexOf(word, at + word.length)) {
    parts.push(shown.slice(end, at), el("mark", {}, shown.slice(at, at + word.length)));
    end = at + word.length;
  }
  return [...parts, shown.slice(end)];
}

const body = (kind, text, word) => el("div", { class: `body ${kind}`, tabindex: text.length > LONG ? "0" : null }, ...marked(text, word));

/** A prompt, to which its completions are added. */
function cardOf({ run, row }, word) {
  const { label, texts } = RUNS[run];
  return el("article", { class: "card", style: `border-left-color:${color(run)}` },
    el("header", {}, el("b", {}, label), el("span", {}, "step ", el("b", {}, number(row[STEP])))),
    body("prompt", texts.prompts[row[PROMPT]], word));
}

/** A completion with what it got. */
function completionOf({ run, row }, word) {
  const { parts } = RUNS[run].texts;
  const facts = [["reward", number(row[REWARD])], ["advantage", number(row[ADVANTAGE])]];
  // One part that is the reward says nothing more.
  const scores = row[SCORES].filter(isNumber).length === 1 && row[SCORES].includes(row[REWARD]) ? [] : row[SCORES];
  const end = row[FINISH] === "length" ? "cut by the length limit" : "";
  return el("div", { class: "completion-row" }, body("completion", row[COMPLETION], word),
    el("div", { class: "facts" }, ...facts.map(([name, value]) => el("span", {}, `${name} `, el("b", {}, value))),
      ...scores.map((score, at) => el("span", {}, `${parts[at]} `, el("b", {}, number(score)))), end));
}

function buildTexts() {
  const all = RUNS.flatMap(({ texts }, run) => texts.rows.map((row) => ({ run, row })));
  if (all.length === 0) {
    section("texts").append(el("p", { class: "empty" }, "There are no completions to read."));
    return;
  }
  const want = { run: "", step: "", bin: "", finish: "", word: "", order: Object.keys(ORDERS)[0] };
  const list = el("div", {});
  const count = el("p", { role: "status", class: "soft" });
  const more = el("button", { type: "button" }, "Show more");
  let found = [];
  let numShown = 0;

  function binOf(reward) {
    if (!isNumber(reward)) return "none";
    const at = DATA.bins.findLastIndex(([low]) => low <= reward * (1 + 1e-12));
    return String(Math.max(at, 0));
  }

  function search() {
    const word = want.word.toLowerCase();
    const holds = ({ run, row }) =>
      (want.run === "" || run === Number(want.run)) &&
      (want.step === "" || row[STEP] === Number(want.step)) &&
      (want.bin === "" || binOf(row[REWARD]) === want.bin) &&
      (want.finish === "" || row[FINISH] === want.finish) &&
      (word === "" || row[COMPLETION].toLowerCase().includes(word) || RUNS[run].texts.prompts[row[PROMPT]].toLowerCase().includes(word));
    found = all.filter(holds).sort(ORDERS[want.order]);
    numShown = 0;
    list.replaceChildren();
    add();
    count.textContent = `${number(found.length)} of ${plural(all.length, "completion")}`;
  }

  function add() {
    const next = found.slice(numShown, numShown + PAGE);
    const word = want.word.toLowerCase();
    next.forEach((item, i) => {
      const before = found[numShown + i - 1];
      const isSame = before && before.run === item.run && before.row[STEP] === item.row[STEP] && before.row[PROMPT] === item.row[PROMPT];
      if (!isSame) list.append(cardOf(item, word));
      list.lastChild.append(completionOf(item, word));
    });
    numShown += next.length;
    more.hidden = numShown >= found.length;
    return next.length;
  }

  more.addEventListener("click", () => {
    const rows = list.getElementsByClassName("completion-row");
    const first = rows.length;
    if (add() > 0) {
      // Where reading goes on.
      rows[first].setAttribute("tabindex", "-1");
      rows[first].focus({ preventScroll: true });
    }
  });

  const choice = (word, key, options) => {
    const select = el("select", { onchange: (event) => { want[key] = event.target.value; search(); } },
      ...options.map(([value, text]) => el("option", { value }, text)));
    return el("label", {}, word, select);
  };
  const steps = [...new Set(all.map(({ row }) => row[STEP]))].sort((a, b) => a - b);
  const bins = DATA.bins.map((bin, at) => [String(at), binLabel(bin)]).reverse();
  const some = (value) => all.some(({ row }) => value(row));
  const wait = eachFrame(search);
  section("texts").append(
    el("div", { class: "bar", role: "group", "aria-label": "Which completions are shown" },
      el("label", {}, "Search", el("input", { type: "search", size: 18, oninput: (event) => { want.word = event.target.value; wait(); } })),
      RUNS.length > 1 ? choice("Run", "run", [["", "all"], ...RUNS.map((run, at) => [String(at), run.label])]) : null,
      choice("Step", "step", [["", "all"], ...steps.map((step) => [String(step), number(step)])]),
      choice("Reward", "bin", [["", "any"], ...bins, ...(some((row) => !isNumber(row[REWARD])) ? [["none", "none"]] : [])]),
      some((row) => row[FINISH] === "length") && some((row) => row[FINISH] === "stop")
        ? choice("Ended by", "finish", [["", "any"], ["stop", "itself"], ["length", "the length limit"]]) : null,
      choice("Order", "order", Object.keys(ORDERS).map((name) => [name, name]))),
    count, list, el("div", { class: "more" }, more));
  search();
}

buildTexts();
