"""The sliders in a real JupyterLab: moved by keyboard, read by name, legible everywhere, silent on the network."""

import re
import time

import nbformat
import pytest

pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]
SETUP = """
import pandas as pd, workbench as wb
from pico_language import byte_tokenizer, pico
ratios = [0.0, 0.25, 0.5, 0.75, 1.0]
front = pd.DataFrame({"ratio": ratios, "clinical": [0.2, 0.5, 0.7, 0.85, 0.95]})
front["instructions"] = [1.0, 0.95, 0.9, 0.6, 0.1]
for name in ("clinical", "instructions"):
    front[f"{name}_low"], front[f"{name}_high"], front[f"{name}_n"] = front[name] - 0.05, front[name] + 0.03, 120
recipe = wb.MergeRecipe(parents=["pico/general", "pico/medical"], weights=[0.5, 0.5])
live = wb.LiveMerge(recipe, models=[pico(seed=0, context=256), pico(seed=1, context=256)], tokenizer=byte_tokenizer())
prompts = {"first": "Which organ?", "second": "<script>document.title = 'hacked'</script>"}
"""
SHOW = "sliders = wb.MergeSliders(live, prompts=prompts, front=front, max_new_tokens=12)\nsliders"


def show(driver, name: str) -> None:
    """Open a notebook with sliders, run it, and wait for the first answers."""
    driver.write(name, SETUP, SHOW)
    driver.open(name)
    driver.run_all()
    ready(driver.page)


def ready(page) -> None:
    page.locator(".wb-status", has_text="Ready.").first.wait_for()


def settled(page) -> None:
    """Return when the blend's pane says how many words it wrote, after the last movement."""
    page.wait_for_function(
        "document.querySelector('.wb-pane-blend .wb-state').textContent === '' && "
        "[...document.querySelectorAll('.wb-status')].some((line) => line.textContent.startsWith('Ready.'))"
    )


def words(page, pane: int) -> str:
    """The answer in a pane without the marks; the blend stands in the middle."""
    text = page.locator(".wb-answer").nth(pane)
    return text.evaluate(
        "(e) => { const c = e.cloneNode(true); c.querySelectorAll('sup').forEach((s) => s.remove()); "
        "return c.textContent.trim().replace(/\\s+/g, ' '); }"
    )


def until_same(page, first: int, second: int, seconds: float = 60) -> None:
    """Wait until two panes say the same: the status may still be Ready from the move before."""
    end = time.monotonic() + seconds
    while words(page, first) != words(page, second) and time.monotonic() < end:
        page.wait_for_timeout(100)


def only_this_machine(page) -> bool:
    return {host for host in page.hosts if not host.startswith(("blob:", "data:"))} <= {"127.0.0.1"}


def test_the_slider_moves_by_keyboard_and_answers_and_chart_follow(driver) -> None:
    page = driver.page
    show(driver, "smoke.ipynb")
    slider = page.get_by_role("slider", name="Share of medical in the blend")
    marker = page.locator(".wb-marker").first
    before = {
        "value": slider.get_attribute("aria-valuenow"),
        "marker": marker.get_attribute("transform"),
        "readout": page.locator(".wb-readout").inner_text(),
        "answer": words(page, 1),
    }
    assert before["value"] == "0.5"
    assert "clinical 0.70 (0.65 to 0.73)" in before["readout"]
    slider.focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    page.wait_for_function("document.querySelector('.wb-weights input').getAttribute('aria-valuenow') === '0.65'")
    assert slider.get_attribute("aria-valuetext") == "general 0.35, medical 0.65"
    assert marker.get_attribute("transform") != before["marker"]
    assert "about" in page.locator(".wb-readout").inner_text()
    page.keyboard.press("End")
    page.wait_for_function("document.querySelector('.wb-copy textarea').value.includes('weight: 1.0')")
    settled(page)
    assert slider.get_attribute("aria-valuenow") == "1"
    assert words(page, 1) == words(page, 2) != before["answer"]
    assert page.errors == []
    assert only_this_machine(page)


@pytest.mark.slow
def test_every_control_has_a_name_and_works_without_a_mouse(driver) -> None:
    page = driver.page
    show(driver, "controls.ipynb")
    for role, name in [
        ("slider", "Share of medical in the blend"),
        ("combobox", "Method"),
        ("combobox", "Example prompts"),
        ("checkbox", "A curve over depth"),
        ("textbox", "Prompt"),
        ("textbox", "This recipe as mergekit YAML"),
        ("textbox", "A new folder for it"),
        ("button", "Ask"),
        ("button", "Copy as mergekit YAML"),
        ("button", "Save merged model"),
        ("img", "Scores against share of medical"),
    ]:
        assert page.get_by_role(role, name=name, exact=True).count() == 1, (role, name)
    page.get_by_role("checkbox", name="A curve over depth").press("Space")
    point = page.get_by_role("slider", name="Share of medical at point 3 of 3")
    point.wait_for()
    point.focus()
    page.keyboard.press("End")
    page.wait_for_function("document.querySelector('.wb-copy textarea').value.includes('[0.5, 0.5, 1.0]')")
    assert point.get_attribute("aria-valuenow") == "1"
    assert "no place" in page.locator(".wb-readout").inner_text()
    page.get_by_role("button", name="More points").press("Enter")
    assert page.locator(".wb-handle").count() == 4
    page.get_by_role("checkbox", name="A curve over depth").press("Space")
    page.get_by_role("combobox", name="Method").select_option("slerp")
    page.wait_for_function("document.querySelector('.wb-copy textarea').value.includes('slerp')")
    assert "measured for linear" in page.locator(".wb-readout").inner_text()
    assert page.errors == []


@pytest.mark.slow
def test_a_prompt_can_be_typed_or_picked_and_runs_no_script(driver) -> None:
    page = driver.page
    show(driver, "prompts.ipynb")
    before = words(page, 0)
    page.get_by_role("textbox", name="Prompt").fill("Why?")
    page.get_by_role("button", name="Ask", exact=True).click()
    page.wait_for_function("before => document.querySelector('.wb-answer').textContent.trim() !== before", arg=before)
    settled(page)
    page.get_by_role("combobox", name="Example prompts").select_option("second")
    page.wait_for_function("document.querySelector('.wb-asking textarea').value.startsWith('<script>')")
    settled(page)
    assert page.title() != "hacked"


@pytest.mark.slow
def test_copy_and_save_say_what_they_did(driver, tmp_path) -> None:
    page = driver.page
    show(driver, "keep.ipynb")
    page.get_by_role("button", name="Copy as mergekit YAML").click()
    page.locator(".wb-copy-foot [role=status]", has_text=re.compile("Copied|press Ctrl")).wait_for()
    target = tmp_path / "merged"
    page.get_by_role("textbox", name="A new folder for it").fill(str(target))
    page.get_by_role("button", name="Save merged model").click()
    page.locator(".wb-status", has_text=f"Saved to {target}").wait_for()
    assert (target / "model.safetensors").is_file()
    page.get_by_role("button", name="Save merged model").click()
    page.locator(".wb-error", has_text="never overwritten").wait_for()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("theme", "width"), [("JupyterLab Light", 1280), ("JupyterLab Dark", 1280), ("JupyterLab Dark", 480)]
)
def test_legible_in_both_themes_and_a_narrow_window(driver, theme: str, width: int, tmp_path) -> None:
    page = driver.page
    show(driver, f"theme_{width}.ipynb")
    driver.command("apputils:change-theme", theme=theme)
    page.set_viewport_size({"width": width, "height": 1000})
    page.wait_for_function("dark => document.body.dataset.jpThemeLight === String(!dark)", arg="Dark" in theme)
    overflow = page.locator(".wb-view").first.evaluate(
        "(view) => [...view.querySelectorAll('*')].filter((e) => !e.closest('svg, select, .wb-scroll, textarea') && "
        "e.getBoundingClientRect().right > view.getBoundingClientRect().right + 2).map((e) => e.className)"
    )
    assert overflow == []
    for part in (".wb-answer", ".wb-name", ".wb-readout", ".wb-note", ".wb-pane footer", "h3"):
        assert contrast(page, f".wb-view {part}") >= 4.4, part
    shot = page.locator(".wb-view").first.screenshot(path=tmp_path / "view.png")
    assert len(shot) > 10_000


def contrast(page, selector: str) -> float:
    """The WCAG contrast ratio between a text and the first opaque background behind it."""
    return page.locator(selector).first.evaluate(
        """(element) => {
          const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
          const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
          const light = (text) => {
            const [r, g, b] = rgb(text).map((v) => linear(v / 255));
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
          };
          let behind = element;
          const opaque = (e) => (rgb(getComputedStyle(e).backgroundColor)[3] ?? 1) > 0.99;
          while (behind.parentElement && !opaque(behind)) behind = behind.parentElement;
          const pair = [light(getComputedStyle(element).color), light(getComputedStyle(behind).backgroundColor)];
          return (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
        }"""
    )


@pytest.mark.slow
def test_a_saved_untrusted_copy_shows_the_tables(driver) -> None:
    page = driver.page
    driver.write("trusted.ipynb", SETUP, SHOW, "wb.RatioPlot(front)")
    driver.open("trusted.ipynb")
    driver.run_all()
    ready(page)
    driver.command("docmanager:save")
    copy = nbformat.read(driver.lab.folder / "trusted.ipynb", as_version=4)
    # The server trusts what it has signed; another author's copy differs somewhere.
    copy.cells[0].source += "\n# from somebody else"
    copy.metadata.pop("widgets", None)
    nbformat.write(copy, driver.lab.folder / "copy.ipynb")
    driver.open("copy.ipynb", kernel=False)
    note = page.locator(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-OutputArea", has_text="as they stood when")
    note.wait_for()
    shown = note.inner_text()
    for part in ("linear: general 0.50, medical 0.50", "Which organ?", "Answer of medical", "medical advice"):
        assert part in shown
    assert page.locator(".jp-NotebookPanel:not(.lm-mod-hidden) .wb-weights").count() == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["00_tour.ipynb", "01_merge_ratio.ipynb"])
def test_the_shipped_notebook_runs_and_its_sliders_move(driver, name: str) -> None:
    page = driver.page
    page.set_default_timeout(600_000)
    driver.open_shipped(name)
    driver.run_all()
    assert page.locator(".js-plotly-plot .main-svg").count() >= 1
    slider = page.get_by_role("slider", name="Share of clinical in the blend").first
    slider.scroll_into_view_if_needed()
    ready(page)
    readout = page.locator(".wb-readout").first.inner_text()
    slider.focus()
    page.keyboard.press("Home")
    page.wait_for_function("document.querySelector('.wb-copy textarea').value.includes('weight: 0.0')")
    until_same(page, 1, 0)
    instruct = words(page, 1)
    assert instruct == words(page, 0)
    page.keyboard.press("End")
    page.wait_for_function("document.querySelector('.wb-copy textarea').value.includes('weight: 1.0')")
    until_same(page, 1, 2)
    assert words(page, 1) == words(page, 2) != instruct
    assert page.locator(".wb-readout").first.inner_text() != readout
    assert page.errors == []
    assert only_this_machine(page)
