"""Every merge rule against mergekit's `merge_tensors`, tensor by tensor.

mergekit forms the rules of task vectors in the tensors' own format, ours in float32. So each format is compared with
mergekit told to work in float32 (`dtype=`) and to round once (`out_dtype=`), to one step of the format at the largest
term; and once with mergekit as it comes, whose own rounding is larger. Where several entries share the magnitude at a
trimming threshold, another few of them are kept there: such entries are left out.
"""

import itertools

import pytest
import torch
from test_mergekit import steps_apart

from workbench.errors import ConfigError
from workbench.ops.rules import RULES, RuleSettings, coefficients, merge_tensor
from workbench.ops.sparsify import keep, keep_probabilities

methods = pytest.importorskip("mergekit.merge_methods", reason="mergekit is not installed (extra `peers`)")

torch.set_num_threads(1)

FLOAT, BF16, HALF, DOUBLE = torch.float32, torch.bfloat16, torch.float16, torch.float64
SPARSE = [name for name, rule in RULES.items() if rule.sparse]
RANDOM = [name for name in SPARSE if RULES[name].trim in ("random", "della")]
TRIMMED = [name for name in SPARSE if name not in RANDOM]
WEIGHTS = [(0.6, 0.4), (1.0, 0.5, 0.7), (0.7,), (1.0, 1.0), (0.2, -0.1), (2.0, 0.0, 1.0), (1.0, -1.0)]
GAMMAS, EPSILONS = (0.02, 0.1, 0.0), (0.15, 0.1, 0.05)
EDGES = ["usual", "no change", "antipodal", "one changed", "scalar", "vector"]


def family(count, dtype=FLOAT, edge="usual"):
    """A base and its parents, with task vectors of a third of its size."""
    generator = torch.Generator().manual_seed(count)
    size = {"scalar": (), "vector": (83,)}.get(edge, (37, 53))
    base, *noise = (torch.randn(size, generator=generator) * 0.02 for _ in range(count + 1))
    if edge == "no change":
        noise = [torch.zeros_like(base)] * count
    if edge == "antipodal":
        noise = [(-1) ** index * noise[0] for index in range(count)]
    if edge == "one changed":
        noise = [noise[0], *[torch.zeros_like(base)] * (count - 1)]
    return base.to(dtype), [(base + 0.3 * part).to(dtype) for part in noise]


NAMES = {"lambda_": "lambda", "normalise": "normalize", "rescale": "rescale", "gamma": "gamma", "epsilon": "epsilon"}
NAMES |= {"select_topk": "select_topk", "t": "t"}


def theirs(method, base, parents, settings, **formats):
    rule = RULES[method]
    asked = {NAMES[name]: getattr(settings, name) for name in rule.options & set(NAMES) if method != "nuslerp"}
    if rule.weighted and method != "karcher":
        asked["weight"] = list(settings.weights)
    own = {"density", "gamma", "epsilon"} & rule.options
    asked |= {name: list(values) for name in own if (values := getattr(settings, name)) is not None}
    if settings.vectors is not None:
        asked |= {"nuslerp_flatten": False, "nuslerp_row_wise": settings.vectors == "first"}
    if method == "multislerp":
        asked["normalize_weights"] = asked.pop("normalize")
    return methods.merge_tensors(
        parents if base is None else [base, *parents],
        method,
        parameters={name: value for name, value in asked.items() if value is not None},
        base_index=None if base is None else 0,
        **formats,
    )


def in_float32(method, base, parents, settings):
    dtype = parents[0].dtype
    work = {"dtype": torch.promote_types(dtype, FLOAT), "out_dtype": dtype}
    return theirs(method, base, parents, settings, **work)


def split_ties(method, base, parents, settings):
    """Where a task vector has a magnitude, not 0, of which some entries are kept and some are not."""
    split = torch.zeros(base.shape, dtype=torch.bool)
    for index, parent in enumerate(parents):
        mask = keep(method, parent, base, settings, index).mask
        if mask is not None:
            sizes = (parent.double() - base.double()).abs()
            split |= (sizes > 0) & torch.isin(sizes, sizes[mask]) & torch.isin(sizes, sizes[~mask])
    return split


def apart(ours, other, base, parents, settings, leave_out=None):
    """Largest difference, in steps at the size of the largest term."""
    terms = [parent.double() for parent in parents] + [ours.double()]
    if base is not None:
        terms += [base.double(), *(w * (x.double() - base.double()) for w, x in zip(settings.weights, parents))]
    if leave_out is not None:
        ours, other = ours.masked_fill(leave_out, 0.0), other.masked_fill(leave_out, 0.0)
    return steps_apart(ours, other, terms)


def task_vector_cases():
    """Method, format, edge, weights, density: a few, then the whole grid, which is slow."""
    short = [
        *itertools.product(["ties"], [FLOAT, BF16, HALF], ["usual"], WEIGHTS[:2], [0.5]),
        *itertools.product([*TRIMMED, "task_arithmetic"], [FLOAT], ["usual"], WEIGHTS[:2], [0.3, 1.0]),
        *itertools.product(["ties", "breadcrumbs_ties"], [FLOAT], EDGES[1:], WEIGHTS[:2], [0.0, 0.5]),
        *itertools.product(["ties", "task_arithmetic"], [FLOAT], ["usual"], WEIGHTS[2:], [0.5]),
    ]
    densities = [0.0, 0.01, 0.3, 0.995, 1.0]
    grid = itertools.product([*TRIMMED, "task_arithmetic"], [FLOAT, BF16, HALF, DOUBLE], EDGES, WEIGHTS, densities)
    slow = [pytest.param(case, marks=pytest.mark.slow) for case in grid]
    return [*dict.fromkeys(short), *slow]


@pytest.mark.parametrize("case", task_vector_cases(), ids=str)
def test_trimmed_task_vectors(case):
    method, dtype, edge, weights, density = case
    base, parents = family(len(weights), dtype, edge)
    for changes in (
        {},
        {"lambda_": 0.6, "normalise": sum(weights) != 0, "rescale": True, "gamma": GAMMAS[: len(weights)]},
    ):
        changes = {name: value for name, value in changes.items() if name in RULES[method].options}
        density_of = {} if method == "task_arithmetic" else {"density": (density,) * len(parents)}
        asked = RuleSettings(weights=weights, **density_of, **changes)
        ours, other = merge_tensor(method, parents, base, asked), in_float32(method, base, parents, asked)
        leave_out = split_ties(method, base, parents, asked)
        assert leave_out.double().mean() < 0.05 or base.numel() < 100
        # With a weight of -1 beside 1 agreeing weights may nearly cancel, and what divides is all rounding.
        assert apart(ours, other, base, parents, asked, leave_out) <= 1, changes


@pytest.mark.parametrize("method", [*TRIMMED, "task_arithmetic"])
@pytest.mark.parametrize(("dtype", "share"), [(BF16, 0.015), (HALF, 0.005)])
@pytest.mark.parametrize("density", [0.3, 1.0])
def test_mergekit_as_it_comes_rounds_more_and_trims_by_rounded_magnitudes(method, dtype, share, density):
    base, parents = family(2, dtype)
    density_of = {} if method == "task_arithmetic" else {"density": (density, density)}
    asked = RuleSettings(weights=(0.6, 0.4), **density_of)
    ours, other = merge_tensor(method, parents, base, asked), theirs(method, base, parents, asked)
    # Rounded task vectors, weights, products and sums: up to four steps; entries that the rounding moves across a
    # threshold are apart by their whole task vector, and are few.
    steps = (ours.double() - other.double()).abs() / (torch.finfo(dtype).eps * ours.double().abs().clamp_min(1e-3))
    assert (steps > 4).double().mean() <= (share if density < 1 else 0.01)


class Draws:
    """Stands in for torch.bernoulli: gives our masks to mergekit, and keeps the probabilities that it asked for."""

    def __init__(self, masks):
        self.masks, self.probabilities = iter(masks), []

    def __call__(self, probabilities):
        self.probabilities.append(probabilities)
        return next(self.masks).reshape(probabilities.shape).to(probabilities.dtype)


def random_cases():
    short = [*itertools.product(RANDOM, [FLOAT, BF16], ["usual"], WEIGHTS[:2], [0.5])]
    short += itertools.product(
        ["dare_ties", "della"], [FLOAT], ["no change", "antipodal", "vector"], WEIGHTS[:2], [0.4]
    )
    grid = itertools.product(RANDOM, [FLOAT, BF16, HALF, DOUBLE], EDGES, WEIGHTS, [0.2, 0.5, 0.8, 1.0])
    return [*short, *(pytest.param(case, marks=pytest.mark.slow) for case in grid)]


@pytest.mark.parametrize("case", random_cases(), ids=str)
def test_random_masks_put_into_mergekit_give_our_merge(case, monkeypatch):
    method, dtype, edge, weights, density = case
    if edge == "scalar" and RULES[method].trim == "della" and density < 1:
        return  # mergekit divides 0 by 0 in a row of one entry
    base, parents = family(len(weights), dtype, edge)
    own = {"density": (density,) * len(parents), "epsilon": EPSILONS[: len(parents)]}
    asked = RuleSettings(weights=weights, **own, seed=3, name="model.layers.0.q_proj")
    masks = [keep(method, parent, base, asked, index).mask for index, parent in enumerate(parents)]
    draws = Draws([mask for mask in masks if mask is not None])
    monkeypatch.setattr(torch, "bernoulli", draws)
    ours, other = merge_tensor(method, parents, base, asked), in_float32(method, base, parents, asked)
    # The L1 factor comes from another order of summation: a few float32 steps. mergekit rounds float64 to float32.
    few = {FLOAT: 4, DOUBLE: 16}.get(dtype, 1)
    ours, other = (merged.float() if dtype == DOUBLE else merged for merged in (ours, other))
    assert apart(ours, other, base, parents, asked) <= few
    assert len(draws.probabilities) == (len(parents) if density < 1 else 0)
    for index, (parent, asked_for) in enumerate(zip(parents, draws.probabilities)):
        if RULES[method].trim == "della" and edge in ("usual", "vector") and dtype == FLOAT:
            chances = keep_probabilities(parent, base, asked, density, index)
            # Equal magnitudes of a row may stand in another order.
            assert ((chances.view(asked_for.shape) - asked_for).abs() > 1e-6).double().mean() < 0.002
        elif RULES[method].trim == "random":
            assert (asked_for == density).all()


@pytest.mark.parametrize("method", RANDOM)
def test_their_own_draws_have_our_mean_and_spread(method):
    base, parents = family(1)
    results = {"ours": [], "theirs": []}
    torch.manual_seed(0)
    for seed in range(60):
        asked = RuleSettings(weights=(1.0,), density=(0.5,), seed=seed)
        results["ours"].append(merge_tensor(method, parents, base, asked) - base)
        results["theirs"].append(theirs(method, base, parents, asked) - base)
    ours, other = (torch.stack(result) for result in results.values())
    means, spreads = (ours.mean(0), other.mean(0)), (ours.std(0), other.std(0))
    # Correlation with the true task vector, and sizes, agree to five standard errors of 60 draws of 1961 entries.
    scale = (parents[0] - base).square().mean().sqrt()
    assert (means[0] - means[1]).mean().abs() < 5 * scale * (2 / 60 / 1961) ** 0.5
    assert (means[0] - means[1]).square().mean().sqrt() < 1.2 * scale * (2 / 60) ** 0.5
    assert (spreads[0].mean() / spreads[1].mean()).item() == pytest.approx(1, abs=0.05)


def spherical_cases():
    """Method, with a base or without, weights."""
    for method in ("linear", "slerp", "nuslerp", "multislerp", "karcher", "model_stock"):
        for with_base in (True, False):
            rule = RULES[method]
            if rule.base == ("unused" if with_base else "required") or (method == "slerp" and with_base):
                continue
            for weights in WEIGHTS:
                fits = rule.fewest <= len(weights) <= (rule.most or 9) and (sum(weights) or method == "nuslerp")
                if fits and (method != "karcher" or len(set(weights)) == 1):
                    yield method, with_base, weights


@pytest.mark.parametrize("case", spherical_cases(), ids=str)
@pytest.mark.parametrize("edge", ["usual", *(pytest.param(edge, marks=pytest.mark.slow) for edge in EDGES[1:])])
def test_means_and_arcs(case, edge):
    method, with_base, weights = case
    base, parents = family(len(weights), FLOAT, edge)
    base = base if with_base else None
    asked = RuleSettings(weights=weights)
    if method == "slerp":
        t = weights[1] / sum(weights)
        double = methods.merge_tensors(parents, "slerp", parameters={"t": t}, base_index=0, dtype=DOUBLE)
    else:
        if method == "multislerp" and edge == "no change" and with_base and len(weights) > 2:
            with pytest.raises(ValueError, match="weighted sum of the input tensors is zero"):
                theirs(method, base, parents, asked)
            assert torch.equal(merge_tensor(method, parents, base, asked), base)
            return
        double = theirs(method, base, parents, asked, dtype=DOUBLE)
    ours = merge_tensor(method, parents, base, asked)
    opposite = edge == "antipodal" and with_base and len(weights) == 2
    if opposite and (method == "nuslerp" or (method == "multislerp" and weights == (1.0, 1.0))):
        # Opposite but for rounding: there the direction is made of that rounding, ours is a line.
        share = weights[1] / sum(weights) if sum(weights) else 0.5
        assert coefficients(method, parents, base, asked) == pytest.approx((1 - share, share), rel=1e-6)
        return
    if not double.isfinite().all():
        return
    numbers = coefficients(method, parents, base, asked)
    scaled = RuleSettings(weights=numbers) if base is not None else asked
    # Against float64: the few roundings of a float32 sum (slerp also has its numbers from float32, as mergekit does).
    assert apart(ours, double.float(), base, parents, scaled) <= 4
    # mergekit at work in float32 loses a few digits of small angles and of sums over the tensor.
    if method != "slerp" and edge == "usual":
        assert apart(ours, theirs(method, base, parents, asked), base, parents, scaled) <= 16


@pytest.mark.parametrize("dtype", [FLOAT, BF16, HALF, DOUBLE])
@pytest.mark.parametrize("which", ["first", "last"])
@pytest.mark.parametrize("edge", ["usual", "one changed", "vector"])
@pytest.mark.parametrize("with_base", [True, False])
def test_nuslerp_by_vectors(dtype, which, edge, with_base):
    base, parents = family(2, dtype, edge)
    base = base if with_base else None
    for weights in WEIGHTS[:1] + WEIGHTS[3:5]:
        asked = RuleSettings(weights=weights, vectors=which)
        ours = merge_tensor("nuslerp", parents, base, asked)
        double = theirs("nuslerp", base, parents, asked, dtype=DOUBLE, out_dtype=DOUBLE)
        # In float64 neither is more exact than the other, and the angles' last digits count.
        assert apart(ours, double.to(dtype), base, parents, asked) <= (64 if dtype == DOUBLE else 4)


@pytest.mark.parametrize("dtype", [FLOAT, BF16, HALF, DOUBLE])
@pytest.mark.parametrize("edge", EDGES)
def test_entry_by_entry_rules(dtype, edge):
    base, parents = family(3, dtype, edge)
    few = {BF16: 1, HALF: 1, FLOAT: 2, DOUBLE: 2}[dtype]
    for method, changes in (
        ("nearswap", {"t": 0.004}),
        ("nearswap", {"t": 0.0}),
        ("arcee_fusion", {}),
        ("sce", {}),
        ("sce", {"select_topk": 0.4}),
        ("sce", {"select_topk": 0.0}),
    ):
        some = parents[: RULES[method].most or 3]
        asked = RuleSettings(weights=(1.0,) * len(some), **changes)
        ours, other = merge_tensor(method, some, base, asked), in_float32(method, base, some, asked)
        leave_out = None
        if method == "sce" and asked.select_topk == 0.4:
            # Equal variances at the threshold.
            variances = torch.stack([parent - base for parent in some]).double().var(0)
            leave_out = (ours != other) & (variances.view(-1, 1) == variances.view(1, -1)).sum(1).view(base.shape).gt(1)
        assert apart(ours, other, base, some, asked, leave_out) <= few, (method, changes)


def test_sce_of_large_changes_weighs_by_their_size():
    base, parents = family(3)
    parents = [base + scale * (parent - base) for scale, parent in zip((1.0, 5.0, 9.0), parents)]
    for semantics in ("mergekit", "paper"):
        asked = RuleSettings(weights=(1.0,) * 3, semantics=semantics)
        ours, other = merge_tensor("sce", parents, base, asked), theirs("sce", base, parents, asked)
        assert apart(ours, other, base, parents, asked) <= 2


def test_where_we_raise_and_they_divide():
    base, parents = family(2)
    asked = RuleSettings(weights=(1.0, -1.0), normalise=True)
    assert theirs("task_arithmetic", base, parents, asked).isfinite().all()
    with pytest.raises(ConfigError, match="sum to 0"):
        merge_tensor("task_arithmetic", parents, base, asked)
    spread = RuleSettings(weights=(1.0, 1.0), density=(0.9, 0.9))
    with pytest.raises(ValueError, match="Epsilon"):
        theirs("della", base, parents, spread)
    with pytest.raises(ConfigError, match="Lower epsilon"):
        merge_tensor("della", parents, base, spread)
