"""Every merge rule on tensors small enough to work by hand, at its edges, and what it refuses."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.errors import ConfigError, MergeError
from workbench.ops.rules import RULES, RuleSettings, coefficients, merge_tensor

torch.set_num_threads(1)

TASKS = [name for name, rule in RULES.items() if rule.base == "required" and rule.most is None]
T_OF = {"nearswap": 0.1}


def told(method, count, **changes):
    return RuleSettings(**({"weights": (1.0,) * count, "t": T_OF.get(method)} | changes))


def merge(method, tensors, base=None, *, weights=None, **changes):
    tensors = [torch.as_tensor(tensor) for tensor in tensors]
    base = None if base is None else torch.as_tensor(base)
    weights = (1.0,) * len(tensors) if weights is None else weights
    return merge_tensor(method, tensors, base, RuleSettings(weights=weights, **changes))


def inputs(method, size=(5, 7), dtype=torch.float32, seed=0):
    """A base and as many parents as the method takes."""
    generator = torch.Generator().manual_seed(seed)
    rule = RULES[method]
    base = torch.randn(size, generator=generator)
    count = rule.most or max(2, rule.fewest)
    return [(base + 0.3 * torch.randn(size, generator=generator)).to(dtype) for _ in range(count)], base.to(dtype)


ONE = torch.tensor([1.0, 1.0, 1.0, 1.0])
# Task vectors (4, -1, 3, 0) and (2, 2, -3, 1).
PAIR = (torch.tensor([5.0, 0.0, 4.0, 1.0]), torch.tensor([3.0, 3.0, -2.0, 2.0]))

BY_HAND = {
    "task_arithmetic": ({"weights": (1, 0.5)}, [6.0, 1.0, 2.5, 1.5]),
    "task_arithmetic, lambda": ({"weights": (1, 0.5), "lambda_": 2.0}, [11.0, 1.0, 4.0, 2.0]),
    "task_arithmetic, mean": ({"weights": (3, 1), "normalise": True}, [4.5, 0.75, 2.5, 1.25]),
    # Signs + + 0 +: the third entry counts as positive with mergekit and PEFT, is nobody's with the paper.
    "ties": ({}, [4.0, 3.0, 4.0, 2.0]),
    "ties, paper": ({"semantics": "paper"}, [4.0, 3.0, 1.0, 2.0]),
    "ties, peft": ({"semantics": "peft"}, [4.0, 3.0, 4.0, 2.0]),
    # Votes (2, -.5, 1.5, 0) + (.5, .5, -.75, .25): the second is 0, so positive.
    "ties, weighted": ({"weights": (0.5, 0.25)}, [1 + 2.5 / 0.75, 3.0, 4.0, 2.0]),
    "ties, weighted, peft": ({"weights": (0.5, 0.25), "semantics": "peft"}, [2.25, 1.5, 2.5, 1.25]),
    # A weight that turns the winner: votes (2, -.5, 1.5, 0) + (2, 2, -3, 1).
    "ties, election by weight": ({"weights": (0.5, 1)}, [1 + 4 / 1.5, 3.0, -2.0, 2.0]),
    "ties, sum": ({"normalise": False}, [7.0, 3.0, 4.0, 2.0]),
    # Half of four entries: (4, 0, 3, 0) and (2, 0, -3, 0), the tie of the two 2s goes to the first.
    "ties, half": ({"density": (0.5, 0.5)}, [4.0, 1.0, 4.0, 1.0]),
    "ties, half of one": ({"density": (0.5, 1)}, [4.0, 3.0, 4.0, 2.0]),
    # The L1 norms 8 and 8 are restored from 7 and 5.
    "ties, half, rescaled": ({"density": (0.5, 0.5), "rescale": True}, [1 + (32 / 7 + 16 / 5) / 2, 1.0, -3.8, 1.0]),
    "ties, whole model": (
        {"density": (0.5, 0.5), "threshold": (3.5, 2.0), "semantics": "paper"},
        [4.0, 3.0, -2.0, 1.0],
    ),
    # The largest of four goes, then the smallest of what is left down to two: (0, -1, 3, 0) and (2, 2, 0, 0).
    "breadcrumbs": ({"density": (0.5, 0.5), "gamma": 0.25}, [3.0, 2.0, 4.0, 1.0]),
    "breadcrumbs_ties": ({"density": (0.5, 0.5), "gamma": 0.25}, [3.0, 3.0, 4.0, 1.0]),
    "breadcrumbs, all": ({"gamma": 0.25}, [7.0, 2.0, 1.0, 2.0]),
    "breadcrumbs, all, paper": ({"gamma": 0.25, "density": (1, 1), "semantics": "paper"}, [3.0, 2.0, 4.0, 2.0]),
    "dare_linear": ({}, [7.0, 2.0, 1.0, 2.0]),
    "dare_ties": ({}, [7.0, 3.0, 4.0, 2.0]),
    "dare_ties, peft": ({"semantics": "peft"}, [4.0, 3.0, 4.0, 2.0]),
    "della": ({}, [4.0, 3.0, 4.0, 2.0]),
    "della_linear": ({}, [7.0, 2.0, 1.0, 2.0]),
    # Mean squares 26/4 and 18/4, shares 26/44 and 18/44; the third sum is 0 and counts as positive.
    "sce": ({}, [1 + (26 * 4 + 18 * 2) / 44, 3.0, 4.0, 2.0]),
    # Variances (1, 2.25, 9, .25): the third and the second; squares 10 and 13.
    "sce, half": ({"select_topk": 0.5}, [1.0, 3.0, 4.0, 1.0]),
}


@pytest.mark.parametrize("case", BY_HAND)
def test_task_vectors_by_hand(case):
    changes, expected = BY_HAND[case]
    assert merge(case.split(",")[0], PAIR, ONE, **changes).tolist() == pytest.approx(expected, abs=1e-6)


def test_one_task_vector_comes_back_whole_at_weight_one_and_not_at_all_at_density_zero():
    for method in TASKS:
        if RULES[method].fewest == 1:
            assert torch.equal(merge(method, PAIR[:1], ONE), PAIR[0]), method
        if "density" in RULES[method].options:
            assert torch.equal(merge(method, PAIR, ONE, density=(0.0, 0.0)), ONE), method


def test_nuslerp_by_hand():
    a, b, half = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 1.0]), math.sqrt(0.5)
    assert merge("nuslerp", [a, b]).tolist() == pytest.approx([2 * half, half])
    assert merge("nuslerp", [a, b], weights=(0.0, 3.0)).tolist() == pytest.approx([0.0, 1.0], abs=1e-7)
    assert merge("nuslerp", [a + 1, b + 1], torch.ones(2)).tolist() == pytest.approx([1 + 2 * half, 1 + half])
    assert merge("nuslerp", [a, b], t=1 / 3).tolist() == pytest.approx([2 * math.cos(math.pi / 6), 0.5])
    # Weights that sum to 0 mean half way, two vectors on one line the straight path.
    assert merge("nuslerp", [a, b], weights=(1.0, -1.0)).tolist() == pytest.approx([2 * half, half])
    assert merge("nuslerp", [a, -3 * a], weights=(3.0, 1.0)).tolist() == pytest.approx([0.0, 0.0])
    assert merge("nuslerp", [a, 3 * a], weights=(3.0, 1.0)).tolist() == pytest.approx([3.0, 0.0])


@pytest.mark.parametrize("base", [None, torch.randn(3, 4, 5)])
def test_nuslerp_by_vectors_is_nuslerp_of_each(base):
    pair = [torch.randn(3, 4, 5) for _ in range(2)]
    last, first = (merge("nuslerp", pair, base, weights=(0.7, 0.3), vectors=which) for which in ("last", "first"))
    for place in itertools.product(range(3), range(4), range(5)):
        for merged, where in ((last, (*place[:2],)), (first, (slice(None), *place[1:]))):
            origin = None if base is None else base[where]
            alone = merge("nuslerp", [x[where] for x in pair], origin, weights=(0.7, 0.3))
            torch.testing.assert_close(merged[where], alone)
    flat = [x.flatten() for x in pair]
    torch.testing.assert_close(merge("nuslerp", flat, vectors="first"), merge("nuslerp", flat))
    assert merge("nuslerp", [x[0, 0, 0] for x in pair], vectors="last").shape == ()


def test_means_on_the_sphere_by_hand():
    a, b = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 4.0])
    diagonal = 3 * math.sqrt(0.5)
    for method in ("multislerp", "karcher"):
        assert merge(method, [a, b]).tolist() == pytest.approx([diagonal, diagonal])
        assert torch.equal(merge(method, [a]), a)
    # At unequal weights they part: the chord's direction against the arc's.
    chord = merge("multislerp", [a, b], weights=(3.0, 1.0))
    assert chord.tolist() == pytest.approx([2.5 * 3 / math.sqrt(10), 2.5 / math.sqrt(10)])
    arc = merge("karcher", [a, b], weights=(3.0, 1.0))
    assert arc.tolist() == pytest.approx([2.5 * math.cos(math.pi / 8), 2.5 * math.sin(math.pi / 8)])
    assert merge("multislerp", [a + 1, b + 1], torch.ones(2)).tolist() == pytest.approx([1 + diagonal, 1 + diagonal])


def test_vectors_that_cancel():
    a, zero = torch.tensor([2.0, 0.0]), torch.zeros(2)
    assert merge("multislerp", [a, -a]).tolist() == pytest.approx([0.0, 0.0])
    assert merge("karcher", [a, -a]).tolist() == pytest.approx([2.0, 0.0])
    assert merge("karcher", [a, zero]).tolist() == pytest.approx([1.0, 0.0])
    assert torch.equal(merge("karcher", [zero, zero]), zero)
    assert torch.equal(merge("karcher", [a, zero], weights=(0.0, 1.0)), zero)
    assert torch.equal(merge("multislerp", [a, a, a], a), a)
    with pytest.raises(MergeError, match=r"directions of 3 tensors cancel .*Change the weights"):
        merge("multislerp", [a, -a, zero])


def test_model_stock_by_hand():
    # Task vectors (2, 0) and (1, 1): cosine sqrt(1/2), t = 2c / (1 + c), at the mean (1.5, 0.5).
    c = math.sqrt(0.5)
    t = 2 * c / (1 + c)
    ours = merge("model_stock", [torch.tensor([3.0, 1.0]), torch.tensor([2.0, 2.0])], torch.ones(2))
    assert ours.tolist() == pytest.approx([1 + 1.5 * t, 1 + 0.5 * t])
    opposed = [torch.tensor([3.0, 1.0]), torch.tensor([-1.0, 1.0])]
    assert torch.equal(merge("model_stock", opposed, torch.ones(2)), torch.ones(2))


def test_nearswap_by_hand():
    base, other = torch.tensor([1.0, 1.0, 1.0, 1.0]), torch.tensor([1.0, 1.25, 2.0, 0.5])
    assert merge("nearswap", [other], base, t=0.5).tolist() == [1.0, 1.25, 1.5, 0.5]
    assert torch.equal(merge("nearswap", [other], base, t=0.0), base)


def test_fusion_takes_what_stands_out():
    base = torch.zeros(4, 5)
    other = base + 0.01 * torch.arange(20.0).view(4, 5) / 20
    other[2, 3] = 3.0
    merged = merge("arcee_fusion", [other], base)
    assert merged[2, 3] == 3.0
    assert 0 < (merged != base).sum() < 8
    assert torch.equal(merge("arcee_fusion", [base], base), base)


@pytest.mark.parametrize("method", RULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [(), (7,), (3, 4, 5), (0, 3)])
def test_any_shape_and_format_in_the_same_out(method, dtype, size):
    parents, base = inputs(method, size, dtype)
    before = [tensor.clone() for tensor in (*parents, base)]
    changes = {"density": (0.5,) * len(parents)} if "density" in RULES[method].options else {}
    merged = merge_tensor(method, parents, base, told(method, len(parents), **changes))
    assert merged.shape == size
    assert merged.dtype == dtype
    assert bool(merged.isfinite().all())
    assert all(map(torch.equal, before, (*parents, base)))


@pytest.mark.parametrize("method", RULES)
def test_parents_that_are_the_base_merge_to_the_base(method):
    _, base = inputs(method)
    count = RULES[method].most or max(3, RULES[method].fewest)
    merged = merge_tensor(method, [base] * count, base, told(method, count, weights=(1 / count,) * count))
    assert torch.allclose(merged, base, atol=1e-6)


@pytest.mark.parametrize("method", RULES)
def test_strided_views_and_a_place_for_the_result(method):
    parents, base = inputs(method)
    plain = merge_tensor(method, parents, base, told(method, len(parents)))
    out = torch.full_like(base, math.nan)
    views = [tensor.T.contiguous().T for tensor in parents]
    assert merge_tensor(method, views, base.T.contiguous().T, told(method, len(parents)), out=out) is out
    assert torch.equal(out, plain)


@pytest.mark.parametrize("method", RULES)
def test_a_tensor_of_many_chunks_is_merged_as_one(method, monkeypatch):
    parents, base = inputs(method, (9, 13))
    changes = {"density": (0.6,) * len(parents)} if "density" in RULES[method].options else {}
    whole = merge_tensor(method, parents, base, told(method, len(parents), **changes))
    for place in ("sparsify.CHUNK", "rules.CHUNK", "spheres.CHUNK", "consensus._CACHED"):
        monkeypatch.setattr(f"workbench.ops.{place}", 20)
    pieces = merge_tensor(method, parents, base, told(method, len(parents), **changes))
    assert torch.allclose(pieces, whole, atol=1e-6)


@pytest.mark.parametrize(
    "method", ["linear", "slerp", "nuslerp", "multislerp", "karcher", "task_arithmetic", "model_stock"]
)
@pytest.mark.parametrize("with_base", [True, False])
def test_the_plain_numbers_give_the_same_merge(method, with_base):
    rule = RULES[method]
    if rule.base == ("unused" if with_base else "required"):
        return
    parents, base = inputs(method)
    base = base if with_base else None
    asked = told(method, 2, weights=(0.7, 0.2))
    numbers = coefficients(method, parents, base, asked)
    total = sum(c * parent for c, parent in zip(numbers, parents))
    total = total if base is None else total + (1 - sum(numbers)) * base
    assert torch.allclose(merge_tensor(method, parents, base, asked), total, atol=1e-6)


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from(["ties", "dare_ties", "della", "breadcrumbs_ties", "sce"]),
    st.floats(0.2, 0.8),
    st.sampled_from(["paper", "mergekit"]),
)
def test_a_normalised_election_stays_between_the_task_vectors(method, density, semantics):
    parents, base = inputs(method)
    merged = merge(method, parents, base, density=(density,) * 2, rescale=False, normalise=True, semantics=semantics)
    deltas = torch.stack([torch.zeros_like(base), *(parent - base for parent in parents)])
    assert bool((merged - base <= deltas.amax(0) + 1e-6).all())
    assert bool((merged - base >= deltas.amin(0) - 1e-6).all())


def test_a_nan_in_a_parent_stays_visible():
    bad = PAIR[0].clone()
    bad[3] = math.nan
    for method in TASKS:
        assert bool(merge(method, [bad, PAIR[1]], ONE).isnan().any()), method


FAULTS = {
    "unknown": ("fuse", {}, "known methods are linear, slerp"),
    "no base": ("ties", {"base": None}, "ties has no base; .*Give the model"),
    "too few": ("model_stock", {"count": 1}, "1 parents and 1 weights; model_stock merges at least 2"),
    "too many": ("slerp", {"count": 3}, "slerp merges exactly 2"),
    "two for one": ("nearswap", {"t": 0.1}, "nearswap merges exactly 1"),
    "weights": ("ties", {"weights": (1.0,)}, "2 parents and 1 weights"),
    "no number": ("ties", {"weights": (1.0, math.nan)}, "one finite number per parent"),
    "densities": ("ties", {"density": (0.5,)}, r"density=\[0.5\] for 2 weights"),
    "density": ("ties", {"density": (0.5, 1.5)}, r"density=\[0.5, 1.5\]; it is a share .*from 0 to 1"),
    "gamma": ("breadcrumbs", {"gamma": -0.1}, r"gamma=\[-0.1, -0.1\]; it is a share"),
    "topk": ("sce", {"select_topk": 2.0}, r"select_topk=\[2.0\]; it is a share"),
    "epsilon": ("della", {"epsilon": -0.1}, r"epsilon=\[-0.1.*\]; it is at least 0"),
    "della": ("della", {"density": (0.9, 0.5)}, r"density=0.9 with epsilon=0.15: .*0.75 to 1.05.*Lower epsilon"),
    "lambda": ("ties", {"lambda_": math.inf}, "lambda_=inf; it is a finite number"),
    "seed": ("dare_ties", {"seed": 0.5}, "seed=0.5; it is a whole number"),
    "semantics": ("ties", {"semantics": "both"}, "one of paper, mergekit, peft"),
    "not in peft": ("della", {"semantics": "peft"}, "PEFT has only linear, task_arithmetic"),
    "threshold": ("ties", {"threshold": (1.0, 1.0)}, "threshold given; .*with semantics='paper'"),
    "rescale": ("ties", {"rescale": True, "semantics": "paper"}, "rescale=True with ties .*no such factor"),
    "vectors": ("slerp", {"vectors": "last"}, "vectors='last' with slerp; only nuslerp has it"),
    "t": ("nearswap", {"count": 1}, "nearswap with t=None"),
    "sum": ("task_arithmetic", {"weights": (1.0, -1.0), "normalise": True}, "sum to 0, by which task_arithmetic"),
    "sum on the sphere": ("multislerp", {"weights": (1.0, -1.0)}, "sum to 0, by which multislerp divides"),
    "slerp's sum": ("slerp", {"weights": (1.0, -1.0)}, "sum to 0"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_does_not_fit_is_named(fault):
    method, asked, message = FAULTS[fault]
    changes = {"count": 2, "base": ONE} | asked
    count, base = changes.pop("count"), changes.pop("base")
    with pytest.raises(ConfigError, match=message):
        merge_tensor(method, list(PAIR * 2)[:count], base, told("", count, **changes))


def test_shapes_that_differ_are_named():
    with pytest.raises(MergeError, match=r"'head' has the shapes \[\(3,\), \(4,\)\]"):
        merge_tensor("ties", [ONE[:3]], ONE, RuleSettings(weights=(1.0,), name="head"))
