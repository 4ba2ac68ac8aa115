"use strict";
const read = (id) => JSON.parse(document.getElementById(id).textContent);
const make = (tag, attributes, parent) => {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  parent?.append(element);
  return element;
};

// Four or five round numbers that span an interval.
const ticks = (low, high) => {
  const rough = (high - low) / 4 || 1, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((factor) => factor * power >= rough) * power, found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i++) found.push(i * step);
  return found;
};
const words = (value) => Math.abs(value) >= 1e4 ? value.toLocaleString("en") : String(+value.toPrecision(4));

// A moving mean: steps differ by the view that they show.
const smoothed = (points) => {
  const reach = Math.floor(points.length / 60);
  return points.map(([x], i) => {
    const near = points.slice(Math.max(0, i - reach), i + reach + 1);
    return [x, near.reduce((sum, point) => sum + point[1], 0) / near.length];
  });
};

const W = 380, H = 200, LEFT = 58, RIGHT = 8, TOP = 8, BOTTOM = 24;
const draw = (box, chart, axis) => {
  const pick = (rows) => rows.map((row) => [row[axis], row[2]]);
  const train = pick(chart.train), test = pick(chart.test), all = [...train, ...test];
  const xs = all.map((p) => p[0]), ys = all.map((p) => p[1]);
  let [x0, x1, y0, y1] = [Math.min(0, ...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
  if (x1 === x0) x1 = x0 + 1;
  if (y1 === y0) { const room = Math.max(0.5, Math.round(0.05 * Math.abs(y1))); y0 -= room; y1 += room; }
  const X = (x) => LEFT + (x - x0) / (x1 - x0) * (W - LEFT - RIGHT);
  const Y = (y) => H - BOTTOM - (y - y0) / (y1 - y0) * (H - TOP - BOTTOM);
  const svg = make("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": chart.name });
  for (const y of ticks(y0, y1)) {
    make("line", { class: "grid", x1: LEFT, x2: W - RIGHT, y1: Y(y), y2: Y(y) }, svg);
    make("text", { x: LEFT - 6, y: Y(y) + 4, "text-anchor": "end" }, svg).textContent = words(y);
  }
  for (const x of ticks(x0, x1))
    make("text", { x: X(x), y: H - 6, "text-anchor": "middle" }, svg).textContent = words(x);
  const line = (points, kind) => points.length && make("path",
    { class: kind, d: "M" + points.map(([x, y]) => `${X(x).toFixed(1)},${Y(y).toFixed(1)}`).join("L") }, svg);
  if (chart.noisy) line(train, "raw");
  line(chart.noisy ? smoothed(train) : train, "train");
  line(test, "test");
  for (const [x, y] of test) make("circle", { cx: X(x), cy: Y(y), r: 2.5 }, svg);
  const told = document.createElement("div");
  told.className = "read";
  svg.addEventListener("pointermove", (event) => {
    const frame = svg.getBoundingClientRect(), x = (event.clientX - frame.left) / frame.width * W;
    const nearest = (points) => points.reduce((a, b) => Math.abs(X(a[0]) - x) <= Math.abs(X(b[0]) - x) ? a : b);
    const say = (name, points) => points.length ? [`${name} ${words(nearest(points)[1])}`] : [];
    const at = words(nearest(all)[0]) + (axis ? " s" : "");
    told.textContent = [`${axis ? "" : "step "}${at}`, ...say("training", train), ...say("test", test)].join(", ");
  });
  svg.addEventListener("pointerleave", () => { told.textContent = ""; });
  const title = document.createElement("h3");
  title.textContent = chart.name;
  box.replaceChildren(title, svg, told);
};

const curves = document.getElementById("curves");
if (curves) {
  const charts = read("curve-data"), boxes = charts.map(() => {
    const box = document.createElement("div");
    box.className = "chart";
    curves.append(box);
    return box;
  });
  const show = (axis) => {
    charts.forEach((chart, i) => draw(boxes[i], chart, axis));
    document.querySelectorAll(".switch button").forEach((button) =>
      button.setAttribute("aria-pressed", +button.dataset.axis === axis));
  };
  document.querySelectorAll(".switch button").forEach((button) =>
    button.addEventListener("click", () => show(+button.dataset.axis)));
  show(0);
}

for (const slider of document.querySelectorAll(".slider")) {
  const input = slider.querySelector("input");
  const move = () => slider.style.setProperty("--cut", `${input.value}%`);
  input.addEventListener("input", move);
  // The middle of a range input's thumb does not reach its ends; the pointer does.
  slider.addEventListener("pointermove", (event) => {
    if (event.pointerType === "mouse" && !event.buttons) return;
    const frame = slider.getBoundingClientRect();
    input.value = 100 * (event.clientX - frame.left) / frame.width;
    move();
  });
}

for (const table of document.querySelectorAll(".turntable")) {
  const { frames, labels } = read(table.dataset.frames);
  const image = table.querySelector("img"), input = table.querySelector("input"), told = table.querySelector("output");
  const show = () => {
    image.src = frames[input.value];
    if (told && labels.length) told.textContent = labels[input.value];
  };
  input.addEventListener("input", show);
  show();
}
