"""What is kept of a task vector: exact counts, seeded draws, factors, and the election among what is left."""

import hashlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.ops import sparsify
from workbench.ops.consensus import consensus, merge_kept
from workbench.ops.rules import RULES, RuleSettings, merge_tensor
from workbench.ops.sparsify import (
    Kept,
    delta_chunks,
    keep,
    keep_probabilities,
    kth_largest,
    l1_factor,
    top_mask,
    uniforms,
    whole_model_threshold,
)

torch.set_num_threads(1)
CPU = torch.device("cpu")
ZERO = torch.zeros(200, 300)


def told(density=0.5, **changes):
    density = None if density is None else (density, density)
    return RuleSettings(**({"weights": (1.0, 1.0), "density": density} | changes))


def noise(size=(200, 300), seed=0, dtype=torch.float32):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)).to(dtype)


@settings(deadline=None)
@given(
    st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=1, max_size=40),
    st.data(),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_the_kth_largest_is_that_of_a_sorted_list(numbers, data, dtype):
    k = data.draw(st.integers(1, len(numbers)))
    tensor = torch.tensor(numbers, dtype=dtype)
    assert kth_largest(lambda: tensor.split(7), k) == sorted(tensor.tolist())[-k]


@settings(deadline=None)
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=60), st.data())
def test_exactly_k_are_kept_and_ties_go_to_the_first(numbers, data):
    k = data.draw(st.integers(0, len(numbers)))
    order = sorted(range(len(numbers)), key=lambda place: (-abs(numbers[place]), place))
    mask = top_mask(torch.tensor(numbers, dtype=torch.float32), None, k)
    assert mask.nonzero().view(-1).tolist() == sorted(order[:k])


def test_ties_are_counted_across_chunks(monkeypatch):
    monkeypatch.setattr(sparsify, "CHUNK", 4)
    assert top_mask(torch.ones(11), None, 6).tolist() == [True] * 6 + [False] * 5


def test_the_draws_are_the_published_hash_of_the_index():
    """The same on every device and in every later version, so that an exported merge can be made again."""
    key = hashlib.blake2b(b"7\0model.norm.weight\x001", digest_size=8).digest()

    def draw(index):
        state = index * 0x9E3779B97F4A7C15 + int.from_bytes(key, "little")
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            state %= 1 << 64
            state = (state ^ (state >> shift)) * factor
        state %= 1 << 64
        return (state ^ (state >> 31)) >> 40

    drawn = uniforms(5, 100, settings=told(seed=7, name="model.norm.weight"), parent=1, device=CPU)
    assert (drawn * 2**24).to(torch.int64).tolist() == [draw(index) for index in range(5, 105)]
    first = uniforms(0, 1, settings=told(seed=7, name="model.norm.weight"), parent=1, device=CPU)
    assert first.item() * 2**24 == 12035087


def test_the_draws_are_uniform_and_independent():
    asked = {"count": 60_000, "device": CPU}
    drawn = [
        uniforms(0, settings=told(seed=seed, name=name), parent=parent, **asked)
        for seed, name, parent in ((0, "a", 0), (1, "a", 0), (0, "b", 0), (0, "a", 1))
    ]
    for numbers in drawn:
        counts = torch.histc(numbers, 50, 0, 1)
        # 49 degrees of freedom: 1 in 10^5 lies above 104.
        assert ((counts - 1200) ** 2 / 1200).sum() < 104
    table = torch.corrcoef(torch.stack([*drawn, drawn[0].roll(1), drawn[0].roll(1000)]))
    assert (table - torch.eye(6)).abs().max() < 5 / 60_000**0.5
    assert torch.equal(uniforms(40_000, 20_000, settings=told(name="a"), parent=0, device=CPU), drawn[0][40_000:])


@pytest.mark.parametrize("method", ["ties", "dare_ties", "della"])
def test_a_larger_density_keeps_what_a_smaller_one_kept(method):
    tensor, before = noise(), torch.zeros(200, 300, dtype=torch.bool)
    for density in (0.0, 0.2, 0.5, 0.8):
        mask = keep(method, tensor, ZERO, told(density), 0).mask
        assert mask is not None
        assert not bool((before & ~mask).any())
        before = mask


@pytest.mark.parametrize("density", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("semantics", ["paper", "mergekit", "peft"])
def test_dare_keeps_its_share_and_the_expected_value(density, semantics):
    tensor, asked = noise() + 1, told(density, semantics=semantics)
    kept = keep("dare_linear", tensor, ZERO, asked, 0)
    assert kept.mask is not None
    # Five standard errors of 60,000 draws.
    assert abs(kept.mask.double().mean() - density) < 5 * (density * (1 - density) / 60_000) ** 0.5
    assert kept.factor == pytest.approx(1 / density, rel=0 if semantics != "mergekit" else 0.05)
    masked = tensor * kept.mask * kept.factor
    if semantics == "mergekit":
        assert masked.abs().sum() == pytest.approx(tensor.abs().sum().item(), rel=1e-5)
    draws = [keep("dare_linear", tensor, ZERO, told(density, seed=seed), 0) for seed in range(20)]
    mean = torch.stack([tensor * draw.mask * draw.factor for draw in draws]).mean(0)
    assert (mean - tensor).mean().abs() < 5 * tensor.square().mean().sqrt() * ((1 / density - 1) / 1.2e6) ** 0.5


def test_dellas_probabilities_by_hand():
    row = torch.tensor([[1.0, -4.0, 2.0, -3.0], [0.0, 0.1, 0.2, -0.3]])
    asked = told(epsilon=0.3)
    steps = torch.tensor([[0.2, 0.8, 0.4, 0.6], [0.2, 0.4, 0.6, 0.8]])
    assert torch.allclose(keep_probabilities(row, None, asked, 0.5), steps)
    paper = keep_probabilities(row, None, told(epsilon=0.2, semantics="paper"), 0.5)
    assert torch.allclose(paper[0], torch.tensor([0.45, 0.6, 0.5, 0.55]))
    assert keep_probabilities(torch.tensor(3.0), None, asked, 0.5) == 0.5
    assert torch.allclose(keep_probabilities(row[0], None, asked, 0.5), steps[0])
    stack = torch.stack([row, row.flip(0)])
    columns = keep_probabilities(stack, None, asked, 0.5)
    assert torch.allclose(columns[0], torch.tensor([[0.8, 0.8, 0.8, 0.8], [0.2, 0.2, 0.2, 0.2]]))


def test_della_keeps_the_large_more_often():
    tensor = noise()
    for semantics, spread in (("mergekit", 0.3), ("paper", 0.15)):
        kept = keep("della", tensor, ZERO, told(epsilon=0.3, semantics=semantics), 0)
        assert kept.mask is not None
        large = tensor.abs().argsort(1).argsort(1) >= 150
        assert kept.mask.double().mean() == pytest.approx(0.5, abs=0.02)
        gap = kept.mask[large].double().mean() - kept.mask[~large].double().mean()
        assert gap == pytest.approx(spread, abs=0.03)
    assert isinstance(kept.factor, torch.Tensor)
    chances = keep_probabilities(tensor, None, told(epsilon=0.3, semantics="paper"), 0.5)
    assert torch.allclose(kept.factor * chances, torch.ones_like(chances))


def test_the_l1_factor_by_hand():
    tensor, mask = torch.tensor([3.0, -1.0, 4.0]), torch.tensor([True, False, False])
    assert l1_factor(tensor, None, mask) == pytest.approx(8 / 3)
    assert l1_factor(tensor * 1e-9, None, mask) == 1.0
    assert l1_factor(tensor, None, torch.zeros(3, dtype=torch.bool)) == 1.0


def test_counts_at_the_ends_of_the_density():
    tensor, zero = noise((10,)), torch.zeros(10)
    kept = {
        semantics: [keep("ties", tensor, zero, told(d, semantics=semantics), 0).mask for d in (0.0, 0.05, 0.55, 1.0)]
        for semantics in ("mergekit", "paper", "peft")
    }
    for semantics, masks in kept.items():
        few = 1 if semantics == "mergekit" else 0
        assert [int(mask.sum()) if mask is not None else None for mask in masks] == [0, few, 5, None]
    top, all_but_top = told(0.9, gamma=0.2), told(0.9, gamma=0.2, semantics="paper")
    assert keep("breadcrumbs", tensor, zero, top, 0).mask.sum() == 9  # pyright: ignore
    assert keep("breadcrumbs", tensor, zero, all_but_top, 0).mask.sum() == 8  # pyright: ignore


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("density", [0.0, 0.1, 0.5, 1.0])
def test_the_threshold_of_a_whole_model(dtype, density):
    tensors = [noise(size, seed, dtype) for seed, size in enumerate([(7, 3), (1,), (5, 5, 2)])]
    count = sum(tensor.numel() for tensor in tensors)
    chunks = lambda: (chunk for tensor in tensors for chunk in delta_chunks(tensor, None, 8))  # noqa: E731
    threshold = whole_model_threshold(chunks, count, density)
    together = torch.cat([tensor.float().reshape(-1).abs() for tensor in tensors])
    expected = together.sort(descending=True).values
    assert threshold == (expected[int(density * count) - 1] if density else float("inf"))
    if dtype == torch.bfloat16 or not 0 < density < 1:
        return
    asked = told(density, semantics="paper", threshold=(threshold,) * 2)
    masks = [keep("ties", tensor, torch.zeros_like(tensor), asked, 0).mask for tensor in tensors]
    assert sum(int(mask.sum()) for mask in masks if mask is not None) == int(density * count)


def test_the_election_by_hand():
    deltas = torch.tensor([[2.0, -1.0, 1.0, 0.0], [-1.0, -1.0, -1.0, 0.0], [0.0, 3.0, 0.0, 0.0]])
    asked = {"weights": (1.0, 2.5, 1.0), "density": None}
    cases = {
        "mergekit": ([[0, 0, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]], [2.5, 1.0, 2.5, 1.0]),
        "peft": ([[1, 0, 1, 0], [0, 0, 0, 0], [0, 1, 0, 0]], [1.0, 1.0, 1.0, 1.0]),
        "paper": ([[1, 0, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0]], [1.0, 1.0, 1.0, 1.0]),
    }
    cases["mergekit"][0][0][1] = cases["mergekit"][0][1][1] = 1  # -1 - 2.5 + 3 is below 0
    cases["mergekit"][1][1] = 3.5
    for semantics, (mask, divisor) in cases.items():
        agreement = consensus("ties", deltas, told(semantics=semantics, **asked))
        assert agreement.mask is not None
        assert agreement.mask.tolist() == mask, semantics
        assert agreement.divisor.tolist() == divisor, semantics  # pyright: ignore
    assert consensus("ties", deltas, told(normalise=False, **asked)).divisor == 1.0
    assert consensus("dare_linear", deltas, told(**asked)) == (None, 1.0)


def test_a_negative_weight_takes_part_with_the_sign_it_gives():
    deltas = torch.tensor([[2.0, 2.0], [-1.0, 3.0]])
    agreement = consensus("ties", deltas, told(weights=(1.0, -1.0)))
    assert agreement.mask is not None
    assert agreement.mask.tolist() == [[1, 0], [1, 1]]
    # 1 - 1 is no divisor.
    assert agreement.divisor.tolist() == [1.0, -1.0]  # pyright: ignore


@pytest.mark.parametrize("method", [name for name, rule in RULES.items() if rule.sparse])
def test_masks_from_elsewhere_give_the_same_merge(method):
    base = noise(seed=9)
    parents = [base + 0.2 * noise(seed=seed) for seed in range(2)]
    kept = [keep(method, parent, base, told(), index) for index, parent in enumerate(parents)]
    merged = merge_tensor(method, parents, base, told())
    assert torch.equal(merge_kept(method, parents, base, told(), kept), merged)
    whole = merge_kept(method, parents, base, told(), [Kept()] * 2)
    assert torch.equal(whole, merge_tensor(method, parents, base, told(1.0)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("method", RULES)
def test_every_rule_is_the_same_on_a_cuda_device(method):
    rule, base = RULES[method], noise(seed=9)
    parents = [base + 0.2 * noise(seed=seed) for seed in range(rule.most or 2)]
    option = {"density": (0.5,) * len(parents)} if "density" in rule.options else {"t": 0.1}
    asked = RuleSettings(weights=(1.0,) * len(parents), name="lm_head.weight", **option)
    there = [parent.cuda() for parent in parents]
    if rule.sparse:
        for index, (one, other) in enumerate(zip(parents, there)):
            mask, copy = keep(method, one, base, asked, index).mask, keep(method, other, base.cuda(), asked, index).mask
            assert mask is not None
            assert copy is not None
            assert torch.equal(mask, copy.cpu())
    merged = merge_tensor(method, there, base.cuda(), asked)
    assert merged.is_cuda
    # Sums over the tensor (angles, the L1 factor) are taken in another order there.
    assert torch.allclose(merged.cpu(), merge_tensor(method, parents, base, asked), atol=1e-5)
