"""Sliders over skills, the search as it runs, and their pictures, on pico models without a browser."""

import threading
import warnings
from types import SimpleNamespace

import pytest
import torch
from peft import get_peft_model
from pico_adapters import adalora, lora, saved
from pico_language import byte_tokenizer, pico

from workbench.adapters import SkillRouterConfig, set_skill_weights, skill_weights
from workbench.adapters.lorahub import SearchStep
from workbench.errors import ConfigError
from workbench.records import Example, RouterOutput, RoutingTrace
from workbench.views.skill_pictures import gate_panel, leave_one_out, leave_one_out_panel, path_panels, weights_panel
from workbench.views.skill_search import SkillSearch
from workbench.views.skill_sliders import SkillSliders

SECONDS = 60
NAMES = ["ner", "entity_relation", "inference"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Three saved skills of different ranks for the pico model."""
    home = tmp_path_factory.mktemp("skills")
    kinds = [lora(r=2), lora(r=3), adalora()]
    for i, (name, kind) in enumerate(zip(NAMES, kinds)):
        saved(pico(context=256), kind, home / name, seed=i + 1)
    return {name: str(home / name) for name in NAMES}


def routed(folders, **settings):
    """Return a pico model with a skill router over them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = SkillRouterConfig(skills=folders, task_type="CAUSAL_LM", **settings)
        return get_peft_model(pico(context=256), config).eval()


@pytest.fixture
def mixed(folders):
    """A model whose weights are numbers, the same in all layers."""
    return routed(folders)


@pytest.fixture
def make(mixed):
    """Build sliders that are closed at the end of the test."""
    made = []

    def build(**settings):
        widget = SkillSliders(mixed, byte_tokenizer(chat=True), **{"prompt": "cough", "max_new_tokens": 6, **settings})
        made.append(widget)
        assert widget.wait(SECONDS)
        return widget

    yield build
    for widget in made:
        widget.close()


def test_both_answer_and_without_skills_they_say_the_same(make):
    widget = make()
    widget.move({})
    assert widget.wait(SECONDS)
    assert widget.weights == dict.fromkeys(NAMES, 0.0)
    assert widget.answers["blend"] == widget.answers["base"] != ""
    assert "Ready. First new token" in widget._status.value


def test_a_move_sets_the_model_and_changes_the_answer(make, mixed):
    widget = make()
    widget.move({})
    assert widget.wait(SECONDS)
    before = widget.answers["blend"]
    widget.sliders.move([1.5, -0.5, 1.0])
    assert widget.wait(SECONDS)
    assert skill_weights(mixed) == pytest.approx({"ner": 1.5, "entity_relation": -0.5, "inference": 1.0})
    assert widget.answers["blend"] != before == widget.answers["base"]


def test_the_latest_of_many_moves_wins(make, mixed):
    widget = make(max_new_tokens=40)
    for weight in (0.1, 0.2, 0.3, 0.85):
        widget.move({"ner": weight})
    assert widget.wait(SECONDS)
    assert skill_weights(mixed)["ner"] == pytest.approx(0.85)
    assert "Ready" in widget._status.value


def test_the_base_is_asked_once_for_each_prompt(make, monkeypatch):
    widget = make()
    asked = []
    monkeypatch.setattr(
        "workbench.views.skill_sliders.stream", lambda *given, **_: asked.append(given[2]) or iter(["hm"])
    )
    widget.move({"ner": 1.0})
    assert widget.wait(SECONDS)
    widget.prompt = "and now?"
    assert widget.wait(SECONDS)
    assert asked == ["cough", "and now?", "and now?"]


def test_presets_come_from_mappings_searches_and_models(make, mixed):
    found = SimpleNamespace(weights={"ner": 0.7, "inference": -1.8})
    widget = make(presets={"LoraHub": found, "router": mixed})
    assert list(widget.presets)[:4] == ["no skill (the base)", "uniform", "LoraHub", "router"]
    assert widget.presets["only entity relation"]["entity_relation"] == 1.0
    widget.preset.value = "LoraHub"
    assert widget.wait(SECONDS)
    assert widget.weights == {"ner": 0.7, "entity_relation": 0.0, "inference": -1.8}
    assert widget.sliders.bound == 2.0, "a weight outside the sliders widens them"
    assert widget.preset.value == "LoraHub"
    widget.preset.value = "uniform"
    assert widget.wait(SECONDS)
    assert widget.weights == pytest.approx(dict.fromkeys(NAMES, 1 / 3))
    widget.sliders.move([0.0, 0.0, 0.4])
    assert widget.preset.value == "choose …", "the weights are no longer the preset's"


def test_what_is_refused_says_what_to_do(make):
    with pytest.raises(ConfigError, match=r"'mine' weighs \['surgery'\], but the model's skills are .*; use those"):
        make(presets={"mine": {"surgery": 1.0}})
    with pytest.raises(ConfigError, match="max_new_tokens=0 must be at least 1; the default is 48"):
        make(max_new_tokens=0)


def test_a_saved_page_shows_weights_and_answers_and_escapes_them(make):
    widget = make(prompt="<b>why</b>")
    widget.move({"ner": 0.5})
    table = widget._repr_mimebundle_()["text/html"]
    assert "ner +0.50" in table
    assert "&lt;b&gt;why&lt;/b&gt;" in table
    assert "<b>why" not in table


def test_weights_of_each_layer_are_kept_until_a_slider_moves(folders):
    model = routed(folders, per_layer=True)
    weights = {"ner": [1.0, 0.0], "entity_relation": [0.0, 0.0], "inference": [-0.5, 0.5]}
    set_skill_weights(model, weights)
    widget = SkillSliders(model, byte_tokenizer(chat=True), prompt="cough", max_new_tokens=2)
    assert widget.wait(SECONDS)
    assert skill_weights(model) == weights
    widget.move({"ner": 1.0})
    assert widget.wait(SECONDS)
    assert skill_weights(model)["ner"] == [1.0, 1.0]
    widget.close()


def test_an_error_is_shown_and_the_next_move_works(make):
    widget = make()
    widget.prompt = "x" * 300
    assert widget.wait(SECONDS)
    assert "ConfigError" in widget._status.value
    widget.prompt = "cough"
    assert widget.wait(SECONDS)
    assert "Ready" in widget._status.value


# The search.


def tries(losses):
    best, rows = float("inf"), []
    for i, loss in enumerate(losses):
        best = min(best, loss + 0.1)
        weights = {"ner": 0.5 * i, "inference": -0.1}
        rows.append(SearchStep(step=i, loss=loss, penalised=loss + 0.1, weights=weights, best=best))
    return rows


def fake_search(*, budget, on_step, stop, go=None, **_):
    """Walk through some tries as `compose_skills` does, until it is stopped."""
    for row in tries([2.0 - 0.1 * i for i in range(budget)]):
        if stop.is_set():
            break
        on_step(row)
        if go is not None:
            go.acquire(timeout=SECONDS)
    return SimpleNamespace(weights={"ner": 1.0}, found_better=True, seconds=1.0)


def test_a_search_runs_aside_and_its_path_is_drawn():
    view = SkillSearch(fake_search, budget=5, seed=3)
    assert view.wait(SECONDS)
    assert view.result.weights == {"ner": 1.0}
    assert len(view.trace) == 5
    assert "Done after 5 tries" in view._status.value
    assert view._button.disabled
    page = view._repr_mimebundle_()["text/html"]
    assert "<img" in page
    assert "seed 3" in page
    view.close()


def test_a_search_hears_stop_and_keeps_what_it_found():
    go = threading.Semaphore(0)
    view = SkillSearch(fake_search, budget=1000, go=go)
    view.stop()
    go.release(2)
    assert view.wait(SECONDS)
    assert len(view.trace) <= 1
    assert view.result is not None
    assert "Stopped" in view._status.value
    view.close()


def test_a_failed_search_says_why():
    view = SkillSearch(lambda **_: (_ for _ in ()).throw(ConfigError("no examples")))
    with pytest.raises(ConfigError, match="no examples"):
        view.wait(SECONDS)
    assert "ConfigError: no examples" in view._status.value
    view.close()


# The pictures.


def test_the_map_of_weights_marks_what_holds_over_seeds():
    seeds = [{"ner": 0.9, "inference": value} for value in (0.4, -0.5, 0.1)]
    seeds[1]["ner"], seeds[2]["ner"] = 1.0, 1.1
    panel = weights_panel({"abbreviation": seeds, "referral": [{"ner": 0.2}]})
    assert panel.rows[0] == ["ner", "+1.00 (+0.75 to +1.25)", "+0.20"]
    assert panel.picture.count("*</text>") == 1, "one seed has no interval, and the other skill's holds 0"
    assert "1 = abbreviation (n = 3); 2 = referral (n = 1)" in panel.about
    with pytest.raises(ConfigError, match=r"tasks without weights: \['referral'\]; give each task"):
        weights_panel({"referral": []})


def test_the_path_shows_the_best_so_far():
    loss, weights = path_panels(tries([2.0, 1.0, 1.5]), seed=1)
    assert [row[-1] for row in loss.rows] == ["2.100", "1.100", "1.100"]
    assert weights.rows[0] == ["ner", "+0.00", "+0.50", "+0.50"], "the third try is worse, so the second one leads"


def test_leaving_a_skill_out_is_compared_example_by_example_and_undone(mixed):
    weights = {"ner": 1.0, "entity_relation": 0.0, "inference": -0.5}
    set_skill_weights(mixed, weights)
    rows = [Example(id=str(i), skill="x", query=f"what is {i}?", answer=f"it is {i}") for i in range(4)]
    rises = leave_one_out(mixed, byte_tokenizer(chat=True), rows)
    assert list(rises) == ["ner", "inference"], "a weight of 0 has nothing to leave out"
    assert all(len(rise) == 4 and any(rise) for rise in rises.values())
    assert skill_weights(mixed) == pytest.approx(weights)


def test_weights_of_each_layer_are_put_back_as_they_were(folders):
    model = routed(folders, per_layer=True)
    weights = {"ner": [1.0, 0.0], "entity_relation": [0.0, 0.0], "inference": [-0.5, 0.5]}
    set_skill_weights(model, weights)
    rows = [Example(id=str(i), skill="x", query=f"what is {i}?", answer=f"it is {i}") for i in range(2)]
    assert list(leave_one_out(model, byte_tokenizer(chat=True), rows)) == ["ner", "inference"]
    assert skill_weights(model) == weights


def test_the_bars_run_from_the_most_missed_to_the_most_harmful():
    panel = leave_one_out_panel({"ner": [0.1, 0.1, 0.1], "inference": [1.0, 1.1, 0.9], "x": [-0.2, 0.3, 0.1]})
    assert [row[0] for row in panel.rows] == ["inference", "ner", "x"]
    assert panel.rows[0][1] == "+1.000 (+0.752 to +1.248)"
    assert panel.picture.count("*</text>") == 2
    for rises in ({}, {"ner": [0.1]}):
        with pytest.raises(ConfigError, match="it takes a skill of weight other than 0, and 2 examples"):
            leave_one_out_panel(rises)


def test_the_gates_choice_is_the_mean_over_its_routers():
    def decided(first):
        picked = RouterOutput(
            router_logits=torch.zeros(3, 2),
            routing_weights=torch.tensor([[first, 1 - first]] * 2 + [[0.9, 0.1]]),
            selected_experts=torch.tensor([[0, 1], [0, 1], [1, 0]]),
        )
        return picked

    tokens = {"token_id": torch.tensor([1, 2, 3]), "document": torch.tensor([0, 0, 1])}
    trace = RoutingTrace(tokens=tokens, routers={"a": decided(0.8), "b": decided(0.6)}, layers={"a": 0, "b": 1})
    panel = gate_panel(trace, ["ner", "inference"], ["<i>first</i>", "second"])
    assert panel.rows == [["ner", "+0.70", "+0.10"], ["inference", "+0.30", "+0.90"]]
    assert "&lt;i&gt;first" in panel.live()
    for given, widths in ((trace, r"\[2\]"), (RoutingTrace(), r"\[\]")):
        with pytest.raises(ConfigError, match=f"choose among {widths} experts, and 1 skills were named; capture a"):
            gate_panel(given, ["ner"])
