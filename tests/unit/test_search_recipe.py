"""The search for a recipe, on a landscape whose best place is known."""

import json
import threading

import pytest
from pico_language import byte_tokenizer, pico

from workbench.errors import ConfigError
from workbench.evaluation import EvaluationStopped, Task
from workbench.merging.live import LiveMerge
from workbench.merging.recipe import MergeRecipe
from workbench.records import Example, Score, Scores
from workbench.search import scoring
from workbench.search.recipes import UNIFORM, RatioSpace, best_recipe, search_recipe

RECIPE = MergeRecipe(parents=["general", "clinical"])
SPACE = RatioSpace(groups=("attn", "mlp"), points=1)
TASKS = [
    Task(name=name, group=name, metric="exact_match", examples=[Example(id="e", skill=name, query="q", answer="a")])
    for name in ("clinical", "instructions")
]


@pytest.fixture
def live() -> LiveMerge:
    return LiveMerge(RECIPE, models=[pico(seed=1), pico(seed=2)], tokenizer=byte_tokenizer(chat=True))


@pytest.fixture
def asked(monkeypatch, live) -> list[tuple[float, float]]:
    """Clinical knowledge sits in the MLPs and manners in attention: the best blend is attention 0, MLP 1."""
    seen = []

    def landscape(model, tokenizer, *, stop, **_):
        if stop is not None and stop.is_set():
            raise EvaluationStopped
        attention, mlp = (live.recipe.weights_at(f"layers.0.{part}.weight", 0.0)[1] for part in ("attn", "mlp"))
        seen.append((attention, mlp))
        values = {"clinical": 0.2 + 0.7 * mlp**2, "instructions": 0.9 - 0.7 * attention**2}
        return Scores(
            tasks={n: Score(value=v, low=v, high=v, n=1, metric="exact_match", group=n) for n, v in values.items()}
        )

    monkeypatch.setattr(scoring, "evaluate", landscape)
    return seen


def run(live, **options):
    return search_recipe(RECIPE, **{"budget": 60, "space": SPACE, "suite": TASKS, "live": live, **options})


def test_the_search_beats_every_plain_ratio_and_finds_the_known_place(live, asked):
    found = run(live, budget=120, progress=False)
    plain = found[found["step"] == "uniform"]
    best = best_recipe(found)
    assert found["kept"].max() > plain["kept"].max() + 0.2
    assert best.weights_at("layers.1.mlp.up_proj.weight", 1.0)[1] > 0.9
    assert best.weights_at("layers.1.attn.q_proj.weight", 1.0)[1] < 0.1
    assert [*found["step"][:7]] == ["parent"] * 2 + ["uniform"] * len(UNIFORM)
    assert len(found) == 122


def test_what_is_kept_is_a_share_of_the_better_parent(live, asked):
    found = run(live, budget=6, progress=False)
    row = found.iloc[4]
    assert row["kept_clinical"] == pytest.approx((0.2 + 0.7 * 0.25) / 0.9)
    assert row["kept"] == min(row["kept_clinical"], row["kept_instructions"])


def test_the_front_holds_whatever_nothing_beats(live, asked):
    found = run(live, progress=False)
    for _, row in found.iterrows():
        better = (found["clinical"] >= row["clinical"]) & (found["instructions"] >= row["instructions"])
        strictly = better & ((found["clinical"] > row["clinical"]) | (found["instructions"] > row["instructions"]))
        assert row["front"] == (not strictly.any())


def test_a_search_goes_on_from_its_store_with_the_same_steps(live, asked, tmp_path):
    whole = run(live, progress=False)
    asked.clear()
    part = run(live, store=tmp_path / "rows.sqlite", stop=_After(asked, 20), progress=False)
    assert [*part["recipe"]] == [*whole["recipe"][:20]]
    asked.clear()
    resumed = run(live, store=tmp_path / "rows.sqlite", progress=False)
    assert [*resumed["recipe"]] == [*whole["recipe"]]
    assert len(asked) <= 42


class _After(threading.Event):
    """Set as soon as so many recipes were scored."""

    def __init__(self, asked, count):
        super().__init__()
        self._asked, self._count = asked, count

    def is_set(self):
        return len(self._asked) >= self._count


def test_stop_before_the_first_recipe_is_no_loss(live, asked):
    before = live.recipe
    assert run(live, stop=_After(asked, 0), progress=False).empty
    assert live.recipe == before


def test_the_space_writes_filters_within_bounds():
    space = RatioSpace(groups=("attn", "mlp"), points=2)
    assert space.size == 5
    assert space.share([0.1, 0.2, -3, 0.4, 7]) == {"attn": [0.1, 0.2], "mlp": [0.0, 0.4], "*": [1.0]}
    assert json.loads(RECIPE.with_ratio(space.share([0.5] * 5)).to_json())["weights"][1]["mlp"] == [0.5, 0.5]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 5}, "budget=5: the 5 plain ratios"),
        ({"axes": ("clinical", "manners")}, "'manners' was not scored"),
    ],
)
def test_bad_settings_are_said(live, asked, options, message):
    with pytest.raises(ConfigError, match=message):
        run(live, progress=False, **options)


@pytest.mark.parametrize("space", [{"groups": ("mlp", "mlp")}, {"groups": ("",)}, {"points": 0}])
def test_a_bad_space_is_said(space):
    with pytest.raises(ConfigError, match=r"groups=|points="):
        RatioSpace(**space)


def test_nothing_to_keep_is_said(live, monkeypatch):
    zero = {n: Score(value=0, low=0, high=0, n=1, metric="exact_match", group=n) for n in ("clinical", "instructions")}
    monkeypatch.setattr(scoring, "evaluate", lambda *_, **__: Scores(tasks=zero))
    with pytest.raises(ConfigError, match="both parents score 0 on 'clinical'"):
        run(live, progress=False)
