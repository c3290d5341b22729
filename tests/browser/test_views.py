"""Router inspector, curve editor, filmstrip and training picture in a real JupyterLab, by keyboard and by click."""

import pytest

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(900)]

PICO = """
import torch, workbench as wb
from pico_language import byte_tokenizer, pico
tokenizer = byte_tokenizer()
"""
MIXTURE = """
from pico_adapters import trained
targets = ["q_proj", "up_proj"]
config = wb.LoraMoeConfig(r=4, num_experts=3, num_experts_per_tok=2, router="layer", target_modules=targets)
model = trained(pico(context=256), config)
prompt = tokenizer("<b>chest</b> pain", return_tensors="pt")
with wb.capture_routing(model) as trace:
    model.generate(**prompt, max_new_tokens=5, do_sample=False, pad_token_id=0)
inspector = wb.RouterInspector(trace, tokenizer, model=model, prompt="chest pain")
inspector
"""
MERGE = """
recipe = wb.MergeRecipe(parents=["pico/general", "pico/medical"], weights=[0.5, 0.5])
live = wb.LiveMerge(recipe, models=[pico(seed=0, context=256), pico(seed=1, context=256)], tokenizer=tokenizer)
"""
EDITOR = "editor = wb.CurveEditor(live=live)\neditor"
STRIP = "strip = wb.Filmstrip(wb.RatioSpectrum(recipe, 5, live=live), prompt='fever', max_new_tokens=8)\nstrip"
TRAIN = """
import tempfile
from peft import LoraConfig
rows = [wb.load_examples("classroom/instruction", split="train")[i] for i in range(12)]
from datasets import Dataset
run = wb.train(pico(context=1024), byte_tokenizer(chat=True), Dataset.from_list(rows), output_dir=tempfile.mkdtemp(),
               adapter=LoraConfig(r=2, target_modules=["q_proj"]), steps=4, batch_size=2, progress=False)
wb.TrainingView(run)
"""


@pytest.fixture
def show(driver):
    """Run a notebook of these cells and return its page."""

    def run(name, *cells):
        driver.write(name, PICO, *cells)
        driver.open(name)
        driver.run_all()
        return driver.page

    return run


def quiet(page):
    assert {host for host in page.hosts if not host.startswith(("blob:", "data:"))} <= {"127.0.0.1"}
    assert page.errors == []


def test_a_token_is_chosen_by_click_and_key_and_its_experts_stand_in_the_table(show):
    page = show("router.ipynb", MIXTURE)
    tokens = page.locator(".wb-router-token")
    tokens.first.wait_for()
    assert page.locator(".wb-router-text b").count() == 0, "a token was read as HTML"
    tokens.nth(2).click()
    page.wait_for_function("document.querySelector('.wb-router-strip caption').textContent.startsWith('Token 3 of')")
    page.keyboard.press("ArrowRight")
    page.wait_for_function("document.querySelector('.wb-router-strip caption').textContent.startsWith('Token 4 of')")
    rows = page.locator(".wb-router-strip tbody tr")
    assert rows.count() == 2, "one row for each layer's router"
    before = tokens.nth(3).get_attribute("aria-label")
    page.get_by_role("slider", name="Router").focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_function("document.querySelector('[aria-label=Router]').value === '1'")
    assert "expert" in str(before)
    quiet(page)


def test_a_point_of_a_curve_moves_by_key_and_the_recipe_and_model_follow(show, driver):
    page = show("curves.ipynb", MERGE, EDITOR, "print('now', live.recipe.to_json())")
    handle = page.locator(".wb-handle").first
    handle.wait_for()
    handle.focus()
    for _ in range(3):
        page.keyboard.press("ArrowUp")
    text = page.locator("textarea")
    page.wait_for_function(
        "[...document.querySelectorAll('textarea')].some((box) => /weight: \\[0\\.6/.test(box.value))"
    )
    assert "merge_method" in text.first.input_value()
    driver.run_all()
    quiet(page)


def test_a_filmstrip_answers_at_every_ratio(show):
    page = show("strip.ipynb", MERGE, STRIP, "strip.wait(60), len(set(strip.answers))")
    page.wait_for_function("document.body.innerText.includes('One prompt, 5 blends')")
    assert "(True, " in page.locator(".jp-OutputArea-output").last.inner_text()
    quiet(page)


def test_a_training_run_is_drawn_with_its_loss(show):
    page = show("train.ipynb", TRAIN)
    page.locator(".wb-view svg, .wb-view img").first.wait_for()
    assert page.get_by_role("button", name="Stop").count() == 1
    quiet(page)
