// Curves over depth: drag across the selected one to draw it, or move its points with the arrow keys; each point is a
// slider for the keyboard. `chosen` follows a finished move.
const SVG = "http://www.w3.org/2000/svg";
const BOX = { left: 44, top: 14, width: 500, height: 170, all: [560, 226] };
const DASHES = ["", "7 4", "2 3", "9 3 2 3", "1 5"];

function node(tag, attributes, parent) {
  const made = document.createElementNS(SVG, tag);
  Object.entries(attributes).forEach(([name, value]) => made.setAttribute(name, value));
  parent?.append(made);
  return made;
}

const x = (i, count) => BOX.left + (count > 1 ? (BOX.width * i) / (count - 1) : 0);

function render({ model, el }) {
  el.classList.add("wb-curves-editor");
  const caption = document.createElement("div");
  caption.className = "wb-curve-caption";
  const picker = document.createElement("div");
  picker.setAttribute("role", "radiogroup");
  picker.setAttribute("aria-label", "Curve to draw");
  const svg = node("svg", { viewBox: `0 0 ${BOX.all[0]} ${BOX.all[1]}`, class: "wb-svg", role: "group" });
  const grid = node("g", {}, svg);
  const lines = node("g", {}, svg);
  const handles = node("g", {}, svg);
  el.append(caption, picker, svg);

  // Weights beyond 0 to 1 widen the picture; while a curve is drawn its scale stays.
  let range = [0, 1];
  const y = (value) => BOX.top + BOX.height * (1 - (value - range[0]) / (range[1] - range[0]));
  const clip = (value) => Number(Math.min(range[1], Math.max(range[0], value)).toFixed(4));
  const current = () => model.get("curves")[model.get("selected")] ?? [];

  function set(changes, finished) {
    const curves = model.get("curves").map((curve, k) =>
      k !== model.get("selected") ? curve : curve.map((old, i) => (i in changes ? clip(changes[i]) : old)));
    model.set("curves", curves);
    if (finished) model.set("chosen", curves);
    model.save_changes();
  }
  function onKey(event, i) {
    const now = current()[i];
    const step = model.get("step");
    const next = { ArrowRight: i + 1, ArrowLeft: i - 1 }[event.key];
    const target = {
      ArrowUp: now + step, ArrowDown: now - step, PageUp: now + 0.25, PageDown: now - 0.25, Home: range[0], End: range[1],
    }[event.key];
    if (next === undefined && target === undefined) return;
    event.preventDefault();
    event.stopPropagation();
    if (next !== undefined) handles.children[next]?.focus();
    else set({ [i]: target }, true);
  }

  let drawing = false;
  function draw(event) {
    const area = svg.getBoundingClientRect();
    const across = ((event.clientX - area.left) / area.width) * BOX.all[0];
    const down = ((event.clientY - area.top) / area.height) * BOX.all[1];
    const count = current().length;
    const i = Math.round(((across - BOX.left) / BOX.width) * (count - 1));
    const value = range[0] + (1 - (down - BOX.top) / BOX.height) * (range[1] - range[0]);
    set({ [Math.min(count - 1, Math.max(0, i))]: value }, false);
  }
  svg.addEventListener("pointerdown", (event) => { drawing = true; svg.setPointerCapture(event.pointerId); draw(event); });
  svg.addEventListener("pointermove", (event) => { if (drawing) draw(event); });
  const stop = () => { if (drawing) { drawing = false; set({}, true); show(); } };
  svg.addEventListener("pointerup", stop);
  svg.addEventListener("pointercancel", stop);

  function makeHandle(i) {
    const handle = node("g", { role: "slider", tabindex: 0, class: "wb-handle", "aria-orientation": "vertical" }, handles);
    node("circle", { r: 14, class: "wb-handle-area" }, handle);
    node("circle", { r: 6, class: "wb-handle-dot" }, handle);
    handle.addEventListener("keydown", (event) => onKey(event, i));
    handle.addEventListener("pointerdown", () => handle.focus());
  }
  function makeChoice(label, k) {
    const choice = document.createElement("label");
    const radio = document.createElement("input");
    Object.assign(radio, { type: "radio", name: `wb-${model.model_id ?? "curve"}`, checked: k === model.get("selected") });
    radio.addEventListener("change", () => { model.set("selected", k); model.save_changes(); });
    const sample = node("svg", { viewBox: "0 0 30 6", width: 30, height: 6, "aria-hidden": "true" });
    node("line", { x1: 0, x2: 30, y1: 3, y2: 3, class: "wb-curve-line", "stroke-dasharray": DASHES[k % 5] }, sample);
    choice.append(radio, sample, label);
    picker.append(choice);
  }
  function showChoices() {
    picker.replaceChildren();
    const labels = model.get("labels");
    picker.hidden = labels.length < 2;
    labels.forEach(makeChoice);
    show();
  }
  function show() {
    const curves = model.get("curves");
    const selected = model.get("selected");
    const points = current();
    const all = curves.flat();
    if (!drawing) range = [Math.floor(Math.min(0, ...all)), Math.ceil(Math.max(1, ...all))];
    caption.textContent = `${model.get("caption")} over depth`;
    svg.setAttribute("aria-label", caption.textContent);
    grid.replaceChildren();
    [0, 0.25, 0.5, 0.75, 1].forEach((part) => {
      const value = range[0] + part * (range[1] - range[0]);
      node("line", { x1: BOX.left, x2: BOX.left + BOX.width, y1: y(value), y2: y(value), class: "wb-grid" }, grid);
      node("text", { x: BOX.left - 8, y: y(value) + 4, "text-anchor": "end" }, grid).textContent = String(value);
    });
    const below = BOX.top + BOX.height + 24;
    node("text", { x: BOX.left, y: below }, grid).textContent = points.length > 1 ? "first layer" : "one value: outside the layers";
    node("text", { x: BOX.left + BOX.width, y: below, "text-anchor": "end" }, grid).textContent = points.length > 1 ? "last layer" : "";
    lines.replaceChildren();
    curves.forEach((curve, k) => {
      const spread = curve.length > 1 ? curve : [curve[0], curve[0]];
      const path = spread.map((value, i) => `${x(i, spread.length)},${y(value)}`).join(" ");
      const kind = k === selected ? "wb-curve-line wb-curve-selected" : "wb-curve-line";
      node("polyline", { points: path, class: kind, fill: "none", "stroke-dasharray": DASHES[k % 5] }, lines);
    });
    while (handles.childElementCount > points.length) handles.lastChild.remove();
    while (handles.childElementCount < points.length) makeHandle(handles.childElementCount);
    [...handles.children].forEach((handle, i) => {
      handle.setAttribute("transform", `translate(${x(i, points.length)} ${y(points[i])})`);
      handle.setAttribute("aria-label", `${model.get("caption")}, ${model.get("labels")[selected]}, point ${i + 1} of ${points.length}`);
      handle.setAttribute("aria-valuemin", String(range[0]));
      handle.setAttribute("aria-valuemax", String(range[1]));
      handle.setAttribute("aria-valuenow", String(points[i]));
      handle.setAttribute("aria-valuetext", points[i].toFixed(2));
    });
    [...picker.querySelectorAll("input")].forEach((radio, k) => { radio.checked = k === selected; });
  }
  const redraw = ["change:curves", "change:selected", "change:caption"];
  redraw.forEach((name) => model.on(name, show));
  model.on("change:labels", showChoices);
  showChoices();
  return () => {
    redraw.forEach((name) => model.off(name, show));
    model.off("change:labels", showChoices);
  };
}

export default { render };
