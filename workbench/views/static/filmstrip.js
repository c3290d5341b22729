// Rows of text: arrow keys move between them, Enter or a click chooses one. Texts are set as text, never as HTML.
function row(list, i, choose) {
  const made = document.createElement("li");
  made.className = "wb-frame";
  ["label", "shares", "mark", "rest"].forEach((name) => {
    const span = document.createElement("span");
    span.className = `wb-frame-${name}`;
    made.append(span, " ");
  });
  made.addEventListener("click", () => choose(i));
  made.addEventListener("focus", () => { list.querySelectorAll("li").forEach((item) => (item.tabIndex = item === made ? 0 : -1)); });
  made.tabIndex = i === 0 ? 0 : -1;
  return made;
}

function fill(item, frame) {
  const [label, shares, mark, rest] = item.children;
  const set = (node, text) => { if (node.textContent !== text) node.textContent = text; };
  set(label, frame.label);
  set(shares, frame.shares);
  set(mark, frame.parts ? "▸" : "");
  const spoken = { role: "img", "aria-label": "parts from the row above here" };
  Object.entries(spoken).forEach(([name, value]) => (frame.parts ? mark.setAttribute(name, value) : mark.removeAttribute(name)));
  set(rest, frame.rest);
}

function render({ model, el }) {
  el.classList.add("wb-film");
  const caption = document.createElement("div");
  caption.className = "wb-film-caption";
  const list = document.createElement("ul");
  el.append(caption, list);

  function choose(i) {
    if (!model.get("pickable")) return;
    model.set("chosen", i);
    model.save_changes();
  }
  function onKey(event) {
    const items = [...list.children];
    const at = items.indexOf(document.activeElement);
    const target = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: items.length - 1 }[event.key];
    if (at < 0) return;
    if (target !== undefined) items[Math.min(items.length - 1, Math.max(0, target))].focus();
    else if (event.key === "Enter" || event.key === " ") choose(at);
    else return;
    event.preventDefault();
    event.stopPropagation();
  }
  function show() {
    const frames = model.get("frames");
    const pickable = model.get("pickable");
    caption.textContent = model.get("caption") + (pickable ? ". Choose a row with Enter or a click." : "");
    list.setAttribute("role", pickable ? "listbox" : "list");
    list.setAttribute("aria-label", model.get("caption"));
    while (list.childElementCount > frames.length) list.lastChild.remove();
    while (list.childElementCount < frames.length) list.append(row(list, list.childElementCount, choose));
    [...list.children].forEach((item, i) => {
      const chosen = i === model.get("chosen");
      fill(item, frames[i]);
      item.setAttribute("role", pickable ? "option" : "listitem");
      if (pickable) item.setAttribute("aria-selected", String(chosen));
      item.classList.toggle("wb-chosen", chosen);
    });
  }
  const names = ["change:frames", "change:caption", "change:chosen", "change:pickable"];
  names.forEach((name) => model.on(name, show));
  list.addEventListener("keydown", onKey);
  show();
  return () => names.forEach((name) => model.off(name, show));
}

export default { render };
