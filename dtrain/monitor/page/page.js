// The page: which runs there are and which are chosen, how they stand, and what is new of them.
"use strict";

const token = new URLSearchParams(location.search).get("token") ?? "";
const MOST_POINTS = 5000; // of a series that is kept here, before the server is asked for a thinner one
const state = { listed: [], chosen: [], runs: new Map(), stream: null, again: 0 };

// --- small things ------------------------------------------------------------------------------------------------------

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children.filter((child) => child !== null));
  return made;
}

const number = (value) => (value === null || value === undefined ? null : Number(value)); // "NaN" and "Infinity" are text in JSON

function short(value) {
  value = number(value);
  if (value === null) return "–";
  if (!Number.isFinite(value)) return String(value).replace("NaN", "nan").replace("Infinity", "inf");
  const size = Math.abs(value);
  return value === 0 ? "0" : size >= 1e5 || size < 1e-3 ? value.toExponential(3) : String(Number(value.toPrecision(5)));
}

const clock = (time) => new Date(time * 1000).toLocaleTimeString([], { hour12: false });

function tableOf([heads, ...lines]) {
  const cell = (value) => element("td", typeof value === "number" ? { className: "number" } : {}, typeof value === "number" ? String(value) : (value ?? "–"));
  return element("table", {}, element("thead", {}, element("tr", {}, ...heads.map((h) => element("th", { scope: "col" }, h)))),
    element("tbody", {}, ...lines.map((line) => element("tr", {}, ...line.map(cell)))));
}

// The name of a run among those that are chosen: its id alone where all are of one job.
function nameOf(run) {
  const job = (id) => id.slice(0, id.lastIndexOf("/") + 1);
  return state.chosen.every((id) => job(id) === job(run.id)) ? run.id.slice(job(run.id).length) : run.id;
}

const MARKS = { running: "▶", succeeded: "✔", failed: "✖", stopped: "■", pending: "…" };
const statusOf = (status) => element("span", { className: `status ${status}` }, `${MARKS[status] ?? ""} ${status}`);

function say(text) {
  const place = document.getElementById("connection");
  if (place.textContent !== text) place.textContent = text;
}

async function ask(path, query = {}) {
  try {
    const answer = await fetch(`${path}?${new URLSearchParams({ ...query, token })}`);
    if (answer.ok) return await answer.json();
    say(answer.status === 401 ? "the link is no longer valid; open the one that dtrain prints" : `no answer: ${answer.status}`);
  } catch {
    say("dtrain does not answer; it is tried again");
  }
  return null;
}

// --- what a run is -----------------------------------------------------------------------------------------------------

function read(values) {
  for (const group of [values.series, values.evaluations])
    for (const found of Object.values(group)) found.value = found.value.map(number);
  for (const table of [...Object.values(values.tables), values.ratios ?? { values: [] }]) table.values = table.values.map((row) => row.map(number));
  return values;
}

// Add what is new; a step that is there already is another one now.
function extend(points, news) {
  if (!points || !news.step.length) return points ?? news;
  let end = points.step.length;
  while (end && points.step[end - 1] >= news.step[0]) end -= 1;
  const joined = {};
  for (const key of Object.keys(news)) joined[key] = [...points[key].slice(0, end), ...news[key]];
  return joined;
}

function extendTable(table, news) {
  if (!table || !news.step.length) return table ?? news;
  const { names, ...columns } = news;
  const old = table.values.map((row) => [...row, ...Array(names.length - row.length).fill(null)]);
  return { names, ...extend({ step: table.step, values: old }, columns) };
}

function merge(run, news) {
  const { series: lines, evaluations: tests, tables, rates, ...standing } = read(news);
  for (const [name, found] of Object.entries(lines)) run.series[name] = extend(run.series[name], found);
  for (const [name, found] of Object.entries(tests)) run.evaluations[name] = extend(run.evaluations[name], found);
  for (const [name, found] of Object.entries(tables)) run.tables[name] = extendTable(run.tables[name], found);
  run.rates = extend(run.rates, rates);
  delete standing.run;
  Object.assign(run, standing);
  const longest = Math.max(0, ...Object.values(run.series).map((found) => found.step.length));
  return longest > MOST_POINTS || Object.values(run.tables).some((table) => table.step.length > 900);
}

async function load(id) {
  const values = await ask("run", { run: id });
  if (values) state.runs.set(id, read(values));
  return values !== null;
}

// --- following ---------------------------------------------------------------------------------------------------------

function follow() {
  state.stream?.close();
  state.stream = null;
  clearTimeout(state.again);
  const ids = state.chosen.filter((id) => state.runs.has(id));
  if (!ids.length || document.hidden) return; // a hidden page takes no connection
  const query = new URLSearchParams({ token, after: ids.map((id) => state.runs.get(id).position).join(",") });
  for (const id of ids) query.append("run", id);
  const stream = new EventSource(`stream?${query}`);
  state.stream = stream;
  stream.onopen = () => say("live");
  stream.onerror = () => {
    say("dtrain does not answer; it is tried again");
    if (stream.readyState === EventSource.CLOSED) retry(); // otherwise the browser tries by itself, with the last id
  };
  stream.addEventListener("news", async (event) => {
    const news = JSON.parse(event.data);
    const run = state.runs.get(news.run);
    if (!run || stream !== state.stream) return;
    say("live");
    if (merge(run, news) && !run.isLoading) {
      run.isLoading = true;
      if (await load(run.id)) follow();
    }
    drawSoon();
  });
  stream.addEventListener("again", async (event) => {
    stream.close();
    if (await load(JSON.parse(event.data).run)) follow();
    else retry();
    drawSoon();
  });
  stream.addEventListener("end", () => say("the page's process has ended; dtrain ui shows the run again"));
}

function retry() {
  clearTimeout(state.again);
  state.again = setTimeout(() => show(), 2000);
}

// --- drawing -----------------------------------------------------------------------------------------------------------

const PAUSE = 800; // milliseconds from one drawing of what is new to the next
let isDue = false;
let drawnAt = -PAUSE;
function drawSoon() {
  if (isDue) return;
  isDue = true;
  setTimeout(() => requestAnimationFrame(() => {
    isDue = false;
    drawAll();
    drawnAt = performance.now();
  }), drawnAt + PAUSE - performance.now());
}

function drawAll() {
  const runs = state.chosen.map((id) => state.runs.get(id)).filter(Boolean);
  document.title = runs.length === 1 ? `${MARKS[runs[0].status] ?? ""} ${runs[0].id} · dtrain` : "dtrain";
  document.getElementById("standing").replaceChildren(...(runs.length ? runs.map((run) => standing(run, runs.length > 1))
    : [element("article", {}, element("p", { className: "empty" }, state.listed.length ? "Choose a run." : "There are no runs yet. Start one with dtrain run."))]));
  differences(runs);
  for (const panel of PANELS) drawPanel(panel, runs);
  showGraph(runs);
  const single = runs.length === 1 ? runs[0] : null;
  for (const id of ["events", "job"]) document.getElementById(id).hidden = !single;
  if (single) { events(single); job(single); }
}

function standing(run, isShort) {
  const place = element("article", {}, element("h2", {}, run.id, statusOf(run.status)));
  const bar = element("progress", { max: run.steps || 1, value: run.step ?? 0 });
  bar.setAttribute("aria-label", `step ${run.step ?? 0} of ${run.steps ?? "?"}`);
  const error = run.result?.error ?? run.details?.error;
  if (error) place.append(element("p", { className: "error", role: "alert" }, error));
  place.append(bar);
  const figures = [["step", `${run.step ?? 0} of ${run.steps ?? "?"}`], ["train loss", short(run.result?.train_loss ?? run.loss)]];
  for (const [name, found] of Object.entries(run.evaluations))
    if (found.value.length) figures.push([`eval ${name}`, name === "accuracy" ? `${(100 * found.value.at(-1)).toFixed(2)} %` : short(found.value.at(-1))]);
  if (run.rates.step.length) figures.push(["samples/s", short(Math.round(run.rates.samples.at(-1)))], ["steps/s", short(run.rates.steps.at(-1))]);
  figures.push(["workers", String(run.timeline.generations.at(-1)?.members.length ?? 0)]);
  if (run.result?.seconds !== undefined) figures.push(["seconds", short(run.result.seconds)]);
  if (run.result?.restarts) figures.push(["workers replaced", String(run.result.restarts)]);
  if (run.result?.fingerprint) figures.push(["fingerprint", isShort ? `${run.result.fingerprint.slice(0, 16)}…` : run.result.fingerprint]);
  if (run.result?.numerics && !isShort) figures.push(["numerics", run.result.numerics]);
  if (!isShort) figures.push(["run directory", run.run_directory]);
  place.append(element("dl", { className: "figures" }, ...figures.map(([name, text]) => element("div", {}, element("dt", {}, name), element("dd", {}, text)))));
  return place;
}

function differences(runs) {
  const place = document.getElementById("differences");
  place.hidden = runs.length < 2;
  if (place.hidden) return;
  const text = (value) => (value === null || value === undefined ? "–" : String(value));
  const keys = [...new Set(runs.flatMap((run) => Object.keys(run.spec)))].filter((key) => new Set(runs.map((run) => text(run.spec[key]))).size > 1);
  const marks = new Set(runs.map((run) => run.result?.fingerprint).filter(Boolean));
  const rows = keys.map((key) => [key, ...runs.map((run) => text(run.spec[key]))]);
  if (marks.size) rows.push(["fingerprint", ...runs.map((run) => (run.result?.fingerprint ? `${run.result.fingerprint.slice(0, 16)}…${marks.size === 1 ? " (the same)" : ""}` : "–"))]);
  place.lastChild.replaceChildren(tableOf([["key", ...runs.map(nameOf)], ...(rows.length ? rows : [["none", ...runs.map(() => "")]])]));
}

function events(run) {
  const place = document.getElementById("events");
  const found = run.timeline.events.slice(-100).reverse();
  place.querySelector(".empty").hidden = found.length > 0;
  place.querySelector("ol").replaceChildren(...found.map(({ time, event, text }) => element("li", {},
    element("time", { dateTime: new Date(time * 1000).toISOString() }, clock(time)), element("strong", {}, `${event.replaceAll("_", " ")} `), text)));
}

function job(run) {
  const rows = Object.entries(run.spec).filter(([, value]) => value !== null).map(([key, value]) => [key, String(value)]);
  document.getElementById("job").lastChild.replaceChildren(tableOf([["key", "value"], ...rows]));
}

// --- the list of runs --------------------------------------------------------------------------------------------------

function list() {
  const wanted = document.getElementById("find").value.trim().toLowerCase();
  const shown = state.listed.filter((run) => !wanted || `${run.id} ${run.status}`.toLowerCase().includes(wanted)).slice(0, 300);
  const focus = document.activeElement?.dataset?.key;
  document.getElementById("list").replaceChildren(...shown.map((run) => {
    const isChosen = state.chosen.includes(run.id);
    const box = element("input", { type: "checkbox", checked: isChosen });
    box.setAttribute("aria-label", `compare ${run.id}`);
    box.dataset.key = `box ${run.id}`;
    box.addEventListener("change", () => pick(isChosen ? state.chosen.filter((id) => id !== run.id) : [...state.chosen, run.id].slice(-8)));
    const step = run.step === null ? "" : `step ${run.step}${run.steps ? ` of ${run.steps}` : ""}`;
    const [job, ...rest] = run.id.split("/");
    const button = element("button", { type: "button" }, rest.length && job ? job : run.id, element("small", {}, rest.length && job ? rest.join("/") : ""),
      element("small", {}, statusOf(run.status), ` ${step}${run.loss === null ? "" : ` · loss ${short(run.loss)}`}`));
    button.dataset.key = `run ${run.id}`;
    if (isChosen) button.setAttribute("aria-current", "true");
    button.addEventListener("click", () => pick([run.id]));
    return element("li", { className: isChosen ? "chosen" : "" }, box, button);
  }));
  if (focus) document.querySelector(`[data-key="${CSS.escape(focus)}"]`)?.focus({ preventScroll: true });
}

async function refresh() {
  if (!document.hidden) {
    const found = await ask("runs");
    if (found) {
      const isFirst = !state.listed.length && !state.chosen.length;
      const isNew = JSON.stringify(found) !== JSON.stringify(state.listed);
      state.listed = found;
      if (isFirst && found.length) pick([(found.find((run) => run.status === "running") ?? found[0]).id]);
      else if (isNew) list();
      if (!found.length) drawAll();
      if (!state.chosen.length) say("live");
    }
  }
  setTimeout(refresh, 3000);
}

function pick(ids) {
  state.chosen = ids;
  history.replaceState(null, "", `${location.pathname}${location.search}#${ids.map((id) => `run=${encodeURIComponent(id)}`).join("&")}`);
  list();
  show();
}

async function show() {
  const ids = [...state.chosen];
  const found = await Promise.all(ids.map((id) => state.runs.has(id) || load(id)));
  if (ids.join() !== state.chosen.join()) return;
  drawSoon();
  if (found.every(Boolean)) follow();
  else retry();
}

// --- colours -----------------------------------------------------------------------------------------------------------

const dark = matchMedia("(prefers-color-scheme: dark)");
const THEMES = { auto: "◐ auto", light: "☀ light", dark: "☾ dark" };
function theme(next) {
  let wanted = "auto";
  try {
    if (next) localStorage.setItem("theme", next);
    wanted = localStorage.getItem("theme") ?? "auto";
  } catch { wanted = next ?? "auto"; }
  document.documentElement.dataset.theme = wanted === "auto" ? (dark.matches ? "dark" : "light") : wanted;
  const button = document.getElementById("theme");
  button.textContent = THEMES[wanted];
  button.setAttribute("aria-label", `Colours: ${wanted}. Press to change.`);
  button.onclick = () => { theme({ auto: "light", light: "dark", dark: "auto" }[wanted]); drawAll(); };
}

dark.addEventListener("change", () => { theme(); drawAll(); });
document.addEventListener("visibilitychange", follow);
document.getElementById("find").addEventListener("input", list);
theme();
makePanels(document.getElementById("panels"));
startGraph();
if (matchMedia("(max-width: 60rem)").matches) document.getElementById("runs").open = false;
const asked = new URLSearchParams(location.hash.slice(1)).getAll("run");
if (asked.length) pick(asked);
refresh();
