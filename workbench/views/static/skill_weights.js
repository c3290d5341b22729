// One slider for each skill, with 0 in the middle: `weights` follows every movement, `chosen` one that has come to rest.
const REST_MS = 140;
const TO_ZERO = ["0", "Delete", "Backspace"];

function named(tag, className, content = "") {
  const node = document.createElement(tag);
  node.className = className;
  node.textContent = content;
  return node;
}

function signed(value) {
  return `${value > 0 ? "+" : ""}${value.toFixed(2)}`;
}

function render({ model, el }) {
  let timer;
  el.classList.add("wb-skills");
  // JupyterLab takes arrow keys and Enter from the focused element for its cells, unless that element says otherwise.
  const keepKeys = ({ target }) => target.setAttribute("data-lm-suppress-shortcuts", "true");
  requestAnimationFrame(() => (el.closest(".wb-view") ?? el).addEventListener("focusin", keepKeys));

  const rows = model.get("names").map((name) => {
    const row = named("label", "wb-skill");
    const input = document.createElement("input");
    Object.assign(input, { type: "range", step: model.get("step") });
    input.setAttribute("role", "slider");
    input.setAttribute("aria-label", `Weight of ${name}`);
    const value = named("span", "wb-value");
    row.append(named("span", "wb-name", name), input, value);
    el.append(row);
    return { input, value };
  });

  const show = () => {
    const bound = model.get("bound");
    model.get("weights").forEach((weight, i) => {
      const { input, value } = rows[i];
      // A browser counts steps from the left end, and 0 must be one of them.
      const end = Math.ceil(bound / model.get("step")) * model.get("step");
      Object.assign(input, { min: -end, max: end });
      if (Number(input.value) !== weight) input.value = weight;
      const ends = [50, 50 + (50 * weight) / bound].sort((a, b) => a - b);
      input.style.setProperty("--wb-from", `${ends[0]}%`);
      input.style.setProperty("--wb-to", `${ends[1]}%`);
      input.setAttribute("aria-valuemin", String(-bound));
      input.setAttribute("aria-valuemax", String(bound));
      input.setAttribute("aria-valuenow", String(Number(weight.toFixed(4))));
      input.setAttribute("aria-valuetext", signed(weight));
      value.textContent = signed(weight);
    });
  };
  const choose = () => {
    clearTimeout(timer);
    if (String(model.get("chosen")) === String(model.get("weights"))) return;
    model.set("chosen", model.get("weights"));
    model.save_changes();
  };
  const follow = (i, value) => {
    const weights = [...model.get("weights")];
    weights[i] = value;
    model.set("weights", weights);
    model.save_changes();
    clearTimeout(timer);
    timer = setTimeout(choose, REST_MS);
  };
  rows.forEach(({ input }, i) => {
    input.addEventListener("input", () => follow(i, Number(Number(input.value).toFixed(4))));
    input.addEventListener("change", choose);
    input.addEventListener("dblclick", () => follow(i, 0));
    input.addEventListener("keydown", (event) => {
      if (!TO_ZERO.includes(event.key)) return;
      event.preventDefault();
      follow(i, 0);
    });
  });
  const events = "change:weights change:bound";
  model.on(events, show);
  show();
  return () => { clearTimeout(timer); model.off(events, show); };
}

export default { render };
