"use strict";
const data = JSON.parse(document.getElementById("data").textContent);

/** A number for people, as the page's own text has it. */
function shown(value, share) {
  if (share) return (100 * value).toFixed(1) + " %";
  return Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(4)));
}

/** Index of the number nearest to `wanted` in an ascending list. */
function nearest(list, wanted) {
  let low = 0, high = list.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (list[middle] < wanted) low = middle; else high = middle;
  }
  return Math.abs(list[low] - wanted) <= Math.abs(list[high] - wanted) ? low : high;
}

/** Reads a chart's values where the pointer or the arrow keys are. */
function readable(figure) {
  const chart = data.charts[figure.dataset.chart];
  const plot = figure.querySelector(".plot"), line = figure.querySelector(".cursor"), out = figure.querySelector(".readout");
  const main = chart.series.reduce((a, b) => (b.x.length > a.x.length ? b : a));
  let place = main.x.length - 1;
  plot.setAttribute("aria-valuemax", place);

  function show(index) {
    place = Math.max(0, Math.min(main.x.length - 1, index));
    const x = main.x[place];
    line.hidden = false;
    line.style.left = (100 * x / chart.width) + "%";
    const values = chart.series.map((series) => {
      const at = nearest(series.x, x);
      return Math.abs(series.x[at] - x) < 12 ? series.label + " " + shown(series.value[at], chart.share) : null;
    }).filter(Boolean);
    const where = chart.axis + " " + shown(main.at[place]);
    out.replaceChildren(Object.assign(document.createElement("b"), { textContent: where }), " · " + values.join(" · "));
    plot.setAttribute("aria-valuenow", place);
    plot.setAttribute("aria-valuetext", where + ": " + values.join(", "));
  }

  function follow(event) {
    const box = plot.getBoundingClientRect();
    show(nearest(main.x, (event.clientX - box.left) / box.width * chart.width));
  }
  plot.addEventListener("pointermove", follow);
  plot.addEventListener("pointerdown", follow);
  plot.addEventListener("focus", () => show(place));
  plot.addEventListener("blur", () => { line.hidden = true; });
  plot.addEventListener("pointerleave", () => { if (document.activeElement !== plot) line.hidden = true; });
  const large = Math.max(1, Math.round(main.x.length / 10));
  const moves = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -large, PageUp: large, Home: -1e9, End: 1e9 };
  plot.addEventListener("keydown", (event) => {
    if (!(event.key in moves)) return;
    event.preventDefault();
    show(place + moves[event.key]);
  });
  plot.setAttribute("aria-valuenow", place);
}

/** The map: thumbnails under the pointer, under a finger, or by the arrow keys; buttons show a class alone. */
function mapped(field) {
  const map = data.map, ring = field.querySelector(".ring"), tip = field.querySelector(".tip");
  const thumb = tip.querySelector(".thumb"), words = tip.querySelector("figcaption");
  const status = document.getElementById("map-status"), only = new Set();
  let place = -1;
  thumb.style.backgroundImage = 'url("' + map.sprite + '")';
  thumb.style.backgroundSize = 100 * map.columns + "%";
  if (map.side < 48) thumb.style.imageRendering = "pixelated";

  const visible = (i) => !only.size || only.has(map.labels[i]);
  function describe(i) {
    const lines = [];
    if (map.labels[i] >= 0) lines.push(map.names[map.labels[i]]);
    if (map.predicted) {
      const right = map.predicted[i] === map.labels[i], taken = "kNN: " + map.names[map.predicted[i]];
      lines.push(map.labels[i] < 0 ? taken : right ? "✓ kNN agrees" : "✗ " + taken);
    }
    lines.push(map.files ? map.files[i] : map.kind + " " + map.index[i]);
    return lines.join("\n");
  }

  function show(i, spoken) {
    place = i;
    const scale = field.clientWidth / map.width, x = map.x[i] * scale, y = map.y[i] * scale;
    ring.hidden = tip.hidden = false;
    ring.style.left = x + "px";
    ring.style.top = y + "px";
    const last = map.columns - 1;
    const column = i % map.columns, row = Math.floor(i / map.columns);
    thumb.style.backgroundPosition = (last ? 100 * column / last : 0) + "% " + (last ? 100 * row / last : 0) + "%";
    words.textContent = describe(i);
    const left = x + 16 + tip.offsetWidth > field.clientWidth ? x - 16 - tip.offsetWidth : x + 16;
    tip.style.left = Math.max(0, Math.min(left, field.clientWidth - tip.offsetWidth)) + "px";
    const below = y + 16 + tip.offsetHeight <= field.clientHeight;
    tip.style.top = Math.max(0, below ? y + 16 : y - 16 - tip.offsetHeight) + "px";
    if (spoken) status.textContent = words.textContent.replaceAll("\n", ", ");
  }

  function hide() {
    ring.hidden = tip.hidden = true;
  }

  /** The mark for which cost(dx, dy) is smallest; Infinity rules a mark out. */
  function best(x, y, cost) {
    let found = -1, least = Infinity;
    for (let i = 0; i < map.x.length; i++) {
      if (!visible(i)) continue;
      const value = cost(map.x[i] - x, map.y[i] - y, i);
      if (value < least) { least = value; found = i; }
    }
    return found;
  }

  function follow(event) {
    const box = field.getBoundingClientRect(), scale = map.width / box.width, reach = 28 * scale;
    const found = best((event.clientX - box.left) * scale, (event.clientY - box.top) * scale,
      (dx, dy) => { const far = Math.hypot(dx, dy); return far > reach ? Infinity : far; });
    if (found < 0) hide(); else show(found, false);
  }

  const directions = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  field.addEventListener("keydown", (event) => {
    if (event.key === "Escape") return hide();
    if (!(event.key in directions)) return;
    event.preventDefault();
    if (place < 0 || !visible(place)) return start();
    const [right, down] = directions[event.key];
    const found = best(map.x[place], map.y[place], (dx, dy, i) => {
      const ahead = dx * right + dy * down, aside = Math.abs(dx * down) + Math.abs(dy * right);
      return i === place || ahead <= 0 ? Infinity : ahead + 2 * aside;
    });
    show(found < 0 ? place : found, true);
  });
  function start() {
    const found = best(map.width / 2, map.width / 2, Math.hypot);
    if (found >= 0) show(found, true);
  }
  field.addEventListener("focus", () => {
    if (!field.matches(":focus-visible")) return; // a click shows what it hit
    if (place >= 0 && visible(place)) show(place, true); else start();
  });
  field.addEventListener("blur", hide);
  field.addEventListener("pointermove", follow);
  field.addEventListener("pointerdown", follow);
  field.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") hide(); });

  function fade() {
    for (const group of field.querySelectorAll('g[id^="mark-"]')) {
      group.classList.toggle("faded", only.size > 0 && !only.has(Number(group.id.slice(5))));
    }
    hide();
  }
  for (const button of document.querySelectorAll("button[data-class]")) {
    button.addEventListener("click", () => {
      const label = Number(button.dataset.class), on = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", on);
      if (on) only.add(label); else only.delete(label);
      fade();
    });
  }
  const select = document.getElementById("class"); // instead of so many buttons
  if (select) select.addEventListener("change", () => {
    only.clear();
    if (select.value !== "") only.add(Number(select.value));
    fade();
  });
}

/** The search box over a list of images: those of which every word is said; without words the first ones. */
function searchable(list) {
  const items = [...list.querySelectorAll("[data-text]")], find = list.querySelector(".find");
  if (!find) return;
  const input = find.querySelector("input"), button = find.querySelector("button"), status = find.querySelector("[role]");
  let first = Number(list.dataset.first);

  function update() {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    const found = items.filter((item) => words.every((word) => item.dataset.text.includes(word)));
    const shown = new Set(words.length ? found : found.slice(0, first));
    items.forEach((item) => { item.hidden = !shown.has(item); });
    button.hidden = shown.size === found.length;
    status.textContent = words.length ? found.length + " of " + items.length : "";
  }
  input.addEventListener("input", update);
  button.addEventListener("click", () => { first = items.length; update(); });
  find.hidden = false;
  update();
}

document.querySelectorAll("[data-chart]").forEach(readable);
document.querySelectorAll(".found").forEach(searchable);
if (data.map) mapped(document.querySelector(".field"));
