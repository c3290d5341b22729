"""The skill sliders and a search in a real JupyterLab: by keyboard, by preset, stopped, and in the shipped notebook."""

import pytest

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(1500)]

PICO = """
import tempfile, torch, workbench as wb
from peft import get_peft_model
from pico_adapters import lora, saved
from pico_language import byte_tokenizer, pico
torch.set_num_threads(1)
home, tokenizer = tempfile.mkdtemp(), byte_tokenizer(chat=True)
folders = {name: f"{home}/{name}" for name in ("ner", "inference", "entity_relation")}
kept = [saved(pico(context=256), lora(), folder, seed=i + 1) for i, folder in enumerate(folders.values())]
"""
SLIDERS = """
model = get_peft_model(pico(context=256), wb.SkillRouterConfig(skills=folders, task_type="CAUSAL_LM")).eval()
presets = {"mine": {"ner": 1.0, "inference": -0.5}}
wb.SkillSliders(model, tokenizer, presets=presets, prompt="cough", max_new_tokens=12)
"""
SEARCH = """
from workbench.records import Example
from workbench.views.skill_search import SkillSearch
five = [Example(id=str(i), skill="x", query=f"what is {i}?", answer=f"it is {i}") for i in range(5)]
SkillSearch(wb.compose_skills, pico(context=256), tokenizer, five, folders, budget=100_000)
"""
VALUE = "([name, value]) => document.querySelector(`[aria-label='${name}']`).getAttribute('aria-valuenow') === value"


def settled(page) -> str:
    """Return the blend's answer once it is complete."""
    page.wait_for_function(
        "document.querySelector('.wb-pane-blend .wb-answer').innerText !== '' && "
        "document.querySelector('.wb-pane-blend .wb-state').textContent === '' && "
        "document.querySelector('.wb-view:has(.wb-skills) .wb-status').textContent.startsWith('Ready.')"
    )
    return page.locator(".wb-pane-blend .wb-answer").first.inner_text()


def after(page, answer: str) -> str:
    """Return the blend's next answer that differs from this one."""
    page.wait_for_function("said => document.querySelector('.wb-pane-blend .wb-answer').innerText !== said", arg=answer)
    return settled(page)


def says_again(page, answer: str) -> None:
    """Wait until the blend's answer is this one; answers to positions in between may come first."""
    page.wait_for_function("said => document.querySelector('.wb-pane-blend .wb-answer').innerText === said", arg=answer)
    assert settled(page) == answer


def test_skills_move_by_keyboard_go_back_to_zero_and_follow_presets(driver, tmp_path) -> None:
    page = driver.page
    driver.write("skills.ipynb", PICO, SLIDERS)
    driver.open("skills.ipynb")
    driver.run_all()
    base = settled(page)
    slider = page.get_by_role("slider", name="Weight of ner")
    assert [slider.get_attribute(f"aria-value{end}") for end in ("min", "now", "max")] == ["-1.5", "0", "1.5"]
    slider.focus()
    page.keyboard.press("End")
    after(page, base)
    assert slider.get_attribute("aria-valuetext") == "+1.50"
    page.keyboard.press("ArrowLeft")
    page.wait_for_function(VALUE, arg=["Weight of ner", "1.45"])
    page.keyboard.press("0")
    page.wait_for_function(VALUE, arg=["Weight of ner", "0"])
    says_again(page, base)
    page.get_by_role("combobox", name="Preset").select_option("mine")
    page.wait_for_function(VALUE, arg=["Weight of inference", "-0.5"])
    assert after(page, base) != base
    driver.picture(page.locator(".wb-view").first, tmp_path / "sliders.png")
    page.get_by_role("button", name="Reset to 0").press("Enter")
    page.wait_for_function(VALUE, arg=["Weight of inference", "0"])
    driver.quiet()


def test_a_search_is_drawn_as_it_runs_and_hears_stop(driver, tmp_path) -> None:
    page = driver.page
    driver.write("search.ipynb", PICO, SEARCH)
    driver.open("search.ipynb")
    driver.run_all()
    view = page.locator(".wb-view", has_text="The weights of the best try so far")
    view.wait_for()
    view.get_by_role("button", name="Stop").press("Enter")
    view.locator(".wb-status", has_text="Stopped after").wait_for()
    driver.picture(view, tmp_path / "search.png")
    driver.quiet()


def test_the_shipped_notebook_runs_and_its_sliders_move(driver, tmp_path) -> None:
    page = driver.page
    page.set_default_timeout(900_000)
    driver.open_shipped("05_skills.ipynb")
    driver.run_all()
    slider = page.get_by_role("slider", name="Weight of classification").first
    slider.scroll_into_view_if_needed()
    before = settled(page)
    slider.focus()
    page.keyboard.press("Home")
    page.wait_for_function(VALUE, arg=["Weight of classification", "-1.5"])
    after(page, before)
    page.get_by_role("combobox", name="Preset").first.select_option("no skill (the base)")
    page.wait_for_function(VALUE, arg=["Weight of classification", "0"])
    says_again(page, before)
    assert page.locator(".wb-view .wb-status", has_text="Done after 40 tries").count() == 1
    driver.picture(page.locator(".wb-view", has=slider).first, tmp_path / "notebook.png")
    driver.quiet()
