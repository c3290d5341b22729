"""Densities as comparisons of bytes: how far off they are, that they nest, that they merge as the exact rule does."""

import itertools
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.ops import density
from workbench.ops.density import Codes, codes_key, factor_of, has_codes, make_codes, merge_coded, span
from workbench.ops.rules import RULES, RuleSettings, merge_tensor
from workbench.ops.sparsify import keep

torch.set_num_threads(1)

SPARSE = [name for name, rule in RULES.items() if rule.sparse]
SHAPE = (61, 84)


def family(count=2, shape=SHAPE, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    base, *parents = (torch.randn(shape, generator=generator) for _ in range(count + 1))
    return base.to(dtype), [(base + 0.3 * parent).to(dtype) for parent in parents]


def told(method, share, **changes):
    epsilon = {"epsilon": min(share, 1 - share) / 2} if method.startswith("della") and 0 < share < 1 else {}
    return RuleSettings(**({"weights": (1.0,), "density": (share,), "name": "x"} | epsilon | changes))


def kept_by(codes, method, asked):
    top, reach = span(method, asked, 0)
    values = codes.values.int()
    return (values >= 256 - reach) & (values < 256 - top)


@pytest.mark.parametrize("method", SPARSE)
@settings(deadline=None, max_examples=25)
@given(share=st.floats(0, 1))
def test_the_density_is_off_by_a_256th_at_most(method, share):
    base, (parent,) = family(1)
    asked = told(method, share)
    codes = make_codes(method, parent, base, asked, 0)
    mask = keep(method, parent, base, asked, 0).mask
    exact = 1.0 if mask is None else mask.float().mean().item()
    coded = kept_by(codes, method, asked).float().mean().item()
    # Of random numbers, as many as fall into that 256th: here within three standard deviations of it.
    slack = 3 * (1 / 256 / base.numel()) ** 0.5 if RULES[method].trim in ("random", "della") else 0.0
    assert abs(coded - exact) <= 1 / 256 + slack + 1e-9


@pytest.mark.parametrize("method", ["ties", "dare_linear", "della"])
def test_a_larger_density_keeps_all_that_a_smaller_one_kept(method):
    base, (parent,) = family(1)
    codes = make_codes(method, parent, base, told(method, 0.5, epsilon=0.1), 0)
    masks = [kept_by(codes, method, told(method, i / 100, epsilon=0.0)) for i in range(101)]
    assert all(bool((small <= large).all()) for small, large in itertools.pairwise(masks))
    assert masks[0].sum() == 0
    assert masks[-1].all()


def test_codes_by_magnitude_are_ranks_and_of_equal_ones_the_first_goes_first():
    base = torch.zeros(512)
    parent = torch.cat([torch.arange(256.0), -torch.arange(256.0)])
    codes = make_codes("ties", parent, base, told("ties", 0.5), 0)
    assert torch.equal(codes.values.int(), torch.arange(256).repeat(2).int())
    alike = make_codes("ties", torch.ones(512), base, told("ties", 0.5), 0)
    assert torch.equal(alike.values.int(), 255 - torch.arange(512).int() // 2)
    assert alike.masses[128] == 256


def test_random_codes_hang_on_seed_name_and_parent_alone():
    base, (parent,) = family(1)

    def values(seed=3, name="x", index=0, tensor=parent):
        asked = told("dare_ties", 0.5, seed=seed, name=name, weights=(1.0, 1.0), density=None)
        return make_codes("dare_ties", tensor, base, asked, index).values

    assert torch.equal(values(), values(tensor=parent.bfloat16() * 2))
    for other in (values(seed=4), values(name="y"), values(index=1)):
        assert (values() == other).float().mean() < 0.02
    # Written down, so that a change of the generator does not go unseen.
    assert values()[:6].tolist() == [163, 207, 177, 199, 30, 235]


def test_the_first_of_breadcrumbs_goes_and_a_density_of_1_keeps_all():
    asked = RuleSettings(weights=(1.0,), density=(0.25,), gamma=0.125)
    assert span("breadcrumbs", asked, 0) == (32, 96)
    assert span("breadcrumbs", RuleSettings(weights=(1.0,), density=(0.875,), gamma=0.5), 0) == (32, 256)
    assert span("breadcrumbs", RuleSettings(weights=(1.0,), density=(1.0,), gamma=0.5), 0) == (0, 256)
    assert span("ties", told("ties", 1e-6), 0) == (0, 1)
    assert span("ties", told("ties", 1e-6, semantics="paper"), 0) == (0, 0)


def test_the_factor_keeps_the_sum_of_magnitudes():
    codes = Codes(values=torch.tensor([255, 255, 0, 0], dtype=torch.uint8), masses=(0.0, *[3.0] * 255, 4.0))
    half = told("dare_linear", 0.5)
    assert factor_of("dare_linear", half, 0, codes) == pytest.approx(4 / 3)
    assert factor_of("dare_linear", told("dare_linear", 0.5, semantics="paper"), 0, codes) == 2
    assert factor_of("dare_linear", told("dare_linear", 1.0), 0, codes) == 1
    assert factor_of("ties", told("ties", 0.5), 0, codes) == 1


CASES = [
    (method, semantics, weights, normalise)
    for method in SPARSE
    for semantics in ("mergekit", "paper", "peft")
    for weights in ((0.6, 0.4, 1.0), (0.5, -0.3, 0.2), (0.0, 1.0, 1.0))
    for normalise in (None, True, False)
    if semantics != "peft" or method in ("ties", "dare_linear", "dare_ties")
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("method", SPARSE)
def test_at_densities_of_whole_256ths_it_is_the_exact_rule(method, dtype, monkeypatch):
    # A multiple of 256 entries, so that the ranks fall on the codes' borders.
    base, parents = family(3, (64, 96), dtype)
    monkeypatch.setitem(density._CHUNKS, "cpu", 1000)
    for _, semantics, weights, normalise in (case for case in CASES if case[0] == method):
        asked = RuleSettings(
            weights=weights,
            density=(0.5, 0.25, 0.75),
            gamma=1 / 64,
            epsilon=0.125,
            seed=3,
            name="x",
            lambda_=0.7,
            semantics=semantics,
            normalise=normalise,
        )
        if not has_codes(method, asked):
            continue
        codes = [make_codes(method, parent, base, asked, index) for index, parent in enumerate(parents)]
        ours = merge_coded(method, parents, base, asked, codes, out=torch.empty_like(base))
        exact = merge_tensor(method, parents, base, asked)
        near = torch.isclose(ours.double(), exact.double(), rtol=2 * torch.finfo(dtype).eps, atol=1e-6)
        # Where magnitudes are equal in bfloat16, the few at a border may be others.
        assert (~near).float().mean() < (0.002 if dtype == torch.bfloat16 else 1e-9), (semantics, weights, normalise)


def test_what_has_no_codes():
    assert not has_codes("task_arithmetic", RuleSettings(weights=(1.0,)))
    assert not has_codes("ties", RuleSettings(weights=(1.0,), threshold=(0.1,), semantics="paper"))
    assert not has_codes("della", RuleSettings(weights=(1.0,), semantics="paper"))
    assert has_codes("della", RuleSettings(weights=(1.0,), semantics="paper", rescale=False))


def test_codes_serve_other_densities_and_weights_but_no_other_seed():
    first = RuleSettings(weights=(1.0,), density=(0.5,), name="x")
    assert codes_key("ties", first) == codes_key("breadcrumbs", RuleSettings(weights=(0.3,), seed=4))
    assert codes_key("dare_ties", first) == codes_key("dare_linear", RuleSettings(weights=(0.3,)))
    assert codes_key("dare_ties", first) != codes_key("dare_ties", RuleSettings(weights=(1.0,), seed=4))
    assert codes_key("della", first) != codes_key("della", RuleSettings(weights=(1.0,), epsilon=0.1))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ties", "dare_linear", "breadcrumbs_ties"])
def test_the_compiled_loop_gives_the_same(method):
    if shutil.which("c++") is None and shutil.which("g++") is None:
        pytest.skip("torch.compile needs a C++ compiler, and there is none")
    torch._dynamo.reset()
    base, parents = family(3, (64, 96))
    for _, semantics, weights, normalise in (case for case in CASES if case[0] == method):
        asked = RuleSettings(
            weights=weights, density=(0.5, 0.25, 1.0), name="x", semantics=semantics, normalise=normalise
        )
        codes = [make_codes(method, parent, base, asked, index) for index, parent in enumerate(parents)]
        results = [
            merge_coded(method, parents, base, asked, codes, out=torch.empty_like(base), compiled=compiled)
            for compiled in (False, True)
        ]
        near = torch.isclose(*results, rtol=1e-4, atol=1e-5)
        # A sum of votes that cancel may round to either side of 0.
        assert (~near).float().mean() < 1e-3, (semantics, weights, normalise)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="compares a GPU with the CPU, and there is no GPU")
@pytest.mark.parametrize("method", SPARSE)
def test_codes_are_the_same_on_a_gpu(method):
    base, (parent,) = family(1)
    asked = told(method, 0.5)
    there = make_codes(method, parent.cuda(), base.cuda(), asked, 0)
    assert torch.equal(make_codes(method, parent, base, asked, 0).values, there.values.cpu())
