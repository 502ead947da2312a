"""The part of a page that is the explorer: its text, style and script, with a place for the
data.
"""

__all__ = ["EXPLORER"]

EXPLORER = """<style>
.explorer { display: grid; grid-template-columns: minmax(0, 38rem) minmax(14rem, 1fr); gap: 1rem;
  align-items: start; }
.explorer #map { display: block; width: 100%; aspect-ratio: 1; touch-action: none;
  border: 1px solid var(--line); border-radius: .4rem; cursor: crosshair; }
.explorer #map:focus-visible { outline: 2px solid var(--accent); outline-offset: 1px; }
.explorer .pictures { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr));
  gap: .8rem; max-width: 26rem; }
.explorer figure { margin: 0; }
.explorer figure canvas { display: block; width: 100%; min-height: 1.5rem;
  image-rendering: pixelated; border: 1px solid var(--line); border-radius: .2rem; }
.explorer figcaption, .explorer .faint { color: var(--faint); font-size: .875rem; }
.explorer figcaption { min-height: 2.6em; }
.explorer button { font: inherit; color: inherit; background: var(--card); cursor: pointer;
  border: 1px solid var(--line); border-radius: .4rem; padding: .25rem .8rem; }
.explorer button:disabled { opacity: .5; cursor: default; }
.explorer #place { font-variant-numeric: tabular-nums; }
.explorer .legend { display: flex; flex-wrap: wrap; gap: .2rem .8rem; font-size: .875rem; }
.explorer .legend span::before { content: ""; display: inline-block; width: .7em; height: .7em;
  margin-right: .35em; border-radius: 50%; background: var(--mark); }
.explorer #sliders { max-height: 22rem; overflow-y: auto; }
.explorer label { display: grid; grid-template-columns: 3.2rem 1fr 3.2rem; gap: .5rem;
  align-items: center; font-size: .875rem; font-variant-numeric: tabular-nums; }
@media (max-width: 46rem) { .explorer { grid-template-columns: minmax(0, 1fr); }
  .explorer .pictures { max-width: 18rem; } }
</style>
<section class="explorer">
<canvas id="map" tabindex="0" role="img" aria-describedby="keys"
  aria-label="The codes of the data, a point each."></canvas>
<div>
<div class="pictures">
<figure><canvas id="decoded"></canvas><figcaption>decoded here</figcaption></figure>
<figure><canvas id="nearest"></canvas><figcaption id="caption"></figcaption></figure>
</div>
<p id="place" aria-live="polite"></p>
<p><button id="play" type="button">Play the path</button>
<button id="clear" type="button">Clear</button></p>
<div class="legend" id="legend"></div>
<div id="sliders"></div>
<p class="faint" id="keys">A click or Enter adds a point to the path, Backspace removes one. The
arrow keys move, faster with Shift. The space bar plays.</p>
</div>
</section>
<script id="content" type="application/json">$DATA</script>
<script>
"use strict";
const content = JSON.parse(document.getElementById("content").textContent);
const element = name => document.getElementById(name);
const bytes = text => Uint8Array.from(atob(text), c => c.charCodeAt(0));
const [height, width, channels] = content.shape;
const size = height * width * channels;
const units = content.codes.units;
const codes = new Uint16Array(bytes(content.codes.bytes).buffer);
const grid = bytes(content.grid);
const strips = content.strips.map(bytes);
const data = bytes(content.data);
const known = Math.min(content.codes.rows, data.length / size);
const [across, up] = content.axes;
const middle = Array.from({ length: units }, (_, u) =>
  (content.centre[u] - content.low[u]) / (content.high[u] - content.low[u] || 1));
const at = middle.slice();
const path = [];
let timer = 0;
const map = element("map");
const points = document.createElement("canvas");
const dark = window.matchMedia("(prefers-color-scheme: dark)");
const colour = label => `hsl(${(label * 137.5 + 210) % 360} 70% ${dark.matches ? 65 : 42}%)`;
const value = u => content.low[u] + at[u] * (content.high[u] - content.low[u]);
const inside = number => Math.min(Math.max(number, 0), 1);

function between(count, place) {
  const t = inside(place) * (count - 1);
  const first = Math.min(Math.floor(t), Math.max(count - 2, 0));
  return [first, t - first, Math.min(first + 1, count - 1)];
}
function decode() {
  const [i, a, right] = between(content.side, at[across]);
  const [j, b, above] = between(content.side, at[up]);
  const corner = (row, column, k) => grid[(row * content.side + column) * size + k];
  const pixels = new Float32Array(size);
  for (let k = 0; k < size; k++) {
    pixels[k] = (1 - b) * ((1 - a) * corner(j, i, k) + a * corner(j, right, k))
      + b * ((1 - a) * corner(above, i, k) + a * corner(above, right, k));
  }
  strips.forEach((strip, u) => {
    if (u === across || u === up) return;
    const [n, c, next] = between(content.steps, at[u]);
    const [m, d, after] = between(content.steps, middle[u]);
    for (let k = 0; k < size; k++) {
      pixels[k] += (1 - c) * strip[n * size + k] + c * strip[next * size + k]
        - (1 - d) * strip[m * size + k] - d * strip[after * size + k];
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
const spot = n => [codes[n * units + across] / 65535, codes[n * units + up] / 65535];
function nearest() {
  let best = 0;
  let least = Infinity;
  for (let n = 0; n < known; n++) {
    const [x, y] = spot(n);
    const distance = (x - at[across]) ** 2 + (y - at[up]) ** 2;
    if (distance < least) { least = distance; best = n; }
  }
  return best;
}
function drawPoints() {
  const ratio = window.devicePixelRatio || 1;
  const side = Math.round(map.clientWidth * ratio);
  points.width = points.height = map.width = map.height = side;
  const ink = points.getContext("2d");
  const room = side / 7 / Math.sqrt(content.codes.rows);
  const radius = Math.min(3.5 * ratio, Math.max(1.1 * ratio, room));
  for (let n = 0; n < content.codes.rows; n++) {
    const [x, y] = spot(n);
    ink.fillStyle = colour(content.labels[n]);
    ink.beginPath();
    ink.arc(x * side, (1 - y) * side, radius, 0, 7);
    ink.fill();
  }
  ink.fillStyle = getComputedStyle(document.body).color;
  ink.globalAlpha = 0.7;
  ink.font = `${12 * ratio}px system-ui, sans-serif`;
  const gap = 6 * ratio;
  const [low, high] = [content.low, content.high].map(ends => u => ends[u].toFixed(1));
  ink.fillText(`z[${across}] = ${low(across)}`, gap, side - gap);
  ink.textAlign = "right";
  ink.fillText(high(across), side - gap, side - gap);
  if (up !== across) {
    ink.textAlign = "left";
    ink.fillText(`z[${up}] = ${high(up)}`, gap, gap + 10 * ratio);
    ink.fillText(low(up), gap, side - gap - 18 * ratio);
  }
}
function draw(n) {
  const side = map.width;
  const ink = map.getContext("2d");
  const unit = side / Math.max(map.clientWidth, 1);
  ink.clearRect(0, 0, side, side);
  ink.drawImage(points, 0, 0);
  ink.strokeStyle = ink.fillStyle = getComputedStyle(document.body).color;
  ink.lineWidth = 1.5 * unit;
  const place = code => [code[across] * side, (1 - code[up]) * side];
  ink.beginPath();
  path.forEach(code => ink.lineTo(...place(code)));
  ink.stroke();
  path.forEach(code => {
    ink.beginPath();
    ink.arc(...place(code), 4 * unit, 0, 7);
    ink.fill();
  });
  const [x, y] = spot(n);
  ink.beginPath();
  ink.arc(x * side, (1 - y) * side, 6 * unit, 0, 7);
  ink.stroke();
  const [left, top] = place(at);
  ink.beginPath();
  for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
    ink.moveTo(left + 3 * dx * unit, top + 3 * dy * unit);
    ink.lineTo(left + 11 * dx * unit, top + 11 * dy * unit);
  }
  ink.stroke();
  element("play").disabled = path.length < 2;
  element("clear").disabled = path.length === 0;
}
function show() {
  const n = nearest();
  paint(element("decoded"), decode());
  paint(element("nearest"), data.subarray(n * size, (n + 1) * size));
  const label = content.labelled ? `, label ${content.labels[n]}` : "";
  element("caption").textContent = `data point ${n}${label}`;
  const shown = across === up ? [across] : [across, up];
  element("place").textContent = shown.map(u => `z[${u}] = ${value(u).toFixed(2)}`).join(", ");
  document.querySelectorAll("#sliders label").forEach((row, u) => {
    row.children[1].value = at[u];
    row.children[2].textContent = value(u).toFixed(2);
  });
  draw(n);
}
function move(x, y) {
  at[across] = inside(x);
  if (up !== across) at[up] = inside(y);
  show();
}
function place(event) {
  const box = map.getBoundingClientRect();
  return [(event.clientX - box.left) / box.width, 1 - (event.clientY - box.top) / box.height];
}
function stop() {
  cancelAnimationFrame(timer);
  timer = 0;
  element("play").textContent = "Play the path";
}
function play() {
  if (timer) return stop();
  if (path.length < 2) return;
  element("play").textContent = "Stop";
  const start = performance.now();
  const frame = now => {
    const t = Math.max(now - start, 0) / 1500;
    const leg = Math.min(Math.floor(t), path.length - 2);
    const share = Math.min(t - leg, 1);
    for (let u = 0; u < units; u++) {
      at[u] = path[leg][u] + share * (path[leg + 1][u] - path[leg][u]);
    }
    show();
    if (t >= path.length - 1) return stop();
    timer = requestAnimationFrame(frame);
  };
  timer = requestAnimationFrame(frame);
}
function add() {
  path.push(at.slice());
  show();
}
map.addEventListener("pointermove", event => { if (!timer) move(...place(event)); });
map.addEventListener("pointerdown", event => { stop(); move(...place(event)); add(); });
map.addEventListener("keydown", event => {
  const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
  const step = steps[event.key];
  const length = event.shiftKey ? 0.1 : 0.02;
  if (step) move(at[across] + step[0] * length, at[up] + step[1] * length);
  else if (event.key === " ") play();
  else if (event.key === "Enter") add();
  else if (event.key === "Backspace") { path.pop(); show(); }
  else return;
  event.preventDefault();
});
element("play").addEventListener("click", play);
element("clear").addEventListener("click", () => { stop(); path.length = 0; show(); });
const labels = [...new Set(content.labels)].sort((a, b) => a - b);
const named = content.labelled && labels.length <= 30 ? labels : [];
named.forEach(label => element("legend").append(document.createElement("span")));
function colourAll() {
  named.forEach((label, i) => {
    const mark = element("legend").children[i];
    mark.textContent = label;
    mark.style.setProperty("--mark", colour(label));
  });
  drawPoints();
  show();
}
strips.forEach((_, u) => {
  const row = document.createElement("label");
  const input = document.createElement("input");
  Object.assign(input, { type: "range", min: 0, max: 1, step: 0.001, value: at[u] });
  input.addEventListener("input", () => { at[u] = Number(input.value); show(); });
  row.append(document.createElement("span"), input, document.createElement("output"));
  row.firstChild.textContent = `z[${u}]`;
  element("sliders").append(row);
});
dark.addEventListener("change", colourAll);
window.addEventListener("resize", colourAll);
colourAll();
</script>
"""
