"""The rules with PEFT's semantics against `peft.utils.merge_utils`, which merges task vectors alone."""

import contextlib
import itertools

import pytest
import torch
from peft.utils import merge_utils
from test_mergekit import steps_apart

from workbench.ops.rules import RuleSettings, merge_tensor
from workbench.ops.sparsify import keep

torch.set_num_threads(1)

FLOAT, BF16, HALF, DOUBLE = torch.float32, torch.bfloat16, torch.float16, torch.float64
WEIGHTS = [(0.6, 0.4), (1.0, 0.5, 0.7), (0.7,), (1.0, 1.0), (0.2, -0.1), (1.0, -1.0)]
METHODS = ["task_arithmetic", "ties", "dare_linear", "dare_ties"]


def task_vectors(count, dtype, edge="usual"):
    generator = torch.Generator().manual_seed(count)
    deltas = [torch.randn((37, 53), generator=generator) for _ in range(count)]
    if edge == "zero":
        deltas[-1] = torch.zeros(37, 53)
    if edge == "antipodal":
        deltas = [(-1) ** index * deltas[0] for index in range(count)]
    return [delta.to(dtype) for delta in deltas]


def theirs(method, deltas, weights, density):
    warns = density >= 1 and method != "task_arithmetic"
    with pytest.warns(UserWarning, match="no pruning") if warns else contextlib.nullcontext():
        options = {} if method == "task_arithmetic" else {"density": density}
        return getattr(merge_utils, method)(deltas, torch.tensor(weights, dtype=deltas[0].dtype), **options)


def cases():
    short = [*itertools.product(METHODS, [FLOAT, BF16], ["usual"], WEIGHTS[:2], [0.3, 1.0])]
    short += itertools.product(["ties"], [FLOAT], ["zero", "antipodal"], WEIGHTS[:2], [0.0, 0.5])
    grid = itertools.product(
        METHODS, [FLOAT, BF16, HALF, DOUBLE], ["usual", "zero", "antipodal"], WEIGHTS, [0.01, 0.3, 0.5, 0.9, 1.0]
    )
    return [*short, *(pytest.param(case, marks=pytest.mark.slow) for case in grid)]


@pytest.mark.parametrize("case", cases(), ids=str)
def test_task_vectors_are_merged_as_peft_merges_them(case, monkeypatch):
    method, dtype, edge, weights, density = case
    # PEFT works in the task vectors' format: told to work in float32, it differs by one rounding at most.
    deltas = task_vectors(len(weights), dtype, edge)
    work = torch.promote_types(dtype, FLOAT)
    base = torch.zeros_like(deltas[0])
    option = {} if method == "task_arithmetic" else {"density": (density,) * len(deltas)}
    asked = RuleSettings(weights=weights, semantics="peft", **option)
    masks = [keep(method, delta, base, asked, index).mask for index, delta in enumerate(deltas)]
    if method.startswith("dare"):
        draws = iter([mask for mask in masks if mask is not None])
        monkeypatch.setattr(torch, "bernoulli", lambda chances: next(draws).to(chances.dtype))
    ours = merge_tensor(method, deltas, base, asked)
    other = theirs(method, [delta.to(work) for delta in deltas], weights, density).to(dtype)
    split = torch.zeros(base.shape, dtype=torch.bool)
    if method == "ties":
        # Of equal magnitudes at the threshold, others may be kept there.
        for mask, sizes in ((mask, delta.abs()) for mask, delta in zip(masks, deltas) if mask is not None):
            split |= (sizes > 0) & torch.isin(sizes, sizes[mask]) & torch.isin(sizes, sizes[~mask])
    assert split.double().mean() < 0.05
    terms = [ours, *(w / max(density, 0.01) * delta.double() for w, delta in zip(weights, deltas))]
    # The factor of DARE is multiplied in here, 1/p rounded, where PEFT divides by p: one more step a parent.
    few = 1 + len(deltas) if method.startswith("dare") and dtype in (FLOAT, DOUBLE) else 1
    assert steps_apart(ours.masked_fill(split, 0), other.masked_fill(split, 0), terms) <= few


def test_peft_and_mergekit_agree_on_ties_at_equal_weights_and_part_at_others():
    deltas = task_vectors(2, FLOAT)
    base = torch.zeros_like(deltas[0])

    def merged(weights, semantics):
        asked = RuleSettings(weights=weights, density=(0.5, 0.5), semantics=semantics)
        return merge_tensor("ties", deltas, base, asked)

    assert torch.allclose(merged((1.0, 1.0), "peft"), merged((1.0, 1.0), "mergekit"))
    ours, other = merged((0.6, 0.4), "peft"), merged((0.6, 0.4), "mergekit")
    assert 0.3 < (ours - other).norm() / other.norm() < 0.8


def test_density_zero_is_no_change_here_and_not_a_number_there():
    deltas = task_vectors(2, FLOAT)
    asked = RuleSettings(weights=(1.0, 1.0), density=(0.0, 0.0), semantics="peft")
    assert theirs("dare_linear", deltas, (1.0, 1.0), 0.0).isnan().any()
    assert not merge_tensor("dare_linear", deltas, torch.zeros_like(deltas[0]), asked).any()
