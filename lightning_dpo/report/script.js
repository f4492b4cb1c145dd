"use strict";
const DATA = JSON.parse(document.getElementById("data").textContent);
const SVG = "http://www.w3.org/2000/svg";
const BEFORE = "before";
const FEW = 12;

function make(tag, attributes = {}, ...children) {
  const inSvg = ["svg", "path", "line", "circle", "text", "g"].includes(tag);
  const element = inSvg ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

const short = (value) => (value === null || value === undefined ? "–" : String(Number(value.toPrecision(3))).replace("-", "−"));

// The table: a click on a column head sorts by it, a second one reverses the order.

function sortable(table) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  const order = new Map([...body.rows].map((row, i) => [row, i]));
  heads.forEach((head, column) => {
    if ([...body.rows].some((row) => row.cells[column].dataset.value !== undefined)) head.classList.add("numbers");
    head.firstChild.addEventListener("click", () => {
      const numbers = head.classList.contains("numbers");
      const up = head.ariaSort ? head.ariaSort !== "ascending" : !numbers;
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const sign = up ? 1 : -1;
      const rows = [...body.rows].map((row) => [row, row.cells[column]]);
      rows.sort(([first, a], [second, b]) => {
        if (column === 0) return sign * (order.get(first) - order.get(second)); // runs in the order of the report
        if (!numbers) return sign * a.textContent.localeCompare(b.textContent, undefined, { numeric: true });
        const [x, y] = [a, b].map((cell) => Number(cell.dataset.value ?? NaN));
        if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y); // empty cells last
        return sign * (x - y);
      });
      body.append(...rows.map(([row]) => row));
    });
  });
}

// Curves: one panel per metric, the chosen runs drawn over the others.

function ticks(low, high, count) {
  const rough = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough);
  const found = [];
  for (let i = Math.ceil(low / step); i * step <= high + step * 1e-9; i++) found.push(i * step);
  return found;
}

function panel(metric, title, chosen) {
  const [width, height, left, right, top, bottom] = [300, 176, 42, 8, 6, 20];
  const all = DATA.runs.map((run) => run.curves[metric]);
  const points = [...all.map((c) => c.val), ...chosen.map((i) => all[i].train)].flat().filter(([, y]) => Number.isFinite(y));
  const box = make("div", { class: "panel" }, make("h3", {}, title));
  if (!points.length) return null;
  const [xs, ys] = [0, 1].map((axis) => points.map((p) => p[axis]));
  const [x0, x1] = [Math.min(...xs), Math.max(...xs)];
  let [y0, y1] = [Math.min(...ys), Math.max(...ys)];
  if (y0 === y1) [y0, y1] = [y0 - 1, y1 + 1];
  const x = (value) => left + ((value - x0) / (x1 - x0 || 1)) * (width - left - right);
  const y = (value) => height - bottom - ((value - y0) / (y1 - y0)) * (height - top - bottom);
  const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": title });
  for (const value of ticks(y0, y1, 4)) {
    svg.append(make("line", { x1: left, x2: width - right, y1: y(value), y2: y(value), stroke: "var(--grid)" }));
    svg.append(make("text", { x: left - 5, y: y(value) + 3.5, "text-anchor": "end" }, short(value)));
  }
  for (const value of ticks(x0, x1, 4)) {
    svg.append(make("text", { x: x(value), y: height - 5, "text-anchor": "middle" }, short(value)));
  }
  const draw = (curve, style) => {
    const path = curve.filter(([, v]) => Number.isFinite(v)).map(([s, v], i) => `${i ? "L" : "M"}${x(s).toFixed(1)} ${y(v).toFixed(1)}`);
    if (path.length) svg.append(make("path", { d: path.join(""), fill: "none", ...style }));
  };
  all.forEach((curves, i) => {
    if (!chosen.includes(i)) draw(curves.val, { stroke: "var(--faint)", "stroke-opacity": 0.28 });
  });
  chosen.forEach((i, side) => {
    const stroke = `var(--line${side})`;
    draw(all[i].train, { stroke, "stroke-opacity": 0.45 });
    draw(all[i].val, { stroke, "stroke-width": 2, "stroke-dasharray": side ? "6 3" : "none" });
    if (all[i].val.length < 60) {
      for (const [s, v] of all[i].val) svg.append(make("circle", { cx: x(s), cy: y(v), r: 2.4, fill: stroke }));
    }
  });
  const values = make("p");
  const cursor = make("line", { y1: top, y2: height - bottom, stroke: "var(--faint)", visibility: "hidden" });
  svg.append(cursor);
  const nearest = (curve, step) => curve.reduce((best, p) => (Math.abs(p[0] - step) < Math.abs(best[0] - step) ? p : best));
  const showValues = (step) => {
    const parts = chosen.filter((i) => all[i].val.length || all[i].train.length).map((i, side) => {
      const [at, value] = nearest(all[i].val.length ? all[i].val : all[i].train, step);
      return make("span", { class: `mark${chosen.indexOf(i)}` }, `${short(value)} `, make("small", {}, `at ${short(at)}`), "  ");
    });
    values.replaceChildren(...parts);
  };
  svg.addEventListener("pointermove", (event) => {
    const area = svg.getBoundingClientRect();
    const step = x0 + ((((event.clientX - area.left) / area.width) * width - left) / (width - left - right)) * (x1 - x0);
    const at = x(Math.min(x1, Math.max(x0, step)));
    for (const [name, value] of [["x1", at], ["x2", at], ["visibility", "visible"]]) cursor.setAttribute(name, value);
    showValues(step);
  });
  svg.addEventListener("pointerleave", () => {
    cursor.setAttribute("visibility", "hidden");
    showValues(x1);
  });
  showValues(x1);
  box.append(values, svg);
  return box;
}

// Two runs side by side.

const [left, right] = ["left", "right"].map((id) => document.getElementById(id));
let limit = FEW;

function side(label, number, completion) {
  const score = completion?.[3];
  const scored = score === null || score === undefined ? "" : `  ${DATA.score} ${short(score)}`;
  return make("div", { class: "side" },
    make("small", {}, make("span", { class: `mark${number}` }, label), scored),
    make("p", {}, completion ? completion[2].trim() || "(empty)" : "(no completion for this prompt)"));
}

function completions() {
  const sources = [left, right].filter((select) => select.value !== "").map((select) => ({
    label: select.selectedOptions[0].textContent,
    rows: select.value === BEFORE ? DATA.before : DATA.runs[select.value].samples,
  }));
  const [first, ...rest] = sources;
  const others = rest.map((source) => new Map(source.rows.map((row) => [`${row[0]} ${row[1]}`, row])));
  const pairs = first.rows.slice(0, limit).map((row) => make("div", { class: "pair" },
    make("div", { class: "prompt" }, DATA.prompts[row[0]]),
    make("div", { class: "sides" }, side(first.label, 0, row),
      ...others.map((found, i) => side(rest[i].label, 1, found.get(`${row[0]} ${row[1]}`))))));
  document.getElementById("pairs").replaceChildren(...pairs);
  document.getElementById("more").hidden = first.rows.length <= limit;
  const total = first.rows.length;
  document.getElementById("shown").textContent = total
    ? `${pairs.length} of ${total} completions, sampled at temperature 1 for held-out prompts. Choose the runs above.`
    : "This run sampled no completions; set samples.n above 0.";
}

function show() {
  const chosen = [...new Set([left.value, right.value].filter((v) => v !== "" && v !== BEFORE).map(Number))];
  const panels = Object.entries(DATA.titles).map(([metric, title]) => panel(metric, title, chosen)).filter(Boolean);
  document.getElementById("panels").replaceChildren(...panels);
  if (!panels.length) document.getElementById("panels").textContent = "No run has been validated yet.";
  completions();
}

function start() {
  document.querySelectorAll("#runs table").forEach(sortable);
  DATA.runs.forEach((run, i) => {
    for (const select of [left, right]) select.append(make("option", { value: i }, run.name));
  });
  right.prepend(make("option", { value: "" }, "none"));
  if (DATA.before?.length) right.append(make("option", { value: BEFORE }, "before training (completions only)"));
  left.value = DATA.best;
  right.value = DATA.before?.length ? BEFORE : "";
  for (const select of [left, right]) select.addEventListener("change", () => { limit = FEW; show(); });
  document.getElementById("more").addEventListener("click", () => { limit += 4 * FEW; completions(); });
  document.querySelectorAll("[data-run]").forEach((link) => link.addEventListener("click", () => {
    left.value = link.dataset.run;
    show();
  }));
  show();
}

start();
