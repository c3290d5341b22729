// A histogram whose borders between stages are dragged or moved by arrow keys; `chosen` follows a finished move.
const SVG = "http://www.w3.org/2000/svg";
const BOX = { left: 16, top: 14, width: 560, height: 130 };

function node(tag, attributes, parent) {
  const made = document.createElementNS(SVG, tag);
  Object.entries(attributes).forEach(([name, value]) => made.setAttribute(name, value));
  parent?.append(made);
  return made;
}

function render({ model, el }) {
  const low = model.get("low");
  const span = model.get("high") - low || 1;
  const x = (value) => BOX.left + (BOX.width * (value - low)) / span;
  const bottom = BOX.top + BOX.height;
  const svg = node("svg", { viewBox: "0 0 592 196", class: "wb-svg", role: "group" });
  svg.setAttribute("aria-label", `Histogram of ${model.get("label")} with borders between stages`);
  svg.style.maxWidth = "640px"; // wider, its letters would outgrow the page's
  el.append(svg);

  const counts = model.get("counts");
  const most = Math.max(1, ...counts);
  const step = BOX.width / counts.length;
  counts.forEach((count, i) => {
    const height = (BOX.height * count) / most;
    const box = { x: BOX.left + i * step, y: bottom - height, width: Math.max(0.5, step - 1), height };
    const bar = node("rect", { ...box, fill: "#2b7bba", "fill-opacity": 0.55 }, svg);
    node("title", {}, bar).textContent = `${count} examples`;
  });
  node("line", { x1: BOX.left, x2: BOX.left + BOX.width, y1: bottom, y2: bottom, class: "wb-grid" }, svg);
  [0, 0.25, 0.5, 0.75, 1].forEach((part) => {
    const at = { x: BOX.left + BOX.width * part, y: bottom + 16, "text-anchor": "middle" };
    node("text", at, svg).textContent = (low + span * part).toFixed(2);
  });
  node("text", { x: BOX.left + BOX.width / 2, y: bottom + 36, "text-anchor": "middle" }, svg).textContent = model.get("label");

  function set(borders, finished) {
    model.set("borders", borders);
    if (finished) model.set("chosen", borders);
    model.save_changes();
  }
  function move(i, value, finished) {
    const borders = [...model.get("borders")];
    const gap = span / 500;
    const least = i ? borders[i - 1] + gap : low + gap;
    const last = i + 1 < borders.length ? borders[i + 1] - gap : low + span - gap;
    borders[i] = Math.min(last, Math.max(least, value));
    set(borders, finished);
  }
  const handles = model.get("borders").map((_, i) => {
    const handle = node("g", { role: "slider", tabindex: 0, class: "wb-handle wb-border" }, svg);
    handle.setAttribute("aria-label", `Border between stage ${i + 1} and stage ${i + 2}`);
    handle.setAttribute("aria-valuemin", String(low));
    handle.setAttribute("aria-valuemax", String(low + span));
    node("rect", { x: -9, y: BOX.top - 10, width: 18, height: BOX.height + 12, class: "wb-handle-area" }, handle);
    node("line", { x1: 0, x2: 0, y1: BOX.top - 8, y2: bottom, class: "wb-depth-line" }, handle);
    node("circle", { r: 6, cy: BOX.top - 6, class: "wb-handle-dot" }, handle);
    handle.addEventListener("keydown", (event) => {
      const now = model.get("borders")[i];
      const small = span / 100;
      const target = {
        ArrowRight: now + small, ArrowUp: now + small, ArrowLeft: now - small, ArrowDown: now - small,
        PageUp: now + span / 10, PageDown: now - span / 10, Home: low, End: low + span,
      }[event.key];
      if (target === undefined) return;
      event.preventDefault();
      event.stopPropagation();
      move(i, target, true);
    });
    handle.addEventListener("pointerdown", (event) => {
      handle.setPointerCapture(event.pointerId);
      handle.focus();
    });
    handle.addEventListener("pointermove", (event) => {
      if (!handle.hasPointerCapture(event.pointerId)) return;
      const area = svg.getBoundingClientRect();
      const inside = ((event.clientX - area.left) / area.width) * 592;
      move(i, low + (span * (inside - BOX.left)) / BOX.width, false);
    });
    handle.addEventListener("pointerup", () => set(model.get("borders"), true));
    return handle;
  });
  function show() {
    model.get("borders").forEach((value, i) => {
      handles[i].setAttribute("transform", `translate(${x(value)} 0)`);
      handles[i].setAttribute("aria-valuenow", value.toFixed(3));
    });
  }
  model.on("change:borders", show);
  show();
  return () => model.off("change:borders", show);
}

export default { render };
