// A curve over depth: draggable points, each a slider of its own for the keyboard; `chosen` follows a finished move.
const SVG = "http://www.w3.org/2000/svg";
const BOX = { left: 44, top: 12, width: 300, height: 96 };
const LEAST = 3;
const MOST = 6;

function node(tag, attributes, parent) {
  const made = document.createElementNS(SVG, tag);
  Object.entries(attributes).forEach(([name, value]) => made.setAttribute(name, value));
  parent?.append(made);
  return made;
}

function resample(points, count) {
  return Array.from({ length: count }, (_, i) => {
    const at = (i / (count - 1)) * (points.length - 1);
    const low = Math.min(Math.floor(at), points.length - 2);
    return Number((points[low] + (at - low) * (points[low + 1] - points[low])).toFixed(4));
  });
}

const x = (i, count) => BOX.left + (BOX.width * i) / (count - 1);
const y = (value) => BOX.top + BOX.height * (1 - value);
const clip = (value) => Number(Math.min(1, Math.max(0, value)).toFixed(4));

function axes(svg) {
  [0, 0.5, 1].forEach((value) => {
    node("line", { x1: BOX.left, x2: BOX.left + BOX.width, y1: y(value), y2: y(value), class: "wb-grid" }, svg);
    node("text", { x: BOX.left - 8, y: y(value) + 4, "text-anchor": "end" }, svg).textContent = value.toFixed(1);
  });
  const below = BOX.top + BOX.height + 20;
  node("text", { x: BOX.left, y: below }, svg).textContent = "first layer";
  node("text", { x: BOX.left + BOX.width, y: below, "text-anchor": "end" }, svg).textContent = "last layer";
}

function render({ model, el }) {
  el.classList.add("wb-depth");
  const head = document.createElement("div");
  head.className = "wb-depth-head";
  const title = document.createElement("span");
  title.textContent = `${model.get("label")} over depth`;
  const button = (sign, name, change) => {
    const made = document.createElement("button");
    Object.assign(made, { type: "button", textContent: sign, title: name });
    made.setAttribute("aria-label", name);
    made.addEventListener("click", () => {
      const count = model.get("points").length + change;
      if (count >= LEAST && count <= MOST) set(resample(model.get("points"), count), true);
    });
    return made;
  };
  const fewer = button("−", "Fewer points", -1);
  const more = button("+", "More points", 1);
  head.append(title, fewer, more);
  const svg = node("svg", { viewBox: "0 0 364 136", class: "wb-svg", role: "group" });
  svg.setAttribute("aria-label", title.textContent);
  axes(svg);
  const line = node("polyline", { class: "wb-depth-line", fill: "none" }, svg);
  const handles = node("g", {}, svg);
  el.append(head, svg);

  function set(points, finished) {
    model.set("points", points);
    if (finished) model.set("chosen", points);
    model.save_changes();
  }
  function move(i, value, finished) {
    set(model.get("points").map((old, j) => (j === i ? clip(value) : old)), finished);
  }
  function onKey(event, i) {
    const now = model.get("points")[i];
    const step = model.get("step");
    const target = {
      ArrowUp: now + step, ArrowRight: now + step, ArrowDown: now - step, ArrowLeft: now - step,
      PageUp: now + 0.25, PageDown: now - 0.25, Home: 0, End: 1,
    }[event.key];
    if (target === undefined) return;
    event.preventDefault();
    event.stopPropagation();
    move(i, target, true);
  }
  function onDrag(event, i) {
    const area = svg.getBoundingClientRect();
    const inside = ((event.clientY - area.top) / area.height) * 136;
    move(i, 1 - (inside - BOX.top) / BOX.height, false);
  }
  function makeHandle(i) {
    const handle = node("g", { role: "slider", tabindex: 0, class: "wb-handle" }, handles);
    handle.setAttribute("aria-valuemin", "0");
    handle.setAttribute("aria-valuemax", "1");
    handle.setAttribute("aria-orientation", "vertical");
    node("circle", { r: 14, class: "wb-handle-area" }, handle);
    node("circle", { r: 6, class: "wb-handle-dot" }, handle);
    handle.addEventListener("keydown", (event) => onKey(event, i));
    handle.addEventListener("pointerdown", (event) => {
      handle.setPointerCapture(event.pointerId);
      handle.focus();
    });
    handle.addEventListener("pointermove", (event) => {
      if (handle.hasPointerCapture(event.pointerId)) onDrag(event, i);
    });
    handle.addEventListener("pointerup", () => set(model.get("points"), true));
  }
  function show() {
    const points = model.get("points");
    while (handles.childElementCount > points.length) handles.lastChild.remove();
    while (handles.childElementCount < points.length) makeHandle(handles.childElementCount);
    [...handles.children].forEach((handle, i) => {
      handle.setAttribute("transform", `translate(${x(i, points.length)} ${y(points[i])})`);
      handle.setAttribute("aria-label", `${model.get("label")} at point ${i + 1} of ${points.length}`);
      handle.setAttribute("aria-valuenow", String(points[i]));
      handle.setAttribute("aria-valuetext", points[i].toFixed(2));
    });
    line.setAttribute("points", points.map((value, i) => `${x(i, points.length)},${y(value)}`).join(" "));
    fewer.disabled = points.length <= LEAST;
    more.disabled = points.length >= MOST;
  }
  model.on("change:points", show);
  show();
  return () => model.off("change:points", show);
}

export default { render };
