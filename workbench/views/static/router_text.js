// Tokens with their expert's number; a click or a key chooses a token, whose experts in all layers stand in the table.
const NONE = 65535;
const tint = (expert) => `hsla(${Math.round((expert * 137.5) % 360)}, 70%, 50%, 0.32)`;

function make(tag, className, parent, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  parent?.append(made);
  return made;
}

function read(model) {
  const [routers, tokens, top, experts] = model.get("sizes");
  const bytes = (name) => model.get(name);
  const wide = (view) => (i) => (view.byteLength ? view.getUint16(2 * i, true) : NONE);
  const chosen = wide(bytes("chosen"));
  const other = wide(bytes("other"));
  const shares = bytes("shares");
  return {
    routers,
    tokens,
    experts,
    first: (r, t) => chosen((r * tokens + t) * top),
    other: (r, t) => (other(r * tokens + t)),
    selected: (r, t) => Array.from({ length: top }, (_, k) => chosen((r * tokens + t) * top + k)).filter((e) => e !== NONE),
    share: (r, t, e) => shares.getUint8((r * tokens + t) * experts + e) / 255,
  };
}

function slider(name, parent, onMove) {
  const label = make("label", "wb-router-slider", parent);
  const title = make("span", "", label);
  const input = make("input", "", label);
  input.type = "range";
  input.min = 0;
  input.setAttribute("data-lm-suppress-shortcuts", "true"); // else JupyterLab takes the arrow keys
  input.addEventListener("input", () => onMove(Number(input.value)));
  const set = (value, most, text) => {
    input.max = most;
    input.value = value;
    input.disabled = most < 1;
    title.textContent = `${name}: ${text}`;
    input.setAttribute("aria-label", name);
    input.setAttribute("aria-valuetext", text);
  };
  return set;
}

function render({ model, el }) {
  el.classList.add("wb-router");
  const save = (name, value) => {
    model.set(name, value);
    model.save_changes();
  };
  const controls = make("div", "wb-router-controls", el);
  const layer = slider("Router", controls, (value) => save("router", value));
  const step = slider("Step of the generation", controls, (value) => {
    const token = model.get("steps").lastIndexOf(value);
    model.set("step", value);
    save("token", Math.max(0, token));
  });
  const text = make("div", "wb-router-text", el);
  text.setAttribute("role", "listbox");
  text.setAttribute("aria-label", "Tokens with the number of their expert; arrow keys choose one");
  const strip = make("div", "wb-router-strip", el);
  strip.setAttribute("aria-live", "polite");
  let data = read(model);

  function choose(t, focus) {
    const last = model.get("tokens").length - 1;
    save("token", Math.min(last, Math.max(0, t)));
    if (focus) text.children[model.get("token")]?.focus();
  }
  function onKey(event) {
    const t = model.get("token");
    const target = {
      ArrowRight: t + 1, ArrowDown: t + 1, ArrowLeft: t - 1, ArrowUp: t - 1, Home: 0, End: data.tokens - 1,
      Enter: t, " ": t,
    }[event.key];
    if (target === undefined) return;
    event.preventDefault();
    event.stopPropagation();
    choose(target, true);
  }
  text.addEventListener("keydown", onKey);
  text.addEventListener("click", (event) => {
    const token = event.target.closest("[role=option]");
    if (token) choose([...text.children].indexOf(token), true);
  });

  function build() {
    data = read(model);
    text.replaceChildren();
    model.get("tokens").forEach((piece) => {
      const token = make("span", "wb-router-token", text);
      token.setAttribute("role", "option");
      make("span", "", token, piece.replace(/\n/g, "⏎\n") || "∅");
      make("sub", "", token);
    });
    paint();
  }

  function paint() {
    const r = Math.min(model.get("router"), data.routers - 1);
    const steps = model.get("steps");
    const now = model.get("step");
    layer(r, data.routers - 1, model.get("routers")[r]);
    const most = Math.max(...steps);
    step(now, most, most < 1 ? "the text was read at once" : now === 0 ? "the prompt" : `token ${now} of ${most}`);
    [...text.children].forEach((token, t) => {
      const expert = data.first(r, t);
      const other = data.other(r, t);
      const moved = other !== NONE && other !== expert;
      token.style.backgroundColor = tint(expert);
      token.classList.toggle("wb-router-later", steps[t] > now);
      token.classList.toggle("wb-router-written", steps[t] > 0);
      token.classList.toggle("wb-router-moved", moved);
      token.lastChild.textContent = moved ? `${expert}→${other}` : String(expert);
      const seen = `${token.firstChild.textContent}, expert ${expert}${moved ? `, in the other checkpoint ${other}` : ""}`;
      token.setAttribute("aria-label", seen);
    });
    mark();
  }

  function mark() {
    const chosen = model.get("token");
    [...text.children].forEach((token, t) => {
      token.tabIndex = t === chosen ? 0 : -1;
      token.setAttribute("aria-selected", String(t === chosen));
    });
    drawStrip(chosen);
  }

  function drawStrip(t) {
    strip.replaceChildren();
    if (t >= data.tokens) return;
    const table = make("table", "wb-router-table", strip);
    make("caption", "", table, `Token ${t + 1} of ${data.tokens}, “${model.get("tokens")[t]}”: percent of each router's softmax; ● stands at the experts that were taken`);
    const head = make("tr", "", make("thead", "", table));
    make("th", "", head, "router");
    for (let e = 0; e < data.experts; e += 1) make("th", "", head, `E${e}`);
    const body = make("tbody", "", table);
    model.get("routers").forEach((name, r) => {
      const row = make("tr", r === model.get("router") ? "wb-router-now" : "", body);
      make("th", "", row, name).scope = "row";
      const selected = data.selected(r, t);
      for (let e = 0; e < data.experts; e += 1) {
        if (e >= model.get("experts")[r]) {
          make("td", "", row, "");
          continue;
        }
        const share = data.share(r, t, e);
        const taken = selected.includes(e);
        const cell = make("td", taken ? "wb-router-taken" : "", row, `${taken ? "● " : ""}${Math.round(100 * share)}`);
        cell.style.backgroundColor = `color-mix(in srgb, var(--wb-accent, #1976d2) ${Math.round(60 * share)}%, transparent)`;
      }
    });
  }

  model.on("change:shares change:other", build);
  model.on("change:router change:step", paint);
  model.on("change:token", mark);
  build();
  return () => {
    model.off("change:shares change:other", build);
    model.off("change:router change:step", paint);
    model.off("change:token", mark);
  };
}

export default { render };
