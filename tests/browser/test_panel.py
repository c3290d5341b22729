"""The compare panel in a real browser: alone, inline in JupyterLab, by keyboard, narrow, dark, with hostile text."""

import re
import sys
from pathlib import Path

import pandas as pd
import pytest

import workbench as wb
from workbench.views.panel.limits import Limits
from workbench.views.panel.panel import compare_panel
from workbench.views.panel.votes import VoteStore

sys.path.append(str(Path(__file__).parents[1] / "unit"))
from pico_language import byte_tokenizer, pico

pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]
slow = pytest.mark.slow
NASTY = (
    "<img src=x onerror=document.body.dataset.broken=1>${document.body.dataset.broken=1}{{value}}"
    "![x](http://example.org/x.png)"
)

SETUP = """
import torch, tempfile, workbench as wb
from pico_language import byte_tokenizer, pico
from workbench.views.panel.panel import compare_panel
panel = compare_panel({"one": pico(context=600), "two": pico(seed=1, context=600)}, byte_tokenizer(chat=True),
                      examples=["hello"], votes=tempfile.mkdtemp() + "/votes.jsonl")
"""


@pytest.fixture(scope="module")
def panel(tmp_path_factory):
    tokenizer = byte_tokenizer(chat=True)
    recipe = wb.MergeRecipe(parents=["pico/general", "pico/medical"], weights=[0.5, 0.5])
    live = wb.LiveMerge(recipe, models=[pico(seed=i, context=900) for i in range(2)], tokenizer=tokenizer)
    variants = {"general": live.parent(0), "medical": live.parent(1), "<b>merged</b>": live}
    scores = {"up": [0.1, 0.6, 0.9], "across": [0.9, 0.7, 0.1]}
    columns = {f"{name}{end}": values for name, values in scores.items() for end in ("", "_low", "_high")}
    front = pd.DataFrame({"ratio": [0.0, 0.5, 1.0], **columns})
    made = compare_panel(
        variants,
        tokenizer,
        examples={"greeting": ["hello", "good morning"]},
        front=front,
        votes=tmp_path_factory.mktemp("votes") / "votes.jsonl",
        limits=Limits(answer_tokens=800),
    )
    made.launch(prevent_thread_lock=True, quiet=True, inline=False)
    yield made
    made.close()


@pytest.fixture
def shown(panel, page):
    """The panel's page, open and ready."""
    page.goto(panel.local_url)
    page.locator(".wb-pane").first.wait_for()
    return page


def ask(page, prompt="hello"):
    page.get_by_label("Question").fill(prompt)
    page.get_by_role("button", name="Ask", exact=True).click()


def finished(page):
    page.get_by_text("Choose below").wait_for()


def answers(page):
    return page.locator(".wb-answer").all_inner_texts()


def quiet(page):
    assert {host for host in page.hosts if not host.startswith(("blob:", "data:"))} <= {"127.0.0.1"}
    assert page.errors == []
    assert page.locator("body[data-broken]").count() == 0


def test_a_question_streams_into_all_panes_and_a_vote_is_kept(shown, panel):
    before = len(VoteStore(panel.desk.store.path).read())
    ask(shown, NASTY)
    finished(shown)
    assert all(answers(shown))
    assert shown.locator(".wb-pane b:not(.wb-parting), .wb-pane img").count() == 0, "a text was read as markup"
    shown.get_by_role("button", name="C is best").click()
    shown.get_by_text("Thank you").wait_for()
    assert shown.get_by_role("button", name="C is best").is_disabled()
    vote = VoteStore(panel.desk.store.path).read()[before]
    assert (vote.winner, vote.prompt, vote.blind) == ("<b>merged</b>", NASTY, False)
    shown.get_by_role("tab", name="Results").click()
    shown.locator(".wb-results tbody tr").first.wait_for()
    assert shown.get_by_text("1000 is average").is_visible()
    quiet(shown)


@slow
def test_stop_ends_all_answers_and_buttons_wait_meanwhile(shown):
    shown.get_by_role("button", name="Settings").click()
    shown.get_by_label("number input for Longest answer").fill("800")
    shown.keyboard.press("Tab")
    ask(shown)
    stop = shown.get_by_role("button", name="Stop")
    shown.wait_for_function("document.querySelectorAll('.wb-answer')[0].innerText.length > 3")
    assert shown.get_by_role("button", name="Ask", exact=True).is_disabled()
    assert shown.get_by_role("button", name="A is best").is_disabled()
    stop.click()
    shown.get_by_text("stopped").first.wait_for()
    finished(shown)
    assert any(len(text) < 700 for text in answers(shown))
    quiet(shown)


@slow
def test_the_slider_and_a_point_change_the_blend_alone(shown):
    shown.get_by_role("button", name="greeting").click()
    finished(shown)
    first = answers(shown)
    slider = shown.get_by_role("slider", name=re.compile("share of medical"))
    slider.focus()
    slider.press("End")
    shown.get_by_text("share 1.00").wait_for()
    finished(shown)
    moved = answers(shown)
    assert moved[:2] == first[:2]
    assert re.sub("≠", "", moved[2]) == re.sub("≠", "", moved[1]), "all of medical answers as medical does"
    point = shown.get_by_role("button", name=re.compile("share of .* 0: "))
    point.focus()
    point.press("Enter")
    shown.get_by_text("share 0.00").wait_for()
    finished(shown)
    assert re.sub("≠", "", answers(shown)[2]) == re.sub("≠", "", first[0])
    quiet(shown)


@slow
def test_a_blind_round_shows_names_only_after_the_vote(shown):
    shown.get_by_label("Blind test: two, names hidden").check()
    ask(shown)
    finished(shown)
    assert shown.locator(".wb-pane:visible").count() == 2
    assert shown.get_by_text("name hidden").count() == 2
    shown.get_by_role("button", name="B is better").click()
    shown.get_by_text(re.compile("A was .*, B was ")).wait_for()
    assert shown.get_by_text("name hidden").count() == 0
    quiet(shown)


@slow
def test_everything_is_reached_by_keyboard(shown, panel):
    before = len(VoteStore(panel.desk.store.path).read())
    shown.get_by_label("Question").focus()
    shown.keyboard.type("hello")
    shown.keyboard.press("Enter")
    finished(shown)
    for _ in range(60):
        shown.keyboard.press("Tab")
        if shown.evaluate("document.activeElement.innerText").strip() == "Tie":
            break
    outline = shown.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline != "none", "the focus is seen"
    shown.keyboard.press("Enter")
    shown.get_by_text("Thank you").wait_for()
    assert VoteStore(panel.desk.store.path).read()[before].verdict == "tie"


@slow
@pytest.mark.parametrize(("width", "scheme"), [(360, "light"), (1280, "dark")])
def test_it_is_read_on_a_narrow_and_on_a_dark_page(shown, width, scheme):
    shown.set_viewport_size({"width": width, "height": 900})
    shown.emulate_media(color_scheme=scheme)
    shown.reload()
    shown.locator(".wb-pane").first.wait_for()
    ask(shown)
    finished(shown)
    assert shown.evaluate("document.documentElement.scrollWidth <= window.innerWidth + 1"), "nothing lies outside"
    ink, card = (
        shown.evaluate(f"getComputedStyle(document.querySelector('{part}')).{kind}")
        for part, kind in ((".wb-answer", "color"), (".wb-pane", "backgroundColor"))
    )
    light = [sum(map(float, re.findall(r"[\d.]+", colour)[:3])) / 3 for colour in (ink, card)]
    assert abs(light[0] - light[1]) > 120
    assert (light[1] < 100) == (scheme == "dark")


@slow
def test_inline_in_jupyterlab_it_answers_and_leaves_a_table(driver):
    driver.write("panel.ipynb", SETUP, "panel.launch(height=800)")
    driver.open("panel.ipynb")
    driver.run_all()
    inner = driver.page.frame_locator("iframe[src*='127.0.0.1']")
    inner.get_by_label("Question").fill("hello")
    inner.get_by_role("button", name="Ask", exact=True).click()
    inner.get_by_text("Choose below").wait_for()
    inner.get_by_role("button", name="A is better").click()
    inner.get_by_text("Thank you").wait_for()
    table = driver.page.locator(".jp-OutputArea-output table").first
    assert "A · one" in table.inner_text()
