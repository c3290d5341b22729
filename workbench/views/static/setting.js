// One labelled slider for a setting of a merge: `value` follows every movement, `chosen` only one that has come to rest.
const REST_MS = 140;

function render({ model, el }) {
  const label = document.createElement("span");
  const input = document.createElement("input");
  const shown = document.createElement("span");
  // As many places as one step needs.
  const places = Math.max(2, Math.ceil(-Math.log10(model.get("step"))));
  let timer;

  el.classList.add("wb-weights", "wb-weights-many");
  label.className = "wb-name";
  shown.className = "wb-value";
  label.textContent = model.get("label");
  Object.assign(input, { type: "range", min: 0, max: model.get("most"), step: model.get("step") });
  input.setAttribute("role", "slider");
  input.setAttribute("aria-label", model.get("label"));
  input.setAttribute("aria-valuemin", "0");
  input.setAttribute("aria-valuemax", String(model.get("most")));
  // JupyterLab takes arrow keys from the focused element for its cells, unless that element says otherwise.
  input.setAttribute("data-lm-suppress-shortcuts", "true");
  el.append(label, input, shown);

  const show = () => {
    const value = model.get("value");
    if (Number(input.value) !== value) input.value = value;
    input.style.setProperty("--wb-fill", `${(100 * value) / model.get("most")}%`);
    input.setAttribute("aria-valuenow", String(Number(value.toFixed(4))));
    input.setAttribute("aria-valuetext", value.toFixed(places));
    shown.textContent = value.toFixed(places);
  };
  const choose = () => {
    clearTimeout(timer);
    if (model.get("chosen") === model.get("value")) return;
    model.set("chosen", model.get("value"));
    model.save_changes();
  };
  input.addEventListener("input", () => {
    model.set("value", Number(input.value));
    model.save_changes();
    clearTimeout(timer);
    timer = setTimeout(choose, REST_MS);
  });
  input.addEventListener("change", choose);
  model.on("change:value", show);
  show();
  return () => { clearTimeout(timer); model.off("change:value", show); };
}

export default { render };
