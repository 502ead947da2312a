"""The page of the explorer: its text, style and script, with a place for the data."""

__all__ = ["PAGE"]

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$TITLE</title>
<style>
:root { color-scheme: light dark; --ink: #222; --paper: #fff; --line: #ccc; }
@media (prefers-color-scheme: dark) { :root { --ink: #ddd; --paper: #181818; --line: #444; } }
body { margin: 0 auto; max-width: 70rem; padding: 1rem; color: var(--ink);
  background: var(--paper); font: 1rem/1.4 system-ui, sans-serif; }
main { display: flex; flex-wrap: wrap; gap: 1rem; }
#map { flex: 1 1 20rem; min-width: 0; max-width: 40rem; aspect-ratio: 1; touch-action: none;
  border: 1px solid var(--line); cursor: crosshair; }
aside { flex: 1 1 14rem; }
figure { display: inline-block; margin: 0 1rem 1rem 0; }
figure canvas { width: 9rem; image-rendering: pixelated; border: 1px solid var(--line); }
label { display: flex; gap: .5rem; align-items: center; }
input[type=range] { flex: 1; }
</style>
</head>
<body>
<h1>$TITLE</h1>
<main>
<canvas id="map" tabindex="0" aria-label="the codes of the data"></canvas>
<aside>
<figure><canvas id="decoded"></canvas><figcaption>decoded</figcaption></figure>
<figure><canvas id="nearest"></canvas><figcaption id="caption">data</figcaption></figure>
<p><button id="play">Play the path</button> <button id="clear">Clear</button></p>
<p id="place"></p>
<div id="sliders"></div>
<p>Click to lay a path. Arrow keys move, the space bar plays.</p>
</aside>
</main>
<script id="content" type="application/json">$DATA</script>
<script>
"use strict";
const content = JSON.parse(document.getElementById("content").textContent);
const bytes = text => Uint8Array.from(atob(text), c => c.charCodeAt(0));
const [height, width, channels] = content.shape;
const size = height * width * channels;
const units = content.codes.units;
const codes = new Uint16Array(bytes(content.codes.bytes).buffer);
const grid = bytes(content.grid);
const strips = content.strips.map(bytes);
const data = bytes(content.data);
const [across, up] = content.axes;
const at = Array.from({ length: units }, (_, u) =>
  (content.centre[u] - content.low[u]) / (content.high[u] - content.low[u] || 1));
const path = [];
let timer = 0;
const map = document.getElementById("map");
const colour = label => `hsl(${(label * 137.5) % 360} 65% 50%)`;

function interpolated(images, count, place) {
  const t = Math.min(Math.max(place, 0), 1) * (count - 1);
  const first = Math.min(Math.floor(t), count - 2);
  return [first, t - first];
}
function decode() {
  const [i, a] = interpolated(grid, content.side, at[across]);
  const [j, b] = interpolated(grid, content.side, at[up]);
  const corner = (r, c, k) => grid[((j + r) * content.side + i + c) * size + k];
  const pixels = new Float32Array(size);
  for (let k = 0; k < size; k++) {
    pixels[k] = (1 - b) * ((1 - a) * corner(0, 0, k) + a * corner(0, 1, k))
      + b * ((1 - a) * corner(1, 0, k) + a * corner(1, 1, k));
  }
  strips.forEach((strip, u) => {
    if (u === across || u === up) return;
    const middle = (content.centre[u] - content.low[u]) / (content.high[u] - content.low[u] || 1);
    const [n, c] = interpolated(strip, content.steps, at[u]);
    const [m, d] = interpolated(strip, content.steps, middle);
    for (let k = 0; k < size; k++) {
      pixels[k] += (1 - c) * strip[n * size + k] + c * strip[(n + 1) * size + k]
        - (1 - d) * strip[m * size + k] - d * strip[(m + 1) * size + k];
    }
  });
  return pixels;
}
function paint(canvas, pixels) {
  canvas.width = width;
  canvas.height = height;
  const image = new ImageData(width, height);
  for (let p = 0; p < width * height; p++) {
    for (let c = 0; c < 3; c++) image.data[4 * p + c] = pixels[channels * p + c % channels];
    image.data[4 * p + 3] = 255;
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}
function nearest() {
  const known = Math.min(content.codes.rows, data.length / size);
  let best = 0;
  let least = Infinity;
  for (let n = 0; n < known; n++) {
    let distance = 0;
    for (let u = 0; u < units; u++) distance += (codes[n * units + u] / 65535 - at[u]) ** 2;
    if (distance < least) { least = distance; best = n; }
  }
  return best;
}
function draw() {
  const side = map.clientWidth * (window.devicePixelRatio || 1);
  map.width = map.height = side;
  const ink = map.getContext("2d");
  for (let n = 0; n < content.codes.rows; n++) {
    ink.fillStyle = colour(content.labels[n]);
    ink.fillRect(codes[n * units + across] / 65535 * side - 1,
      (1 - codes[n * units + up] / 65535) * side - 1, side / 250, side / 250);
  }
  ink.strokeStyle = getComputedStyle(document.body).color;
  ink.lineWidth = side / 300;
  ink.beginPath();
  path.forEach(([x, y]) => ink.lineTo(x * side, (1 - y) * side));
  ink.stroke();
  ink.strokeRect(at[across] * side - side / 80, (1 - at[up]) * side - side / 80,
    side / 40, side / 40);
}
function show() {
  paint(document.getElementById("decoded"), decode());
  const n = nearest();
  paint(document.getElementById("nearest"), data.subarray(n * size, (n + 1) * size));
  document.getElementById("caption").textContent = `data point ${n}, label ${content.labels[n]}`;
  const value = u => content.low[u] + at[u] * (content.high[u] - content.low[u]);
  document.getElementById("place").textContent =
    [across, up].map(u => `z[${u}] = ${value(u).toFixed(2)}`).join(", ");
  document.querySelectorAll("#sliders input").forEach((input, u) => { input.value = at[u]; });
  draw();
}
function move(x, y) {
  at[across] = Math.min(Math.max(x, 0), 1);
  at[up] = Math.min(Math.max(y, 0), 1);
  show();
}
function place(event) {
  const box = map.getBoundingClientRect();
  return [(event.clientX - box.left) / box.width, 1 - (event.clientY - box.top) / box.height];
}
function play() {
  cancelAnimationFrame(timer);
  if (path.length < 2) return;
  const start = performance.now();
  const frame = now => {
    const t = (now - start) / 1500;
    const leg = Math.floor(t);
    if (leg >= path.length - 1) return move(...path[path.length - 1]);
    const [a, b] = [path[leg], path[leg + 1]];
    move(a[0] + (t - leg) * (b[0] - a[0]), a[1] + (t - leg) * (b[1] - a[1]));
    timer = requestAnimationFrame(frame);
  };
  timer = requestAnimationFrame(frame);
}
map.addEventListener("pointermove", event => move(...place(event)));
map.addEventListener("pointerdown", event => { path.push(place(event)); move(...place(event)); });
map.addEventListener("keydown", event => {
  const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
  const step = steps[event.key];
  if (step) move(at[across] + step[0] / 50, at[up] + step[1] / 50);
  if (event.key === " ") play();
  if (event.key === "Enter") { path.push([at[across], at[up]]); draw(); }
  if (step || event.key === " ") event.preventDefault();
});
document.getElementById("play").addEventListener("click", play);
document.getElementById("clear").addEventListener("click", () => { path.length = 0; draw(); });
strips.forEach((_, u) => {
  const label = document.createElement("label");
  const input = document.createElement("input");
  Object.assign(input, { type: "range", min: 0, max: 1, step: 0.001, value: at[u] });
  input.addEventListener("input", () => { at[u] = Number(input.value); show(); });
  label.append(`z[${u}]`, input);
  document.getElementById("sliders").append(label);
});
window.addEventListener("resize", draw);
show();
</script>
</body>
</html>
"""
