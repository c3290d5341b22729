"""The widget without a browser: what its controls do to the merge, what it shows, how it ends."""

import threading

import pandas as pd
import pytest
import torch
from pico_language import byte_tokenizer, pico
from transformers import AutoModelForCausalLM

from workbench.errors import ConfigError
from workbench.merging.live import LiveMerge
from workbench.merging.recipe import MergeRecipe
from workbench.views.merge_sliders import MergeSliders
from workbench.views.recipe_table import layer_shares, recipe_line

SECONDS = 60


def live_merge(weights=(0.6, 0.4), *, context: int = 256, ground: str | None = None, **settings) -> LiveMerge:
    names = ["x/general", "x/medical", "x/third"][: len(weights)]
    recipe = MergeRecipe(parents=names, weights=list(weights), base=ground if settings else None, **settings)
    models = [pico(seed=seed, context=context) for seed in range(len(weights))]
    base = pico(seed=9, context=context) if ground else None
    return LiveMerge(recipe, models=models, base=base, tokenizer=byte_tokenizer(chat=True))


@pytest.fixture
def make():
    """Build widgets that are closed at the end of the test."""
    made: list[MergeSliders] = []

    def build(live: LiveMerge | None = None, **settings) -> MergeSliders:
        settings = {"prompt": "why?", "max_new_tokens": 6, **settings}
        widget = MergeSliders(live or live_merge(), **settings)
        made.append(widget)
        assert widget.wait(SECONDS)
        return widget

    yield build
    for widget in made:
        widget.close()


def front() -> pd.DataFrame:
    table = pd.DataFrame({"ratio": [0.0, 0.5, 1.0]})
    for name, values in {"clinical": [0.2, 0.6, 0.9], "instructions": [1.0, 0.8, 0.1]}.items():
        table[name], table[f"{name}_low"], table[f"{name}_high"], table[f"{name}_n"] = values, values, values, 30
    table.attrs = {"recipe": {"parents": ["x/general", "x/medical"], "method": "linear"}, "seed": 0}
    return table


def same_weights(first, second) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values()))


def test_every_model_answers_the_first_prompt(make) -> None:
    widget = make()
    assert set(widget.answers) == {"blend", "x/general", "x/medical"}
    assert "Ready" in widget._status.value
    assert widget.first_token_ms is not None


def test_a_move_changes_recipe_weights_answer_and_yaml(make) -> None:
    widget = make()
    before = widget.answers["blend"], widget._yaml.text
    widget.weights.move([0.0, 1.0])
    assert widget.wait(SECONDS)
    assert widget.live.recipe.weights == (0.0, 1.0)
    assert same_weights(widget.live.model, widget.live.parent("x/medical"))
    assert widget.answers["blend"] == widget.answers["x/medical"] != before[0]
    assert widget._yaml.text != before[1]


def test_the_latest_of_many_moves_wins(make) -> None:
    widget = make(max_new_tokens=40)
    for share in (0.1, 0.2, 0.3, 0.85):
        widget.weights.move([1 - share, share])
    assert widget.wait(SECONDS)
    assert widget.live.recipe.weights == pytest.approx((0.15, 0.85))
    assert "Ready" in widget._status.value


def test_parents_are_asked_once_for_each_prompt(make, monkeypatch) -> None:
    widget = make()
    asked = []
    monkeypatch.setattr("workbench.views.preview.stream", lambda model, *_, **__: asked.append(model) or iter(["hm"]))
    widget.weights.move([0.5, 0.5])
    assert widget.wait(SECONDS)
    assert asked == [widget.live.model]
    widget.prompt = "and now?"
    assert widget.wait(SECONDS)
    assert asked[1:] == [widget.live.model, widget.live.parent(0), widget.live.parent(1)]


def test_picking_an_example_fills_the_prompt_and_asks(make) -> None:
    widget = make(prompts={"short name": "a long prompt"}, prompt=None)
    assert widget.prompt == "a long prompt"
    widget.prompt = "another"
    widget._picker.value = "a long prompt"
    assert widget.wait(SECONDS)
    assert widget.prompt == "a long prompt"


def test_a_curve_becomes_the_weight_list(make) -> None:
    widget = make()
    widget.curved.value = True
    assert widget.curves[0].chosen == [0.4, 0.4, 0.4]
    assert widget.weights.disabled
    widget.curves[0].move([0.0, 0.5, 1.0, 0.25])
    assert widget.wait(SECONDS)
    assert widget.live.recipe.weights == ((1.0, 0.5, 0.0, 0.75), (0.0, 0.5, 1.0, 0.25))
    assert "0.00</td><td>1.00" not in widget._table.value.split("layer 1")[0]
    widget.curved.value = False
    assert widget.wait(SECONDS)
    assert widget.live.recipe.weights == (0.6, 0.4)


def test_a_recipe_with_a_curve_starts_as_a_curve(make) -> None:
    widget = make(live_merge([[1.0, 0.5, 0.0], [0.0, 0.5, 1.0]]))
    assert widget.curved.value
    assert widget.curves[0].chosen == [0.0, 0.5, 1.0]


def test_two_parents_may_be_merged_along_the_sphere(make) -> None:
    widget = make()
    widget.method.value = "slerp"
    assert widget.wait(SECONDS)
    assert widget.live.recipe.method == "slerp"
    assert "slerp" in widget._yaml.text


def test_with_a_base_a_density_and_a_lambda_can_be_moved(make) -> None:
    widget = make(live_merge(ground="x/base"))
    base = widget.live.base
    assert {"ties", "dare_linear", "model_stock", "task_arithmetic"} <= set(widget.method.options)
    widget.method.value = "ties"
    widget.settings.sliders["density"].move(0.25)
    widget.settings.sliders["lambda_"].move(1.5)
    assert widget.wait(SECONDS)
    shown = widget.live.recipe
    assert (shown.method, shown.base, shown.density, shown.lambda_) == ("ties", base, (0.25, 0.25), 1.5)
    assert "density: 0.25" in widget._yaml.text
    widget.method.value = "model_stock"
    assert widget.weights.disabled
    widget.method.value = "linear"
    assert widget.wait(SECONDS)
    assert (widget.live.recipe.base, widget.live.recipe.density, widget.weights.disabled) == (None, None, False)


def test_densities_of_single_parents_stay_until_the_slider_is_moved(make) -> None:
    widget = make(live_merge(method="ties", ground="x/base", density=[0.2, [0.4, 0.6]]))
    assert widget.settings.sliders["density"].chosen == pytest.approx(0.4)
    widget.weights.move([0.5, 0.5])
    assert widget.recipe.density == (0.2, (0.4, 0.6))
    widget.settings.sliders["density"].move(0.3)
    assert widget.recipe.density == (0.3, 0.3)


def test_the_model_is_saved_with_the_density_as_it_is(make, tmp_path) -> None:
    widget = make(live_merge(method="ties", ground="x/base", density=0.3))
    widget.save(tmp_path / "merged")
    assert widget.wait(SECONDS)
    again, exact = AutoModelForCausalLM.from_pretrained(tmp_path / "merged"), widget.live
    exact.exact = True
    exact.apply(widget.recipe)
    assert same_weights(again, exact.model)


def test_three_parents_have_normalised_weights_and_a_curve_each(make) -> None:
    widget = make(live_merge([0.2, 0.3, 0.5]))
    assert widget.method.options == ("linear", "multislerp", "karcher")
    widget.weights.move([1.0, 1.0, 0.0])
    assert widget.wait(SECONDS)
    assert widget.live.recipe.weights == (0.5, 0.5, 0.0)
    widget.curved.value = True
    widget.curves[2].move([0.0, 0.0, 1.0])
    assert widget.wait(SECONDS)
    assert widget.live.recipe.weights[2] == (0.0, 0.0, 1.0)
    assert len(widget.answers) == 4


def test_a_recipe_that_breaks_a_rule_is_told_in_one_line_and_nothing_dies(make) -> None:
    widget = make(live_merge([0.2, 0.3, 0.5]))
    widget.weights.move([0.0, 0.0, 0.0])
    assert 'role="alert"' in widget._status.value
    assert "ConfigError" in widget._status.value
    widget.weights.move([1.0, 0.0, 0.0])
    assert widget.wait(SECONDS)
    assert "Ready" in widget._status.value


def test_an_error_of_the_model_is_told_and_escaped(make, monkeypatch) -> None:
    widget = make()
    with monkeypatch.context() as patch:
        patch.setattr("workbench.views.preview.stream", lambda *_, **__: (_ for _ in ()).throw(ValueError("<b>no</b>")))
        widget.refresh()
        assert widget.wait(SECONDS)
        assert "ValueError: &lt;b&gt;no&lt;/b&gt;" in widget._status.value
    widget.refresh()
    assert widget.wait(SECONDS)
    assert "Ready" in widget._status.value


def test_a_prompt_that_is_too_long_is_told(make) -> None:
    widget = make(live_merge(context=32))
    widget.prompt = "x" * 100
    assert widget.wait(SECONDS)
    assert "context holds 32" in widget._status.value


def test_other_code_that_moves_the_weights_is_told(make, monkeypatch) -> None:
    widget = make()
    started = threading.Event()

    def slow(*_, **__):
        for i in range(10_000):
            started.set()
            threading.Event().wait(0.002)
            yield str(i)

    monkeypatch.setattr("workbench.views.preview.stream", slow)
    widget.refresh()
    assert started.wait(SECONDS)
    widget.live.reset(0)
    assert widget.wait(SECONDS)
    assert "other code moved these weights" in widget._status.value


def test_hostile_answers_are_escaped(make, monkeypatch) -> None:
    monkeypatch.setattr("workbench.views.preview.stream", lambda *_, **__: iter(["<script>alert(1)</script>"]))
    widget = make(prompt="<script>alert(2)</script>", front=front())
    shown = [pane.value for pane in (widget.panes._blend, *widget.panes._panes.values())]
    assert all("&lt;script&gt;" in html and "<script" not in html for html in shown)
    assert "<script" not in widget._repr_mimebundle_()["text/html"]


def test_the_saved_notebook_has_a_table(make) -> None:
    widget = make(front=front())
    bundle = widget._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    table = bundle["text/html"]
    for part in ("linear: general 0.60, medical 0.40", "why?", "Answer of medical", "n = 30", "medical advice"):
        assert part in table


def test_the_chart_follows_the_slider_or_says_why_not(make) -> None:
    widget = make(front=front())
    assert widget.chart.note == ""
    assert widget.chart.position == pytest.approx(0.4)
    widget.method.value = "slerp"
    assert "measured for linear merges" in widget.chart.note
    widget.method.value = "linear"
    widget.curved.value = True
    assert "curve over depth" in widget.chart.note


def test_the_copied_recipe_holds_full_paths_and_the_shown_one_does_not(make, monkeypatch) -> None:
    widget = make()
    sent = []
    monkeypatch.setattr(widget._yaml, "send", sent.append)
    monkeypatch.setattr(MergeRecipe, "to_yaml", lambda self, *, absolute=True: f"absolute: {absolute}")
    widget._yaml._handle_custom_msg({"kind": "copy"}, [])
    assert sent == [{"kind": "copy", "text": "absolute: True"}]
    widget.method.value = "slerp"
    assert widget._yaml.text == "absolute: False"


def test_save_writes_the_blend_and_overwrites_nothing(make, tmp_path) -> None:
    widget = make()
    target = tmp_path / "deep" / "merged"
    widget.save(target)
    assert widget.wait(SECONDS)
    assert f"Saved to {target}" in widget._saved.value
    again = AutoModelForCausalLM.from_pretrained(target)
    assert same_weights(again, widget.live.model)
    assert sorted(path.name for path in target.parent.iterdir()) == ["merged"]
    widget.save(target)
    assert widget.wait(SECONDS)
    assert "exists already and is never overwritten" in widget._saved.value


@pytest.mark.parametrize(("folder", "message"), [("  ", "folder name is empty"), ("{file}/x", "cannot write")])
def test_save_tells_what_is_wrong_with_a_folder(make, tmp_path, folder: str, message: str) -> None:
    (tmp_path / "file").write_text("in the way")
    widget = make()
    widget.save(folder.format(file=tmp_path / "file"))
    assert widget.wait(SECONDS)
    assert message in widget._saved.value


def test_close_stops_the_thread(make) -> None:
    widget = make()
    widget.close()
    assert not widget._worker.alive


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0, step=0.05: the first must be at least 1"),
        ({"step": 0.9}, "step=0.9"),
        ({"front": pd.DataFrame({"t": [1]})}, "a sweep has one named 'ratio'"),
    ],
)
def test_wrong_arguments(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MergeSliders(live_merge(), **settings)


def test_recipes_that_no_slider_can_show() -> None:
    filters = MergeRecipe(parents=["x/general", "x/medical"], weights=[{"mlp": 0.2, "*": 0.5}, {"mlp": 0.8, "*": 0.5}])
    live = live_merge()
    live.apply(filters)
    with pytest.raises(ConfigError, match="filters by tensor name, and the sliders move numbers and curves"):
        MergeSliders(live)
    with pytest.raises(ConfigError, match="one parent 'x/general'; a blend needs two or more"):
        MergeSliders(live_merge([1.0]))
    with pytest.raises(ConfigError, match="front belongs to two parents, and there are 3"):
        MergeSliders(live_merge([0.2, 0.3, 0.5]), front=front())


def test_the_layer_table_reads_curves_as_the_merge_does() -> None:
    live = live_merge()
    recipe = live.recipe.with_ratio([0.0, 0.5, 1.0])
    assert layer_shares(recipe, live.model) == [
        ("embeddings, final norm, head", [1.0, 0.0]),
        ("layer 1", [1.0, 0.0]),
        ("layer 2", [0.0, 1.0]),
    ]
    assert recipe_line(recipe) == "linear: general [1.00, 0.50, 0.00], medical [0.00, 0.50, 1.00]"
