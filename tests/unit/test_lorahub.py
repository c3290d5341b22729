"""The search of skill weights on losses whose minimum is known, and mixes written out by hand."""

import math
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.adapters.lorahub import Composition, search_weights
from workbench.adapters.skill_mix import SkillMix
from workbench.adapters.skill_router.bank import BankLayer, SkillBank
from workbench.errors import ConfigError, ModelError, WorkbenchWarning

NAMES = ("ner", "qa", "exam")
BEST = {"ner": 0.75, "qa": -0.5, "exam": 0.0}


def bowl(weights):
    return 1.0 + sum((weights[name] - BEST[name]) ** 2 for name in NAMES)


def search(loss=bowl, names=NAMES, **options):
    return search_weights(loss, names, **{"budget": 40} | options)


@pytest.mark.parametrize(("optimizer", "budget"), [("ngopt", 40), ("cma", 200)])
def test_both_optimisers_find_the_bottom_of_a_bowl(optimizer, budget):
    found = search(optimizer=optimizer, budget=budget, l1=0.0)
    assert found.found_better
    assert found.weights == pytest.approx(BEST, abs=0.1)
    assert len(found.trace) == budget
    assert found.trace[0].weights == dict.fromkeys(NAMES, 0.0)
    assert found.trace[0].loss == 1 + 0.75**2 + 0.5**2


def test_the_penalty_is_l1_times_the_mean_weight_and_best_never_rises():
    found = search(optimizer="ngopt", l1=0.3)
    for row in found.trace:
        assert row.penalised == pytest.approx(row.loss + 0.1 * sum(abs(value) for value in row.weights.values()))
    best = [row.best for row in found.trace]
    assert best == list(np.minimum.accumulate([row.penalised for row in found.trace]))
    assert found.weights in [row.weights for row in found.trace if row.penalised == best[-1]]


def test_ngopt_tries_what_nevergrads_ngopt_tries_for_20_skills_and_budget_40():
    import nevergrad

    names = [str(i) for i in range(20)]
    loss = lambda weights: sum((value - 0.1 * int(name)) ** 2 for name, value in weights.items())  # noqa: E731
    found = search(loss, names, l1=0.0)
    values = nevergrad.p.Array(init=[0.0] * 20, lower=[-1.5] * 20, upper=[1.5] * 20)
    reference, asked = nevergrad.optimizers.NGOpt(parametrization=values, budget=40), []
    for _ in range(40):
        candidate = reference.ask()
        asked.append(dict(zip(names, candidate.value.tolist())))
        reference.tell(candidate, loss(asked[-1]))
    reference.optim._messaging_thread.stop()
    assert [row.weights for row in found.trace] == asked


@pytest.mark.parametrize("optimizer", ["ngopt", "cma"])
def test_the_reference_tries_w_0_first_and_each_candidate_once(optimizer):
    asked = []
    found = search(lambda weights: asked.append(weights) or bowl(weights), optimizer=optimizer, budget=10)
    assert asked == [row.weights for row in found.trace]
    assert [any(weights.values()) for weights in asked] == [False] + [True] * 9


@pytest.mark.parametrize("optimizer", ["ngopt", "cma"])
def test_the_same_seed_gives_the_same_trace(optimizer):
    runs = [search(optimizer=optimizer, budget=12, seed=seed) for seed in (1, 1, 2)]
    assert runs[0].trace == runs[1].trace
    assert (runs[0].trace == runs[2].trace) == (optimizer == "ngopt")


@pytest.mark.filterwarnings("ignore::workbench.errors.WorkbenchWarning")
@settings(max_examples=12, deadline=None)
@given(
    optimizer=st.sampled_from(["ngopt", "cma"]),
    bound=st.floats(0.05, 3),
    seed=st.integers(0, 99),
    slope=st.floats(-9, 9),
    size=st.integers(1, 5),
)
def test_no_candidate_leaves_the_bounds(optimizer, bound, seed, slope, size):
    names = NAMES[:1] + tuple(map(str, range(size - 1)))
    steep = lambda weights: slope * sum(weights.values())  # noqa: E731
    found = search(steep, names, optimizer=optimizer, bound=bound, seed=seed, budget=15, l1=0.0)
    assert all(abs(value) <= bound for row in found.trace for value in row.weights.values())


def test_where_nothing_beats_w_0_the_weights_stay_0_and_it_is_said():
    with pytest.warns(WorkbenchWarning, match=r"none of 9 candidates has a lower loss than w = 0 \(1\)"):
        found = search(lambda weights: 1 + sum(map(abs, weights.values())), budget=10)
    assert not found.found_better
    assert found.weights == dict.fromkeys(NAMES, 0.0)
    assert repr(found) == "Composition(nothing better than w = 0; 10 steps, 1.000 -> 1.000)"


@pytest.mark.parametrize("optimizer", ["ngopt", "cma"])
def test_candidates_without_a_loss_are_passed_over_and_told(optimizer):
    def broken(weights):
        return math.nan if weights["ner"] > 0.3 else bowl(weights)

    with pytest.warns(WorkbenchWarning, match=r"of 60 candidates gave a loss that is no number and were passed over"):
        found = search(broken, optimizer=optimizer, budget=60)
    assert found.found_better
    assert found.weights["ner"] <= 0.3
    bad = [row for row in found.trace if math.isnan(row.loss)]
    assert bad
    assert all(math.isfinite(row.best) for row in found.trace)


def test_a_base_without_a_loss_is_refused():
    with pytest.raises(ModelError, match="the loss of w = 0 is inf, so that the base itself is broken"):
        search(lambda _: math.inf)


@pytest.mark.parametrize("optimizer", ["ngopt", "cma"])
def test_a_stop_keeps_the_best_so_far(optimizer):
    stop, rows = threading.Event(), []

    def step(row):
        rows.append(row)
        if len(rows) == 7:
            stop.set()

    found = search(optimizer=optimizer, on_step=step, stop=stop)
    assert found.trace == tuple(rows)
    assert len(rows) == 7
    assert found.about["stopped"]
    early = search(stop=stop)
    assert early.weights == dict.fromkeys(NAMES, 0.0)
    assert early.trace == ()
    assert not early.found_better


def test_a_search_that_fails_leaves_no_thread_behind():
    def fails(weights):
        if any(weights.values()):
            raise RuntimeError("out of memory")
        return 1.0

    before = threading.active_count()
    with pytest.raises(RuntimeError, match="out of memory"):
        search(fails, optimizer="ngopt")
    for thread in threading.enumerate():
        if thread.name.startswith("Thread"):
            thread.join(5)
    assert threading.active_count() == before


@pytest.mark.slow
def test_a_process_exits_after_a_search_that_was_stopped():
    code = (
        "import threading; from workbench.adapters.lorahub import search_weights as s\n"
        "stop = threading.Event()\n"
        "s(lambda w: 1 - w['0'], [str(i) for i in range(20)], optimizer='ngopt', stop=stop,\n"
        "  on_step=lambda row: row.step == 5 and stop.set())\n"
        "keep = s\n"
        "try:\n"
        "    s(lambda w: 1 / (not any(w.values())), [str(i) for i in range(20)], optimizer='ngopt')\n"
        "except ZeroDivisionError as error:\n"
        "    keep = error\n"
        "print('over')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == "over\n"


def test_a_composition_comes_back_from_its_file(tmp_path):
    with pytest.warns(WorkbenchWarning):
        found = search(lambda weights: math.nan if weights["qa"] > 0 else bowl(weights), budget=9)
    found.save(tmp_path / "found.json")
    again = Composition.load(tmp_path / "found.json")
    assert repr(again.trace) == repr(found.trace)
    assert (again.weights, again.about, again.seconds) == (found.weights, found.about, found.seconds)
    assert list(again.weights) == list(NAMES)
    (tmp_path / "odd.json").write_text('{"weights": {}}')
    with pytest.raises(ConfigError, match=r"is no composition .*pass what Composition.save wrote"):
        Composition.load(tmp_path / "odd.json")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"names": ()}, r"the skills are \[\]; name at least one"),
        ({"names": ("a", "a")}, "each once"),
        ({"optimizer": "sgd"}, "optimizer='sgd'; it is one of ngopt, cma"),
        ({"bound": 0}, "bound above 0"),
        ({"l1": -1}, "l1 at least 0"),
        ({"l1": math.nan}, "finite numbers"),
        ({"budget": 1}, "budget=1: w = 0 is tried first, so give at least 2"),
    ],
)
def test_arguments_out_of_range(options, message):
    with pytest.raises(ConfigError, match=message):
        search(**options)


def test_without_nevergrad_the_remedy_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "nevergrad", None)
    with pytest.raises(ConfigError, match=r"needs nevergrad: pip install 'workbench\[search\]'"):
        search()


# Skill a has rank 2: A = [[1, 0, 2], [0, 1, 0]], B = [[1, 0], [0, 3]].
# Skill b has rank 1: A = [[1, 1, 1]], B = [[2], [1]].
BANK = SkillBank(
    names=("a", "b"),
    layers={
        "m": BankLayer(
            A=torch.tensor([[1.0, 0, 2], [0, 1, 0], [1, 1, 1]]),
            B=torch.tensor([[1.0, 0, 2], [0, 3, 1]]),
            ranks=(2, 1),
        )
    },
)


def dense(mix, weights):
    down, up = SkillMix(BANK, mix).factors(weights)["m"]
    return up @ down


def test_update_mix_is_the_sum_of_the_updates():
    alone = torch.tensor([[1.0, 0, 2], [0, 3, 0]]), torch.tensor([[2.0, 2, 2], [1, 1, 1]])
    assert torch.equal(dense("update", {"a": 0.5, "b": -1.0}), 0.5 * alone[0] - alone[1])


def test_factor_mix_multiplies_the_sums_of_the_factors():
    # A = 0.5 A_a - A_b = [[-0.5, -1, 0], [0, 0.5, 0]]; B = 0.5 B_a - B_b = [[-1.5, 0], [-1, 1.5]].
    expected = torch.tensor([[0.75, 1.5, 0], [0.5, 1.75, 0]])
    assert torch.allclose(dense("factor", {"b": -1.0, "a": 0.5}), expected)
    # One skill at weight w is its update times w squared: the mix is no sum of updates.
    assert torch.allclose(dense("factor", {"a": 0.5, "b": 0.0}), 0.25 * dense("update", {"a": 1.0, "b": 0.0}))


def test_a_mix_stands_beside_a_model_only_while_it_is_on():
    model = torch.nn.ModuleDict({"m": torch.nn.Linear(3, 2)})
    x = torch.randn(4, 3)
    plain = model["m"](x)
    for mix in ("update", "factor"):
        weights = {"a": 0.5, "b": -1.0}
        with SkillMix(BANK, mix).on(model) as put:
            assert torch.equal(model["m"](x), plain)
            put(weights)
            assert torch.allclose(model["m"](x), plain + x @ dense(mix, weights).T, atol=1e-6)
            put({"a": 0.0, "b": 0.0})
            assert torch.equal(model["m"](x), plain)
        assert torch.equal(model["m"](x), plain)


def test_a_mix_takes_known_words_and_the_weights_of_all_skills():
    with pytest.raises(ConfigError, match="mix='sum'; it is one of update, factor"):
        SkillMix(BANK, "sum")
    with pytest.raises(ConfigError, match="weights are of a; give one to each of a, b"):
        SkillMix(BANK).factors({"a": 1.0})
