// Pictures that the kernel drew once; only the marker and the line of text below move, at the speed of the slider.
function between(ratios, position) {
  const last = ratios.length - 1;
  let low = 0;
  while (low < last - 1 && ratios[low + 1] < position) low += 1;
  const span = ratios[low + 1] - ratios[low];
  return { low, part: Math.min(1, Math.max(0, (position - ratios[low]) / span)) };
}

const blend = (values, { low, part }) => values[low] + part * (values[low + 1] - values[low]);

function sentence(model, place) {
  const ratios = model.get("ratios");
  const measured = place.part < 1e-6 ? place.low : place.part > 1 - 1e-6 ? place.low + 1 : -1;
  const parts = model.get("series").map(({ name, values, lows, highs }) => {
    if (measured < 0) return `${name} about ${blend(values, place).toFixed(2)}`;
    return `${name} ${values[measured].toFixed(2)} (${lows[measured].toFixed(2)} to ${highs[measured].toFixed(2)})`;
  });
  const where = blend(ratios, place).toFixed(2);
  const kind = measured < 0 ? "read between two measured ratios" : "measured";
  return `At ${where} ${model.get("label")}: ${parts.join(", ")} — ${kind}.`;
}

function render({ model, el }) {
  el.classList.add("wb-chart");
  const row = document.createElement("div");
  row.className = "wb-figures";
  // The pictures come from this package's own drawing code, which escapes every name that it writes.
  model.get("pictures").forEach((picture) => {
    const figure = document.createElement("figure");
    figure.innerHTML = picture;
    row.append(figure);
  });
  const readout = document.createElement("p");
  readout.className = "wb-readout";
  el.append(row, readout);
  const markers = [...row.querySelectorAll(".wb-marker")];

  function show() {
    const hidden = model.get("note");
    markers.forEach((marker) => { marker.style.display = hidden ? "none" : ""; });
    if (hidden) {
      readout.textContent = hidden;
      return;
    }
    const place = between(model.get("ratios"), model.get("position"));
    model.get("tracks").forEach(({ xs, ys }, i) => {
      markers[i].setAttribute("transform", `translate(${blend(xs, place)} ${blend(ys, place)})`);
    });
    readout.textContent = sentence(model, place);
  }
  model.on("change:position change:note", show);
  show();
  return () => model.off("change:position change:note", show);
}

export default { render };
