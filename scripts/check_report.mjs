// Opens a page of `candlewick report` in a browser and uses it: pointer, keys, search, filters, sizes, colours.
//
//     npm install puppeteer-core@24.43.1 --prefix /tmp/browser && NODE_PATH=/tmp/browser/node_modules \
//         node scripts/check_report.mjs target/release/candlewick [CHROMIUM [FOLDER_FOR_PICTURES]]
//
// It makes three runs out of nothing: one with hostile texts, one that was killed, one of 1,000 steps. Exit code 0 when
// everything holds, 1 otherwise.

import { execFileSync } from "node:child_process";
import { mkdirSync, mkdtempSync, statSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";

const puppeteer = createRequire(process.env.NODE_PATH + "/")("puppeteer-core");
const [binary, chromium = "/usr/bin/chromium", pictures] = process.argv.slice(2);
const place = mkdtempSync(join(tmpdir(), "report-"));
const HOSTILE = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'> & \u0000\u202e end";
let numChecks = 0;
let numWrong = 0;

function check(what, holds, found = "") {
  numChecks += 1;
  if (holds) return;
  numWrong += 1;
  console.log(`WRONG: ${what} ${found}`);
}

function makeRun(name, numSteps, { names = [], hostile = false, cut = false } = {}) {
  const folder = join(place, name);
  mkdirSync(folder);
  const value = (step, i) => 0.5 + Math.sin(step * 0.05 + i) * 0.4;
  const metrics = [];
  const completions = [];
  for (let step = 0; step <= numSteps; step += 1) {
    const row = { step, time: 1.79e9 + step * 1.5 };
    if (step > 0) {
      row.reward = value(step, 0);
      row["rewards/exact/mean"] = row.reward;
      row.loss = 1 / step;
      row["clip_ratio/low_mean"] = 0;
      row.num_tokens = step * 100;
      names.forEach((metric, i) => { row[metric] = value(step, i); });
      for (let i = 0; i < 8; i += 1) {
        const completion = hostile && step === 2 && i === 0 ? HOSTILE : `word ${step} makes ${(step * i) % 7}`;
        const reward = i % 2 ? 1 : -0.25;
        completions.push({ step, prompt: `What is ${step}?`, completion, rewards: { exact: reward, brief: 0.125 }, reward, advantage: i - 3.5, finish_reason: i === 3 ? "length" : "stop" });
      }
    }
    if (step % 10 === 0) row.eval_accuracy = Math.min(1, 0.1 + step / 100);
    metrics.push(JSON.stringify(row));
  }
  const end = cut ? '\n{"step": 99, "rew' : "\n";
  writeFileSync(join(folder, "metrics.jsonl"), metrics.join("\n") + end);
  writeFileSync(join(folder, "completions.jsonl"), completions.map((row) => JSON.stringify(row)).join("\n") + "\n");
  writeFileSync(join(folder, "run_config.toml"), `seed = ${numSteps}\nlearning_rate = 0.001\n`);
  return folder;
}

const many = Array.from({ length: 36 }, (_, i) => `perf/metric_${i}`);
const runs = [makeRun("hostile <b>", 40, { hostile: true }), makeRun("killed", 20, { names: ["kl"], cut: true })];
const long = makeRun("long", 1000, { names: many });
const page = join(place, "page.html");
const longPage = join(place, "long.html");
execFileSync(binary, ["report", ...runs, "--output", page], { stdio: ["ignore", "ignore", "ignore"] });
execFileSync(binary, ["report", long, long, "--output", longPage], { stdio: "ignore" });
check("a page of 2 x 1,000 steps is below 2 MB", statSync(longPage).size < 2e6, statSync(longPage).size);

const browser = await puppeteer.launch({ executablePath: chromium, args: ["--no-sandbox"] });
const tab = await browser.newPage();
const complaints = [];
const requests = [];
tab.on("console", (message) => complaints.push(message.text()));
tab.on("pageerror", (error) => complaints.push(String(error)));
tab.on("request", (request) => requests.push(request.url()));
await tab.setViewport({ width: 1280, height: 900 });
await tab.evaluateOnNewDocument(() => {
  window.shift = 0;
  new PerformanceObserver((list) => list.getEntries().forEach((entry) => { window.shift += entry.value; })).observe({ type: "layout-shift", buffered: true });
});

const pause = (ms = 120) => new Promise((done) => setTimeout(done, ms));
const tipText = () => tab.$eval("#tip", (node) => (node.hidden ? "" : node.innerText.replace(/\s+/g, " ")));
const count = (selector) => tab.$$eval(selector, (nodes) => nodes.length);
const status = () => tab.$eval("#texts p[role=status]", (node) => node.textContent);
const picture = async (name) => { if (pictures) await tab.screenshot({ path: join(pictures, name) }); };
const CHART = 'figure[data-name="reward"]';

async function choose(label, value) {
  await tab.evaluate((word, wanted) => {
    const field = [...document.querySelectorAll(".bar label")].find((node) => node.textContent.startsWith(word)).querySelector("input, select");
    if (field.type === "checkbox") field.click();
    else {
      field.value = wanted;
      field.dispatchEvent(new Event("input", { bubbles: true }));
      field.dispatchEvent(new Event("change", { bubbles: true }));
    }
  }, label, value);
  await pause();
}

await tab.goto(`file://${page}`);
await pause(400);
check("no text became a script", (await tab.evaluate(() => window.hacked)) === undefined);
check("no layout jump", (await tab.evaluate(() => window.shift)) < 0.01, await tab.evaluate(() => window.shift));
check("only the page itself is loaded", requests.length === 1, requests);
check("the same curve is drawn once", (await count('figure[data-name="rewards/exact/mean"]')) === 0);
check("what never changes is a line of text", (await tab.$eval("#curves", (node) => node.innerText)).includes("clip_ratio/low_mean = 0"));
check("the cut line is told", (await tab.$eval(".notes", (node) => node.innerText)).includes("the last line is cut"));
check("a label is text", (await tab.$eval("#runs tbody", (node) => node.innerText)).includes("hostile <b>"));

// The pointer, the keys.
await tab.$eval(CHART, (node) => node.scrollIntoView({ block: "center", behavior: "instant" }));
const box = await (await tab.$(`${CHART} svg`)).boundingBox();
await tab.mouse.move(box.x + 54 + (box.width - 64) * 0.5, box.y + 60);
await pause();
const shown = await tipText();
const expected = (step) => String(Number((0.5 + Math.sin(step * 0.05) * 0.4).toPrecision(4)));
const step = Number(shown.match(/^step (\d+)/)?.[1]);
check("the tip has step and value of each run", shown.includes(expected(step)) && shown.includes("killed") && shown.includes("hostile <b>"), shown);
await picture("hover.png");
await tab.focus(CHART);
await tab.keyboard.press("Home");
check("Home reads the first step", (await tipText()).startsWith("step 1 ") && (await tipText()).includes(expected(1)), await tipText());
await tab.keyboard.press("ArrowRight");
await tab.keyboard.press("ArrowRight");
check("arrow keys go on", (await tipText()).startsWith("step 3 "), await tipText());
await tab.keyboard.press("End");
check("End reads the last", (await tipText()).startsWith("step 40 "), await tipText());
await tab.keyboard.press("Escape");
check("Escape closes the tip", (await tipText()) === "");

// The bar.
const paths = () => tab.$$eval(`${CHART} svg path`, (nodes) => nodes.map((node) => node.getAttribute("d")));
const before = await paths();
await choose("Smoothing", "0.9");
const smooth = await paths();
check("smoothing draws a second line", before.length === 2 && smooth.length === 4 && smooth[1] !== before[0], smooth.length);
await choose("Smoothing", "0");
await choose("Over", "tokens");
await tab.focus(CHART);
await tab.keyboard.press("Home");
check("over tokens", (await tipText()).startsWith("tokens 100, step 1 "), await tipText());
await choose("Over", "time");
await tab.focus(CHART);
await tab.keyboard.press("End");
check("over time", (await tipText()).startsWith("after 1 min 00 s, step 40"), await tipText());
await choose("Over", "step");
await choose("Logarithmic");
check("a logarithmic axis has powers of ten", (await tab.$$eval('figure[data-name="loss"] svg text', (nodes) => nodes.map((node) => node.textContent))).includes("0.1"));
await choose("Logarithmic");
await tab.$$eval("#curves fieldset input", (boxes) => boxes[1].click());
await pause();
check("a run can be hidden", (await paths()).length === 1);
await tab.$$eval("#curves fieldset input", (boxes) => boxes[1].click());
await choose("Filter", "kl");
check("curves are filtered", (await tab.$$eval("figure.chart", (nodes) => nodes.filter((node) => node.offsetParent).map((node) => node.dataset.name).join())) === "kl");
await choose("Filter", "");
await tab.click(`${CHART} figcaption button`);
await pause();
check("a chart can be enlarged", (await (await tab.$(CHART)).boundingBox()).width > 1000);
await tab.click(`${CHART} figcaption button`);

// The maps.
await tab.$eval("figure.map", (node) => node.scrollIntoView({ block: "center", behavior: "instant" }));
await pause();
await tab.focus("figure.map");
await tab.keyboard.press("ArrowRight");
check("a map is read by keys", /^step 1 reward: 1 4 of 8 completions \(50 %\)$/.test((await tipText()).trim()), await tipText());

// The completions.
check("all completions are counted", (await status()) === "480 of 480 completions", await status());
await choose("Search", "onerror");
check("a search finds the hostile text as text", (await status()).startsWith("1 of") && (await tab.$eval("#texts .completion", (node) => node.textContent)).includes("<img src=x"), await status());
check("what was searched for is marked", (await tab.$eval("#texts mark", (node) => node.textContent)) === "onerror");
check("a character that cannot be seen is shown", (await tab.$eval("#texts .completion", (node) => node.textContent)).includes("␀"));
await choose("Search", "");
await choose("Step", "5");
check("completions of a step", (await status()).startsWith("16 of"), await status());
await choose("Reward", "1");
check("and of a reward", (await status()).startsWith("8 of"), await status());
await choose("Ended by", "length");
check("and of an end", (await status()).startsWith("2 of"), await status());
await choose("Ended by", "");
await choose("Step", "");
await choose("Reward", "");
await choose("Order", "largest advantage");
check("by advantage", (await tab.$eval("#texts .facts", (node) => node.textContent)).includes("advantage 3.5"));
const numRows = await count(".completion-row");
await tab.click(".more button");
await pause();
check("more are shown", (await count(".completion-row")) === 2 * numRows);
check("differences of settings", (await tab.$eval("#settings table", (node) => node.innerText)).includes("seed"));
check("still nothing loaded, no complaint", requests.length === 1 && complaints.length === 0, complaints);

// Sizes and colours.
for (const [name, width, scheme] of [["wide", 1680, "light"], ["dark", 1280, "dark"], ["narrow", 360, "light"], ["narrow-dark", 360, "dark"]]) {
  await tab.emulateMediaFeatures([{ name: "prefers-color-scheme", value: scheme }]);
  await tab.setViewport({ width, height: 900 });
  await tab.goto(`file://${page}`);
  await pause(300);
  check(`${name}: nothing is wider than the window`, await tab.evaluate(() => document.documentElement.scrollWidth <= innerWidth), await tab.evaluate(() => document.documentElement.scrollWidth));
  const [ink, paper] = await tab.evaluate(() => ["color", "backgroundColor"].map((name) => getComputedStyle(document.documentElement)[name].match(/\d+/g).map(Number)));
  check(`${name}: the colours are ${scheme}`, (ink[0] > paper[0]) === (scheme === "dark"), [ink, paper]);
  await picture(`${name}.png`);
}

await tab.setViewport({ width: 1280, height: 900 });
const started = Date.now();
await tab.goto(`file://${longPage}`);
await tab.waitForSelector(`${CHART} svg path`);
const opened = Date.now() - started;
check("1,000 steps are told to be thinned or complete", (await tab.$eval("#runs", (node) => node.innerText)).includes("not on this page"));
check("no complaint on the long page", complaints.length === 0, complaints);
console.log(`${numChecks} checks, ${numWrong} wrong; page of 2 x 1,000 steps: ${(statSync(longPage).size / 1e6).toFixed(2)} MB, drawn after ${opened} ms`);
await browser.close();
process.exit(numWrong > 0 ? 1 : 0);
