// The graph view: dtrain's own picture, with the figures of one look into the run; an edge that is chosen is told in full.
"use strict";

const graph = { run: null, look: null, number: -1, asked: null };

const part = (id) => document.getElementById(id);

function showGraph(runs) {
  const section = part("graph");
  section.hidden = runs.length !== 1;
  if (section.hidden) return;
  const run = runs[0];
  const isNew = graph.run?.id !== run.id;
  const slider = part("look");
  const wasLast = isNew || Number(slider.value) === Number(slider.max);
  if (isNew) Object.assign(graph, { look: null, number: -1, asked: null });
  graph.run = run;
  section.querySelector(".empty").hidden = run.looks.length > 0;
  section.querySelector(".shown").hidden = run.looks.length === 0;
  if (!run.looks.length) return;
  slider.max = run.looks.length - 1;
  if (wasLast) slider.value = slider.max;
  askForLook();
}

async function askForLook() {
  const run = graph.run;
  const number = Number(part("look").value);
  part("look-step").textContent = `after ${run.looks[number]} steps`;
  part("look").setAttribute("aria-valuetext", `after ${run.looks[number]} steps`);
  if (graph.number === number && graph.asked === run.id) return;
  Object.assign(graph, { number, asked: run.id });
  const look = await ask("look", { run: run.id, number });
  if (graph.number !== number || graph.run.id !== run.id || !look) return;
  graph.look = look;
  drawGraph();
}

function drawGraph() {
  const { look } = graph;
  const place = part("picture");
  if (!look.picture) {
    place.replaceChildren(element("p", { className: "empty" }, "This run was made by a dtrain that kept no graph."));
    return;
  }
  const chosen = Number(part("edge").value || 0);
  place.innerHTML = look.picture; // made by dtrain, which escapes every text in it
  const boxes = look.graph.boxes;
  part("edge").replaceChildren(...look.graph.edges.map(([from, to], i) =>
    element("option", { value: i, selected: i === chosen }, `${boxes[from].label} → ${boxes[to].label}${isBroken(look.edges[i]) ? " (not finite)" : ""}`)));
  const first = new Set();
  for (const mark of place.querySelectorAll("[data-edge]")) {
    mark.addEventListener("click", () => choose(Number(mark.dataset.edge)));
    if (mark.tagName === "text" && !first.has(mark.dataset.edge)) {
      first.add(mark.dataset.edge);
      const [from, to] = look.graph.edges[Number(mark.dataset.edge)];
      mark.setAttribute("tabindex", "0");
      mark.setAttribute("role", "button");
      mark.setAttribute("aria-label", `edge from ${boxes[from].label} to ${boxes[to].label}, value ${mark.textContent}`);
      mark.addEventListener("keydown", (event) => {
        if (event.key === "Enter" || event.key === " ") { event.preventDefault(); choose(Number(mark.dataset.edge)); }
      });
    }
  }
  const broken = look.origins ?? [];
  part("origins").hidden = !broken.length;
  part("origins").textContent = broken.length ? `Not finite: first in ${broken.map((o) => `the ${o.what} of ${o.op} at ${o.line}${o.scope ? ` (${o.scope})` : ""}`).join("; ")}` : "";
  if (!broken.length) markError(place, boxes);
  choose(chosen, false);
}

// Where a run has ended with an error that names a line, and this look was taken before: the boxes of that line.
function markError(place, boxes) {
  const [, line] = /made at (\S+:\d+)/.exec(graph.run.result?.error ?? "") ?? [];
  const isThere = (box) => line && (box.detail.endsWith(`made at ${line}`) || box.detail.startsWith(`${line}:`));
  const found = boxes.flatMap((box, i) => (isThere(box) ? [i] : []));
  for (const i of found) place.querySelector(`[data-box="${i}"]`).classList.add("origin");
  part("origins").hidden = !found.length;
  if (found.length) part("origins").textContent = `The run has ended at ${line}, which is marked here.`;
}

const isBroken = (edge) => Boolean(edge.value?.not_finite || edge.gradient?.not_finite);

function choose(number, scroll = true) {
  const { look } = graph;
  const edge = look.edges[number] ?? look.edges[0];
  if (!edge) return;
  part("edge").value = number;
  for (const mark of part("picture").querySelectorAll("[data-edge]")) {
    const is = Number(mark.dataset.edge) === number;
    mark.classList.toggle("chosen", is);
    if (is && scroll && mark.tagName === "text") mark.scrollIntoView({ block: "nearest", inline: "nearest" });
  }
  const [from, to] = look.graph.edges[number];
  const boxes = look.graph.boxes;
  const shape = edge.shape ? (edge.shape.length ? edge.shape.join(" × ") : "a number") : "several arrays";
  part("detail").replaceChildren(
    element("div", {}, element("h3", {}, `${boxes[from].label} → ${boxes[to].label}`), element("p", { className: "question" }, shape),
      element("p", { className: "question" }, boxes[from].detail)),
    histogram("Value", "value", edge.value), histogram("Gradient", "gradient", edge.gradient), ...[branch(from, number), shares(boxes[from])].filter(Boolean));
}

function histogram(title, kind, found) {
  const place = element("div", { className: kind }, element("h3", {}, title));
  if (!found) return place.append(element("p", { className: "empty" }, "none")), place;
  if (found.not_finite) place.append(element("p", { className: "error" }, `${found.not_finite} elements are not finite`));
  if (!found.counts) return place;
  const most = Math.max(...found.counts);
  const bars = element("div", { className: "bars" }, ...found.counts.map((count) => {
    const bar = element("i", { title: String(count) });
    bar.style.height = `${(100 * count) / most}%`;
    return bar;
  }));
  bars.setAttribute("role", "img");
  bars.setAttribute("aria-label", `histogram of ${found.counts.reduce((a, b) => a + b)} elements: ${found.counts.join(", ")}`);
  const text = `norm ${short(found.norm)}, mean ${short(found.mean)}, deviation ${short(found.std)}`;
  place.append(bars, element("div", { className: "range" }, element("span", {}, short(found.low)), element("span", {}, short(found.high))),
    element("p", { className: "caption" }, text));
  return place;
}

// What each use of a value adds to its gradient.
function branch(box, number) {
  const { look } = graph;
  const uses = look.graph.edges.flatMap(([from, to], i) => (from === box ? [[i, to]] : []));
  if (uses.length < 2) return null;
  const place = element("div", {});
  place.append(element("h3", {}, `A branch: ${uses.length} edges leave ${look.graph.boxes[box].label}`),
    element("p", { className: "question" }, "Its gradient is the sum of these; their norms:"));
  const size = (i) => look.edges[i].gradient?.norm ?? 0;
  const most = Math.max(...uses.map(([i]) => size(i)));
  for (const [i, to] of uses) place.append(share(`${i === number ? "▸ " : ""}→ ${look.graph.boxes[to].label}`, most ? size(i) / most : 0, short(size(i))));
  return place;
}

// What each worker adds to the gradient of a parameter: its shards' parts along the sum.
function shares(box) {
  const found = box.kind === "input" ? graph.look.shards?.[box.label] : null;
  if (!found?.length) return null;
  const place = element("div", {});
  const members = graph.run.timeline.generations.at(-1)?.members ?? [0];
  const bound = (w) => Math.floor((w * found.length) / members.length);
  place.append(element("h3", {}, "The sum over the workers"),
    element("p", { className: "question" }, "Every parameter is a branch to all shards. What each worker's shards add along the gradient of the batch, as a part of it:"));
  members.forEach((worker, w) => {
    const own = found.slice(bound(w), bound(w + 1));
    const sum = own.reduce((a, b) => a + b, 0);
    place.append(share(`worker ${worker} (shards ${bound(w)}–${bound(w + 1) - 1})`, Math.abs(sum), `${(100 * sum).toFixed(1)} %`, sum < 0));
  });
  return place;
}

function share(label, width, text, minus = false) {
  const bar = element("b", { className: minus ? "minus" : "" });
  bar.style.width = `${Math.min(100, 100 * width)}%`;
  return element("div", { className: "share" }, element("span", {}, label), element("span", {}, bar), element("span", {}, text));
}

function startGraph() {
  part("look").addEventListener("input", askForLook);
  part("edge").addEventListener("change", (event) => choose(Number(event.target.value)));
}
