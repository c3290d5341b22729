"""Stages, pacing and the curriculum's sequences: what is open when, in which order, and what memories give back."""

import itertools
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.curriculum.curriculum import Curriculum
from workbench.curriculum.memory import LongTermMemory, ShortTermMemory
from workbench.curriculum.pacing import ORDERS, PACINGS, competence, replays
from workbench.curriculum.stage import Stage
from workbench.errors import ConfigError
from workbench.records import Example

NAMES = ("general", "broad", "specialist")


def rows(name: str, n: int = 10, **changes) -> list[Example]:
    return [Example(**({"id": f"{name}{i}", "skill": name, "query": "q", "answer": "a"} | changes)) for i in range(n)]


def stages(n: int = 10, **changes) -> list[Stage]:
    return [Stage(name=name, data=rows(name, n), **changes) for name in NAMES]


def feed(curriculum: Curriculum, plan, *, size: int = 4, start: int = 0) -> int:
    """Report a plan's examples as a trainer would, and return the last step."""
    step = start
    ids = [example.id for example in plan.examples]
    parts = [ids[i : i + size] for i in range(0, len(ids), size)]
    for step, part in enumerate(parts, start + 1):
        losses = torch.arange(1.0, len(part) + 1)
        inputs = {"attention_mask": torch.ones(len(part), 3, dtype=torch.long)}
        batch = SimpleNamespace(stage=plan.name, step=step, ids=tuple(part), losses=losses, inputs=inputs)
        curriculum.on_batch(batch)
    return step


def skills(plan) -> set[str]:
    return {example.skill for example in plan.examples}


def test_cumulative_keeps_earlier_stages_open_and_sequential_does_not() -> None:
    cumulative, sequential = Curriculum(stages()), Curriculum(stages(), pacing="sequential")
    assert [skills(plan) for plan in cumulative] == [set(NAMES[: k + 1]) for k in range(3)]
    assert [len(plan.examples) for plan in cumulative] == [10, 20, 30]
    assert [skills(plan) for plan in sequential] == [{name} for name in NAMES]
    assert all(len({e.id for e in plan.examples}) == 10 for plan in sequential)


@given(sizes=st.lists(st.integers(1, 12), min_size=1, max_size=4), seed=st.integers(0, 99))
@settings(max_examples=25)
def test_cumulative_pacing_is_monotone(sizes, seed) -> None:
    made = [Stage(name=str(k), data=rows(f"{k}-", n)) for k, n in enumerate(sizes)]
    opened = [{e.id for e in plan.examples} for plan in Curriculum(made, seed=seed)]
    assert all(before < after for before, after in itertools.pairwise(opened))


@given(pacing=st.sampled_from(PACINGS), order=st.sampled_from(ORDERS), seed=st.integers(0, 9))
@settings(max_examples=25)
def test_the_same_seed_gives_the_same_order(pacing, order, seed) -> None:
    made = [Curriculum(stages(6), pacing=pacing, order=order, seed=seed, long_term=LongTermMemory(9),
                       short_term=ShortTermMemory(5), consistency_coef=0) for _ in range(2)]  # fmt: skip
    ids = []
    for curriculum in made:
        ids.append([])
        step = 0
        for plan in curriculum:
            ids[-1].append([e.id for e in plan.examples])
            step = feed(curriculum, plan, start=step)
    assert ids[0] == ids[1]


def test_seeds_differ() -> None:
    first, second = ([e.id for e in Curriculum(stages(), seed=seed).plan(2).examples] for seed in (0, 1))
    assert first != second


@given(t=st.floats(0, 2), later=st.floats(0, 2), start=st.floats(0.01, 1))
def test_competence_grows_from_its_start_to_one(t, later, start) -> None:
    assert competence(0, start) == pytest.approx(start)
    assert competence(1, start) == pytest.approx(1)
    assert start - 1e-9 <= competence(min(t, later), start) <= competence(max(t, later), start) <= 1


def test_competence_at_half_time() -> None:
    # sqrt(0.5 (1 - 0.01) + 0.01) = sqrt(0.505)
    assert competence(0.5, 0.1) == pytest.approx(0.505**0.5)


def test_competence_pacing_opens_the_easiest_first() -> None:
    plans = [Curriculum(stages(20), pacing="competence").plan(k) for k in range(3)]
    ranked = [e.id for stage in stages(20) for e in stage.examples]
    places = [[ranked.index(e.id) for e in plan.examples] for plan in plans]
    assert max(places[0][:5]) < 20  # c(4/60) is 0.28, the first 17 of 60
    assert max(places[2]) >= 50
    averages = [sum(p) / len(p) for p in places]
    assert averages == sorted(averages)


def test_the_controls() -> None:
    anti = Curriculum(stages(), pacing="sequential", order="anti")
    assert [plan.name for plan in anti] == [*NAMES[::-1]]
    shuffled = list(Curriculum(stages(40), order="shuffled"))
    assert [skills(plan) for plan in shuffled] == [set(NAMES)] * 3
    # Together the stages read all data once.
    read = sorted(example.id for plan in shuffled for example in plan.examples)
    assert read == sorted(example.id for stage in stages(40) for example in stage.examples)


def test_a_mixture_sets_the_shares() -> None:
    mixture = {"general": 0.25, "specialist": 0.75}
    last = Stage(name="specialist", data=rows("specialist"), mixture=mixture, steps=100)
    plan = Curriculum([*stages()[:2], last], batch_size=4).plan(2)
    drawn = [e.skill for e in plan.examples]
    assert len(drawn) == 400
    assert plan.steps == 100
    assert set(drawn) == {"general", "specialist"}
    assert 70 < drawn.count("general") < 130


def test_rehearsal_is_spread_evenly_and_comes_from_other_stages() -> None:
    assert replays(8, 0.25) == [False, False, False, True] * 2
    assert sum(replays(1000, 0.2)) == 200
    curriculum = Curriculum(stages(12), pacing="sequential", long_term=LongTermMemory(9), replay_ratio=0.5,
                            consistency_coef=0)  # fmt: skip
    first = curriculum.plan(0)
    assert not any(first.replayed)
    feed(curriculum, first)
    second = curriculum.plan(1)
    again = {e.skill for e, mark in zip(second.examples, second.replayed, strict=True) if mark}
    own = [e.id for e, mark in zip(second.examples, second.replayed, strict=True) if not mark]
    assert again == {"general"}
    assert sorted(own) == sorted(e.id for e in stages(12)[1].examples)
    assert len(second.examples) == 24


def test_promotion_waits_for_theta() -> None:
    long = LongTermMemory(9, theta=2)
    curriculum = Curriculum(stages(5, epochs=2), short_term=ShortTermMemory(4), long_term=long, consistency_coef=0)
    plan = curriculum.plan(0)
    half = SimpleNamespace(**{**vars(plan), "examples": plan.examples[:5]})
    last = feed(curriculum, half, size=5)
    assert len(long) == 0
    feed(curriculum, SimpleNamespace(**{**vars(plan), "examples": plan.examples[5:]}), size=5, start=last)
    assert len(long) == 3
    assert {row["stage"] for row in long.rows()} == {"general"}


def test_without_short_term_memory_nobody_counts() -> None:
    long = LongTermMemory(9, theta=5)
    curriculum = Curriculum(stages(), long_term=long, consistency_coef=0)
    feed(curriculum, curriculum.plan(0))
    assert len(long) == 3


def test_losses_and_costs_are_noted() -> None:
    curriculum = Curriculum(stages(4), pacing="sequential", batch_size=2)
    feed(curriculum, curriculum.plan(2), size=2)
    assert [row["step"] for row in curriculum.history] == [1, 2]
    assert all(row["task"] + row["fine_tune"] > 0 for row in curriculum.history)
    assert curriculum.costs["specialist"]["tokens"] == 12
    assert curriculum.costs["specialist"]["examples"] == 4


def test_state_goes_through_json_and_back() -> None:
    import json

    def make() -> Curriculum:
        return Curriculum(stages(8), short_term=ShortTermMemory(6), long_term=LongTermMemory(9), consistency_coef=0)

    one, two = make(), make()
    feed(one, one.plan(1), start=feed(one, one.plan(0)))
    two.load_state_dict(json.loads(json.dumps(one.state_dict(), sort_keys=True)))
    assert [e.id for e in one.plan(2).examples] == [e.id for e in two.plan(2).examples]
    assert one.history == two.history


def test_a_new_run_forgets_the_one_before() -> None:
    curriculum = Curriculum(stages(8), short_term=ShortTermMemory(6))
    plan = curriculum.plan(0)
    feed(curriculum, plan)
    feed(curriculum, plan)
    assert len(curriculum.history) == 2
    assert {row["seen"] for row in curriculum.short_term.rows()} == {1}


def test_json_round_trip() -> None:
    made = [Stage(name="a", data=rows("a"), steps=3, lr=1e-3),
            Stage(name="b", data=rows("b"), epochs=0.5, patience=2, lr_scales={"*lora_A*": 0.0}),
            Stage(name="c", data=rows("c"), mixture={"a": 0.5, "c": 0.5})]  # fmt: skip
    one = Curriculum(made, pacing="sequential", order="anti", short_term=ShortTermMemory(7),
                     long_term=LongTermMemory(9, theta=2, quotas={"a": 2, "b": 3, "c": 4}), seed=5)  # fmt: skip
    data = {"a": rows("a"), "b": rows("b"), "c": rows("c")}
    two = Curriculum.from_json(one.to_json(), data)
    assert two.to_json() == one.to_json()
    assert [e.id for e in two.plan(0).examples] == [e.id for e in one.plan(0).examples]
    with pytest.raises(ConfigError, match=r"it lacks the examples of stage 'b'"):
        Curriculum.from_json(one.to_json(), {"a": rows("a"), "c": []})
    with pytest.raises(ConfigError, match=r"'b' was written with 10 examples of digest .* give the same data"):
        Curriculum.from_json(one.to_json(), data | {"b": rows("b", 9)})
    for text in ("{", "[]", '{"stages": []}'):
        with pytest.raises(ConfigError, match=r"is no curriculum .* write it with Curriculum.to_json|at least one"):
            Curriculum.from_json(text, data)


def test_no_better_ends_a_stage() -> None:
    done = Stage(name="a", data=rows("a"), patience=2).done()
    history = [{"eval_loss": loss} for loss in (3.0, 2.0, 2.5)]
    assert not done(history)
    assert done([*history, {"eval_loss": 2.0}])
    assert not done([*history, {"eval_loss": 1.9}])
    with pytest.raises(ConfigError, match="patience=2 and no validation loss was measured"):
        done([{"eval_ner": 0.5}])
    assert Stage(name="a", data=rows("a")).done() is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": []}, "stage 'a' has 0 examples"),
        ({"name": ""}, "it needs a name"),
        ({"data": rows("a") * 2}, "holds id 'a0' twice"),
        ({"data": rows("a", split="test")}, "split 'test'; stages and memories hold training examples only"),
        ({"steps": 3, "epochs": 1}, "steps=3 and epochs=1; give one"),
        ({"steps": 0}, "steps=0; it must be at least 1"),
        ({"epochs": 0}, "epochs=0; it must be above 0"),
        ({"lr": float("nan")}, "lr=nan; it must be above 0"),
        ({"patience": 0}, "patience=0"),
        ({"lr_scales": {"*lora_A*": -1}}, r"lr_scales {'\*lora_A\*': -1}; a factor must be at least 0, and 0 freezes"),
        ({"mixture": {"a": 0.5}}, "shares must be above 0 and sum to 1"),
    ],
)
def test_bad_stages(changes, message) -> None:
    with pytest.raises(ConfigError, match=message):
        Stage(**({"name": "a", "data": rows("a")} | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stages": []}, r"named \[\]; there must be at least one"),
        ({"stages": stages() * 2}, "each with its own name"),
        ({"pacing": "fast"}, "pacing='fast' is unknown; use one of sequential, cumulative, competence"),
        ({"order": "up"}, "order='up' is unknown"),
        ({"consistency": "l1"}, "consistency='l1' is unknown; use one of kl, hidden"),
        ({"replay_ratio": 1.0}, "replay_ratio=1.0; it is a share"),
        ({"consistency_coef": -1}, "consistency_coef=-1; it must be at least 0"),
        ({"fine_tune_coef": float("nan")}, "fine_tune_coef=nan"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"specialist": "x"}, "there is no stage 'x'; the stages are"),
        ({"long_term": LongTermMemory(2)}, "has no place for stage 'general'"),
        (
            {"stages": [Stage(name="a", data=rows("a")), Stage(name="b", data=rows("a", query="other"))]},
            "two different",
        ),
    ],
)
def test_bad_curricula(changes, message) -> None:
    changes = dict(changes)
    with pytest.raises(ConfigError, match=message):
        Curriculum(changes.pop("stages", stages()), **changes)


def test_a_trainer_that_does_not_report_is_noticed() -> None:
    curriculum = Curriculum(stages(), short_term=ShortTermMemory(3))
    with pytest.raises(ConfigError, match=r"no batch was reported before stage 'broad'.*call curriculum.on_batch"):
        list(curriculum)
    curriculum = Curriculum(stages(), long_term=LongTermMemory(3))
    with pytest.raises(ConfigError, match="extra_losses was not called"):
        feed(curriculum, curriculum.plan(0))
    curriculum = Curriculum(stages(steps=4), batch_size=8)
    with pytest.raises(
        ConfigError, match=r"reads 4 examples in an optimiser step.*give Curriculum\(..., batch_size=4\)"
    ):
        feed(curriculum, curriculum.plan(0), size=4)
