// Sliders for the weights of a blend: `weights` follows every movement, `chosen` only one that has come to rest.
const REST_MS = 140;

function shares(weights) {
  const total = weights.reduce((sum, weight) => sum + weight, 0);
  return weights.map((weight) => (total > 0 ? weight / total : 0));
}

function text(parents, weights) {
  return shares(weights).map((share, i) => `${parents[i]} ${share.toFixed(2)}`).join(", ");
}

function rangeInput(label, step) {
  const input = document.createElement("input");
  Object.assign(input, { type: "range", min: 0, max: 1, step });
  input.setAttribute("role", "slider");
  input.setAttribute("aria-label", label);
  input.setAttribute("aria-valuemin", "0");
  input.setAttribute("aria-valuemax", "1");
  return input;
}

function named(tag, className, content = "") {
  const node = document.createElement(tag);
  node.className = className;
  node.textContent = content;
  return node;
}

function render({ model, el }) {
  const parents = model.get("parents");
  const two = parents.length === 2;
  const inputs = [];
  const values = [];
  let timer;

  el.classList.add("wb-weights", two ? "wb-weights-two" : "wb-weights-many");
  // JupyterLab takes arrow keys and Enter from the focused element for its cells, unless that element says otherwise.
  const keepKeys = ({ target }) => target.setAttribute("data-lm-suppress-shortcuts", "true");
  requestAnimationFrame(() => (el.closest(".wb-view") ?? el).addEventListener("focusin", keepKeys));
  if (two) {
    const input = rangeInput(`Share of ${parents[1]} in the blend`, model.get("step"));
    const ends = parents.map((parent, i) => {
      const end = named("span", `wb-end wb-end-${i}`);
      end.append(named("span", "wb-name", parent), " ", named("span", "wb-value"));
      values.push(end.querySelector(".wb-value"));
      return end;
    });
    el.append(ends[0], input, ends[1]);
    inputs.push(input);
  } else {
    parents.forEach((parent) => {
      const input = rangeInput(`Weight of ${parent}`, model.get("step"));
      const value = named("span", "wb-value");
      el.append(named("span", "wb-name", parent), input, value);
      inputs.push(input);
      values.push(value);
    });
  }

  const read = () => {
    const raw = inputs.map((input) => Number(input.value));
    return two ? [Number((1 - raw[0]).toFixed(6)), raw[0]] : raw;
  };
  const show = () => {
    const weights = model.get("weights");
    const now = shares(weights);
    inputs.forEach((input, i) => {
      const value = two ? weights[1] : weights[i];
      if (Number(input.value) !== value) input.value = value;
      input.style.setProperty("--wb-fill", `${100 * value}%`);
      input.setAttribute("aria-valuenow", String(Number(value.toFixed(4))));
      input.setAttribute("aria-valuetext", text(parents, weights));
      input.disabled = model.get("disabled");
    });
    values.forEach((node, i) => { node.textContent = two ? now[i].toFixed(2) : `${weights[i].toFixed(2)} → ${now[i].toFixed(2)}`; });
  };
  const choose = () => {
    clearTimeout(timer);
    if (String(model.get("chosen")) === String(model.get("weights"))) return;
    model.set("chosen", model.get("weights"));
    model.save_changes();
  };
  inputs.forEach((input) => {
    input.addEventListener("input", () => {
      const weights = read();
      model.set("weights", weights);
      model.set("position", shares(weights)[1] ?? 0);
      model.save_changes();
      clearTimeout(timer);
      timer = setTimeout(choose, REST_MS);
    });
    input.addEventListener("change", choose);
  });
  const events = "change:weights change:disabled";
  model.on(events, show);
  show();
  return () => { clearTimeout(timer); model.off(events, show); };
}

export default { render };
