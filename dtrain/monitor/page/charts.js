// The panels with curves: what each shows of the runs that are chosen, and how plotly draws it.
"use strict";

const hue = (number) => colour(`--c${number % 8}`); // of a run or a line; a run also has a dash of its own
const DASHES = ["solid", "dash", "dot", "dashdot", "longdash", "longdashdot", "solid", "dash"];
const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "cross", "star", "hexagon", "x"];
const PHASES = ["data", "forward", "backward", "compute", "sum", "update", "wait"];

const series = (run, key, label = key.replaceAll("_", " ")) => {
  const found = run.series[key];
  return found ? [{ label, x: found.step, y: found.value }] : [];
};
const evaluations = (run, chosen) =>
  Object.entries(run.evaluations).filter(([name]) => chosen(name))
    .map(([name, found]) => ({ label: `eval ${name}`, x: found.step, y: found.value, points: true }));

// Each has the question that it answers, and the lines of a run; or draws itself from one run.
const PANELS = [
  { id: "loss", title: "Loss", question: "Does it learn, and does it generalise?", log: false,
    lines: (run) => [...series(run, "loss", "train loss"), ...evaluations(run, (name) => name === "loss")],
    empty: "No step yet." },
  { id: "metrics", title: "Evaluation", question: "How good is it on samples it has not seen?",
    lines: (run) => evaluations(run, (name) => name !== "loss"), empty: "No evaluation yet." },
  { id: "gradient", title: "Gradient norm", question: "Do gradients explode or vanish? Before clipping, over all parameters.", log: true,
    lines: (run) => series(run, "gradient_norm"), empty: "No step yet." },
  { id: "rate", title: "Learning rate", question: "What does the schedule give?",
    lines: (run) => series(run, "learning_rate"), empty: "No step yet." },
  { id: "layers", title: "Gradient norm by parameter", question: "In which layer? The brighter, the larger.", wide: true,
    draw: (run) => heat(run.tables.parameter_norms), empty: "Not taken yet." },
  { id: "ratio", title: "Update to weight", question: "How far does a step move each parameter, relative to its size? About 10⁻³ is usual.", wide: true,
    draw: (run) => heat(run.tables.update_to_weight ?? run.ratios), empty: "Not taken yet; it is with dtrain run --ui." },
  { id: "throughput", title: "Throughput", question: "How fast is it?",
    lines: (run) => [{ label: "samples/s", x: run.rates.step, y: run.rates.samples }], empty: "No step yet." },
  { id: "seconds", title: "Seconds of a step", question: "Are some steps slow? Peaks are kept.", log: true,
    lines: (run) => series(run, "seconds"), empty: "No step yet." },
  { id: "phases", title: "Phases of the workers", question: "Where does the time go, and which worker is slow? Lately.",
    draw: phases, empty: "Not taken yet." },
  { id: "clip", title: "Clip factor", question: "How hard does clipping act? 1 is not at all.", optional: true,
    lines: (run) => (run.series.clip_scale?.value.some((v) => v !== 1) ? series(run, "clip_scale", "clip factor") : []) },
  { id: "noise", title: "Gradient noise scale", question: "Would a larger batch pay? Below it, nearly in full.", log: true, optional: true,
    lines: (run) => rows(run.tables.noise, (name) => /scale/.test(name)) },
  { id: "skew", title: "Skew at the barrier", question: "By how many seconds a step is the slowest worker late?", optional: true,
    lines: (run) => series(run, "barrier_skew") },
  { id: "memory", title: "Memory", question: "How much does each process hold, in MB?", optional: true,
    lines: (run) => rows(run.tables.resident_bytes, () => true, 1e-6) },
  { id: "timeline", title: "Workers", question: "Who took part and when? ▲ joined, ✖ lost, ▽ left, │ checkpoint.", wide: true,
    draw: members, empty: "No worker yet." },
];

function rows(table, chosen, factor = 1) {
  return (table?.names ?? []).flatMap((name, i) => chosen(name)
    ? [{ label: /^\d+$/.test(name) ? `worker ${name}` : name, x: table.step, y: table.values.map((row) => row[i] === null ? null : row[i] * factor) }] : []);
}

function heat(table) {
  if (!table?.step.length || !table.names.length) return null;
  const power = (v) => (v === null || !(v > 0) ? null : Math.log10(v));
  const z = table.names.map((_, i) => table.values.map((row) => power(row[i])));
  const shown = table.names.map((_, i) => table.values.map((row) => short(row[i])));
  const found = z.flat().filter((v) => Number.isFinite(v));
  const [low, high] = [Math.floor(found.reduce((a, b) => Math.min(a, b), 99)), Math.ceil(found.reduce((a, b) => Math.max(a, b), -99))];
  const ticks = Array.from({ length: Math.max(0, high - low) + 1 }, (_, i) => low + i).filter((_, i, all) => i % Math.ceil(all.length / 6) === 0);
  const bad = table.names.flatMap((name, i) => table.step.filter((_, j) => table.values[j][i] !== null && !Number.isFinite(table.values[j][i])).map((step) => [step, name]));
  return {
    data: [
      { type: "heatmap", x: table.step, y: table.names, z, text: shown, colorscale: "Viridis", hovertemplate: "%{y}<br>step %{x}: %{text}<extra></extra>",
        colorbar: { thickness: 10, tickvals: ticks, ticktext: ticks.map((t) => `10<sup>${t}</sup>`) } },
      ...(bad.length ? [{ type: "scatter", mode: "markers", name: "not finite", x: bad.map((b) => b[0]), y: bad.map((b) => b[1]),
        marker: { symbol: "x", color: "#ff2020", size: 9 } }] : []),
    ],
    layout: { xaxis: { title: "step" }, yaxis: { autorange: "reversed", type: "category", automargin: true }, showlegend: false },
    height: Math.max(180, Math.min(520, 90 + 18 * table.names.length)),
    caption: `${table.names.length} parameters; at step ${table.step.at(-1)} ` +
      largest(table.names, table.values.at(-1)),
    table: [["step", ...table.names], ...table.step.slice(-8).map((step, i, all) => [step, ...table.values[table.values.length - all.length + i]])],
  };
}

function largest(names, values) {
  const order = names.map((name, i) => [values[i], name]).filter(([v]) => v !== null).sort((a, b) => b[0] - a[0]);
  if (!order.length) return "";
  return `the largest is ${order[0][1]} with ${short(order[0][0])}, the smallest ${order.at(-1)[1]} with ${short(order.at(-1)[0])}`;
}

function phases(run) {
  const workers = Object.keys(run.phases);
  if (!workers.length) return null;
  const found = [...new Set(workers.flatMap((w) => Object.keys(run.phases[w])))];
  const names = [...PHASES.filter((p) => found.includes(p)), ...found.filter((p) => !PHASES.includes(p))];
  const sum = (worker) => Object.values(run.phases[worker]).reduce((a, b) => a + b, 0);
  const work = (worker) => sum(worker) - (run.phases[worker].wait ?? 0);
  const slowest = workers.reduce((a, b) => (work(b) > work(a) ? b : a));
  return {
    data: names.map((phase, i) => ({
      type: "bar", orientation: "h", name: phase, y: workers.map((w) => `worker ${w}`), x: workers.map((w) => run.phases[w][phase] ?? 0),
      marker: { color: hue(i), pattern: { shape: ["", "/", "\\", "x", ".", "+", "-"][i % 7], size: 6, solidity: 0.25 } },
      hovertemplate: `${phase}: %{x:.4g} s<extra>%{y}</extra>`,
    })),
    layout: { barmode: "stack", xaxis: { title: "seconds" }, yaxis: { autorange: "reversed", automargin: true, type: "category" } },
    height: Math.max(220, 120 + 22 * workers.length),
    caption: workers.length > 1 ? `Worker ${slowest} works the longest: ${short(work(slowest))} s of ${short(sum(slowest))} s.` : "",
    table: [["worker", ...names], ...workers.map((w) => [w, ...names.map((p) => run.phases[w][p] ?? null)])],
  };
}

function members(run) {
  const { bars, marks, checkpoints, generations } = run.timeline;
  if (!bars.length && !marks.length) return null;
  const workers = [...new Set([...bars, ...marks].map((entry) => entry.worker))].sort((a, b) => a - b);
  const name = (worker) => `worker ${worker}`;
  const date = (time) => new Date(time * 1000);
  const of = { joined: ["triangle-up", hue(2)], lost: ["x", colour("--bad")], left: ["triangle-down-open", hue(4)] };
  const now = Date.now() / 1000; // where the bars of a run that lasts end
  const lost = marks.filter((m) => m.what === "lost").length;
  return {
    data: [
      ...bars.map((bar) => ({ type: "scatter", mode: "lines", x: [date(bar.start), date(bar.end ?? now)], y: [name(bar.worker), name(bar.worker)],
        line: { width: 14, color: hue(0) }, opacity: 0.55, showlegend: false, hovertemplate: "%{y}<br>%{x|%H:%M:%S}<extra></extra>" })),
      ...Object.entries(of).map(([what, [symbol, color]]) => ({ type: "scatter", mode: "markers", name: what,
        x: marks.filter((m) => m.what === what).map((m) => date(m.time)), y: marks.filter((m) => m.what === what).map((m) => name(m.worker)),
        marker: { symbol, color, size: 11, line: { width: 1 } }, hovertemplate: `${what} %{x|%H:%M:%S}<extra>%{y}</extra>` })),
      { type: "scatter", mode: "markers", name: "checkpoint", x: checkpoints.map((c) => date(c.time)), y: checkpoints.map(() => "checkpoints"),
        marker: { symbol: "line-ns-open", color: hue(2), size: 12 }, customdata: checkpoints.map((c) => c.step), hovertemplate: "step %{customdata}<extra>checkpoint</extra>" },
    ],
    layout: { xaxis: { type: "date" }, yaxis: { type: "category", automargin: true, categoryorder: "array", autorange: "reversed",
      categoryarray: [...workers.map(name), ...(checkpoints.length ? ["checkpoints"] : [])] } },
    height: Math.max(180, 110 + 20 * (workers.length + 1)),
    caption: `${generations.at(-1)?.members.length ?? 0} workers in generation ${generations.at(-1)?.generation ?? 0}; ${lost} lost so far; ${checkpoints.length} checkpoints.`,
    table: [["generation", "time", "members"], ...generations.slice(-8).map((g) => [g.generation, clock(g.time), g.members.join(", ")])],
  };
}

// Lines of one run or of several, as plotly wants them; null if there are none.
function curves(panel, runs) {
  const all = runs.flatMap((run, i) => panel.lines(run).filter((line) => line.x.length).map((line, j) => ({ ...line, run, i, j })));
  if (!all.length) return null;
  const several = runs.length > 1;
  const traces = all.map(({ label, x, y, points, run, i, j }) => {
    const number = several ? i : j;
    return {
      type: "scatter", mode: points ? (x.length < 60 ? "lines+markers" : "lines") : "lines", x, y,
      name: several ? `${nameOf(run)} ${label}` : label,
      line: { width: points ? 2 : 1.6, color: hue(number), dash: several ? DASHES[number % 8] : "solid" },
      marker: { symbol: SYMBOLS[number % 8], size: 6 }, hovertemplate: "step %{x}: %{y:.6g}",
    };
  });
  const bad = all.flatMap(({ x, y }) => x.filter((_, i) => y[i] !== null && !Number.isFinite(y[i])));
  if (bad.length) {
    const lowest = all.flatMap(({ y }) => y).filter(Number.isFinite).reduce((a, b) => Math.min(a, b), Infinity);
    traces.push({ type: "scatter", mode: "markers", name: "not finite", x: bad, y: bad.map(() => (Number.isFinite(lowest) ? lowest : 0)),
      marker: { symbol: "x", color: colour("--bad"), size: 10 }, hovertemplate: "step %{x}: not finite" });
  }
  const newest = all.map(({ label, x, y, run }) => `${several ? `${nameOf(run)} ` : ""}${label} ${short(y.at(-1))} at step ${x.at(-1)}`);
  return {
    data: traces,
    layout: { xaxis: { title: "step" }, hovermode: "x unified" },
    caption: `${newest.slice(0, 6).join("; ")}${bad.length ? `; not finite at ${bad.length} steps` : ""}`,
    table: [["step", "what", "value"], ...all.flatMap(({ label, x, y, run }) =>
      x.slice(several ? -3 : -8).map((step, i, last) => [step, several ? `${nameOf(run)} ${label}` : label, y[y.length - last.length + i]]))],
  };
}

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function layoutOf(panel, given, isLog) {
  const axis = { gridcolor: colour("--grid"), zerolinecolor: colour("--grid"), linecolor: colour("--line"), automargin: true };
  const layout = {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: colour("--ink"), size: 12 },
    margin: { l: 52, r: 12, t: 8, b: 40 }, legend: { orientation: "h", traceorder: "normal", y: 1.02, yanchor: "bottom", x: 0 }, uirevision: panel.id,
    hoverlabel: { bgcolor: colour("--panel"), font: { color: colour("--ink") } }, showlegend: true, ...given,
  };
  for (const key of ["xaxis", "yaxis"]) {
    layout[key] = { ...axis, ...layout[key] };
    if (layout[key].title) layout[key].title = { text: layout[key].title, standoff: 6 };
  }
  if (isLog) layout.yaxis = { ...layout.yaxis, type: "log", exponentformat: "power", dtick: undefined };
  return layout;
}

function makePanels(place) {
  for (const panel of PANELS) {
    const section = element("section", { id: `panel-${panel.id}`, className: `panel${panel.wide ? " wide" : ""}` });
    const head = element("div", { className: "head" }, element("h2", {}, panel.title));
    if (panel.log !== undefined) {
      panel.box = element("input", { type: "checkbox", checked: panel.log });
      panel.box.addEventListener("change", () => drawAll());
      head.append(element("label", {}, panel.box, " log scale"));
    }
    panel.chart = element("div", { className: "chart" });
    panel.chart.setAttribute("role", "img");
    panel.caption = element("p", { className: "caption" });
    panel.values = element("details", { className: "values" }, element("summary", {}, "newest values"), element("div", { className: "scroll" }));
    panel.values.addEventListener("toggle", () => drawAll());
    panel.none = element("p", { className: "empty" }, panel.empty ?? "");
    section.append(head, element("p", { className: "question" }, panel.question), panel.none, panel.chart, panel.caption, panel.values);
    panel.section = section;
    place.append(section);
  }
}

function drawPanel(panel, runs) {
  const found = panel.lines ? curves(panel, runs) : runs.length === 1 ? panel.draw(runs[0]) : null;
  panel.section.hidden = (panel.draw && runs.length !== 1) || (panel.optional && !found) || !runs.length;
  panel.none.hidden = found !== null;
  for (const part of [panel.chart, panel.caption, panel.values]) part.hidden = found === null;
  if (panel.section.hidden || !found) return;
  panel.chart.style.height = `${found.height ?? 250}px`;
  panel.chart.setAttribute("aria-label", `${panel.title}: ${found.caption}`);
  panel.caption.textContent = found.caption;
  if (panel.values.open) panel.values.lastChild.replaceChildren(tableOf(found.table));
  Plotly.react(panel.chart, found.data, layoutOf(panel, found.layout, panel.box?.checked), { displayModeBar: false, responsive: true });
}
