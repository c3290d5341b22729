"""The filmstrip without a browser: its rows, where they part, what a choice does."""

import threading

import pytest
from pico_language import byte_tokenizer, pico

from workbench.errors import ConfigError
from workbench.generation import stream
from workbench.merging.live import LiveMerge
from workbench.merging.recipe import MergeRecipe
from workbench.merging.spectrum import RatioSpectrum
from workbench.views.filmstrip import Filmstrip, film_table, frames_of, parting, write_rows

SECONDS = 60


def spectrum(context: int = 64) -> RatioSpectrum:
    models = [pico(seed=seed, context=context) for seed in (0, 1)]
    recipe = MergeRecipe(parents=["x/general", "x/medical"])
    return RatioSpectrum(recipe, 4, models=models, tokenizer=byte_tokenizer(chat=True))


@pytest.fixture
def make():
    made: list[Filmstrip] = []

    def build(rows: RatioSpectrum | None = None, **settings) -> Filmstrip:
        widget = Filmstrip(rows or spectrum(), **{"prompt": "why?", "max_new_tokens": 6, **settings})
        made.append(widget)
        assert widget.wait(SECONDS)
        return widget

    yield build
    for widget in made:
        widget.close()


def alone(live: LiveMerge, recipe: MergeRecipe, prompt: str) -> str:
    live.apply(recipe)
    return [*stream(live.model, live.tokenizer, prompt, max_new_tokens=6)][-1]


def test_every_row_is_the_answer_of_its_own_blend(make) -> None:
    widget = make()
    live = widget.spectrum.live
    assert widget.answers == [alone(live, recipe, "why?") for recipe in widget.spectrum.recipes]
    assert [frame["label"] for frame in widget.frames.frames] == ["0.00", "0.33", "0.67", "1.00"]
    assert "Ready: 4 answers" in widget._status.value
    widget.prompt = "and now?"
    assert widget.wait(SECONDS)
    assert widget.answers == [alone(live, recipe, "and now?") for recipe in widget.spectrum.recipes]


def test_a_row_ends_where_its_model_ends_it(make) -> None:
    rows = spectrum()
    rows.model.generation_config.eos_token_id = [1, *range(4, 132)]
    widget = make(rows, max_new_tokens=30)
    rows.live.model.generation_config.eos_token_id = rows.model.generation_config.eos_token_id
    for recipe, answer in zip(rows.recipes, widget.answers):
        rows.live.apply(recipe)
        texts = [*stream(rows.live.model, rows.tokenizer, "why?", max_new_tokens=30)]
        assert answer == (texts[-1] if texts else "")


def test_a_chosen_row_sets_the_recipe(make) -> None:
    rows = spectrum()
    widget = make(rows, on_pick=rows.live.apply)
    assert widget.frames.pickable
    widget.frames.chosen = 2
    assert widget.wait(SECONDS)
    assert rows.live.recipe == rows.recipes[2]
    assert "Chosen: linear: general 0.33, medical 0.67" in widget._status.value


def test_the_latest_prompt_wins_and_the_running_one_stops(make) -> None:
    widget = make()
    calls, release = [], threading.Event()

    def slow(*_, stop, **__) -> list[str]:
        calls.append(stop)
        while not stop.is_set() and not release.wait(0.002):
            pass
        return ["late"] * 4

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("workbench.views.filmstrip.write_rows", slow)
        widget.prompt = "first"
        while not calls:
            release.wait(0.002)
        widget.prompt = "second"
        while len(calls) < 2:
            release.wait(0.002)
        assert calls[0].is_set()
        assert widget.answers == [""] * 4
        release.set()
        assert widget.wait(SECONDS)
    assert widget.answers == ["late"] * 4


def test_generate_stops_soon_after_stop() -> None:
    rows, stop, shown = spectrum(), threading.Event(), []

    def show(texts: list[str]) -> None:
        shown.append(texts)
        stop.set()

    texts = write_rows(rows, rows.tokenizer, "why?", max_new_tokens=40, stop=stop, show=show)
    assert len(shown) == 1
    assert max(len(text.encode()) for text in texts) < 10


def test_other_recipes_take_the_rows_at_the_next_question(make) -> None:
    widget = make()
    recipe = widget.spectrum.recipes[0]
    curved, filtered = recipe.replace(weights=[[1.0, 0.0], [0.0, 1.0]]), recipe.with_ratio({"mlp": 0.1, "*": 0.2})
    widget.spectrum.apply([recipe, curved, filtered])
    widget.refresh()
    assert widget.wait(SECONDS)
    labels = [frame["label"] for frame in widget.frames.frames]
    assert labels == [
        "linear: general 1.00, medical 0.00",
        "linear: general [1.00, 0.00], medical [0.00, 1.00]",
        "linear: weights by kind of module",
    ]
    assert len(widget.answers) == 3


@pytest.mark.parametrize(
    ("above", "text", "place"),
    [("a b c", "a b d", 2), ("a b", "a b", None), ("a b", "a b c", 2), ("", "", None), ("x", "", 0), ("x y", "z y", 0)],
)
def test_where_two_answers_part(above: str, text: str, place: int | None) -> None:
    assert parting(above, text) == place


def test_rows_are_cut_where_they_part() -> None:
    frames = frames_of(["0", "1", "2", "3"], ["a b", "a c", "a c", "a c d"], done=True)
    assert [(f["shares"], f["parts"], f["rest"]) for f in frames] == [
        ("", False, "a b"),
        ("a", True, "c"),
        ("a c", False, ""),
        ("a c", True, "d"),
    ]
    assert not frames_of(["0", "1"], ["a c", "a c d"], done=False)[1]["parts"]


def test_a_saved_notebook_shows_a_table_with_everything_escaped(make, monkeypatch) -> None:
    monkeypatch.setattr("workbench.views.filmstrip.write_rows", lambda *_, **__: ["<script>a", "<script>b", "", ""])
    bundle = make(prompt="<i>why</i>")._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    table = bundle["text/html"]
    assert "<script" not in table
    assert "<i>why" not in table
    assert all(part in table for part in ("share of medical", "&lt;script&gt;b", "0.33", "medical advice", "<b>▸</b>"))
    assert "faint words" in film_table("p", "t", [])


def test_errors_are_told_and_nothing_dies(make) -> None:
    widget = make()
    widget.prompt = "x" * 100
    assert widget.wait(SECONDS)
    assert 'role="alert"' in widget._status.value
    assert "context holds 64" in widget._status.value
    widget.prompt = "short"
    assert widget.wait(SECONDS)
    assert "Ready" in widget._status.value


def test_wrong_arguments() -> None:
    rows = spectrum()
    with pytest.raises(ConfigError, match="max_new_tokens=0"):
        Filmstrip(rows, max_new_tokens=0)
    rows.tokenizer = None
    with pytest.raises(ConfigError, match="tokenizer=None"):
        Filmstrip(rows)
