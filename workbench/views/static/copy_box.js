// A read-only text with a copy button; where the clipboard is closed to pages, the text is selected for Ctrl+C.
// What is copied comes from the kernel at that moment; if it is busy or gone, the text that is shown is copied.
const KERNEL_MS = 800;

function fromKernel(model) {
  return new Promise((resolve) => {
    const answer = (message) => finish(message.text);
    const timer = setTimeout(() => finish(model.get("text")), KERNEL_MS);
    function finish(text) {
      clearTimeout(timer);
      model.off("msg:custom", answer);
      resolve(text);
    }
    model.on("msg:custom", answer);
    model.send({ kind: "copy" });
  });
}

async function copy(area) {
  try {
    await navigator.clipboard.writeText(area.value);
    return "Copied.";
  } catch {
    area.focus();
    area.select();
    return document.execCommand?.("copy") ? "Copied." : "Selected: press Ctrl+C (or Cmd+C) to copy.";
  }
}

function render({ model, el }) {
  el.classList.add("wb-copy");
  const area = document.createElement("textarea");
  area.readOnly = true;
  area.spellcheck = false;
  area.setAttribute("aria-label", model.get("label"));
  const button = document.createElement("button");
  button.type = "button";
  button.className = "wb-button";
  button.textContent = model.get("caption");
  const said = document.createElement("span");
  said.setAttribute("role", "status");
  button.addEventListener("click", async () => {
    area.value = await fromKernel(model);
    said.textContent = await copy(area);
  });
  const foot = document.createElement("div");
  foot.className = "wb-copy-foot";
  foot.append(button, said);
  el.append(area, foot);
  const show = () => {
    area.value = model.get("text");
    area.rows = Math.min(16, area.value.split("\n").length + 1);
    said.textContent = "";
  };
  model.on("change:text", show);
  show();
  return () => model.off("change:text", show);
}

export default { render };
