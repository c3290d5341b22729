"""The merge rules on tensors, against numbers worked by hand and against float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.errors import ConfigError
from workbench.ops.merging import Mix, cosine_similarity, linear, linear_mix, mix_, slerp, slerp_mix

torch.set_num_threads(1)
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def pair(dtype=torch.float32, size=(7, 5)):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(size, generator=generator).to(dtype) for _ in range(2)]


def test_linear_by_hand():
    a, b = torch.tensor([1.0, 2.0]), torch.tensor([3.0, -2.0])
    assert linear([a, b], [3, 1]).tolist() == [1.5, 1.0]
    assert linear([a, b], [3, 1], normalise=False).tolist() == [6.0, 4.0]


def test_slerp_of_a_right_angle_by_hand():
    a, b = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 1.0])
    half = math.sqrt(0.5)
    assert slerp(a, b, 0.5).tolist() == pytest.approx([2 * half, half])
    assert slerp(a, b, 1 / 3).tolist() == pytest.approx([2 * math.cos(math.pi / 6), 0.5])


@pytest.mark.parametrize(("cosine", "straight"), [(1.0, True), (-1.0, True), (0.9996, True), (0.9994, False)])
def test_slerp_is_straight_where_the_tensors_are_nearly_parallel(cosine, straight):
    mix = slerp_mix(0.25, cosine)
    assert (mix.coefficients == (0.75, 0.25)) == straight
    assert all(map(math.isfinite, mix.coefficients))


@settings(deadline=None)
@given(t=st.floats(0, 1), cosine=st.floats(-0.95, 0.95))
def test_slerp_of_unit_vectors_has_unit_length(t, cosine):
    c1, c2 = slerp_mix(t, cosine).coefficients
    assert c1 * c1 + c2 * c2 + 2 * c1 * c2 * cosine == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("exact", [True, False])
def test_the_ends_of_the_path_are_the_parents_bit_for_bit(dtype, exact):
    a, b = pair(dtype)
    for mix, parent in ((slerp_mix(0, 0.2), a), (slerp_mix(1, 0.2), b), (linear_mix([0, 2]), b)):
        assert torch.equal(mix_(torch.empty_like(a), (a, b), mix, exact=exact), parent)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("weights", [[0.6, 0.4], [0.1, 0.9], [1e-6, 1 - 1e-6], [1.5, -0.5], [2.0, 1.0]])
def test_one_rounding_of_the_true_sum(dtype, exact, weights):
    a, b = pair(dtype, (1000,))
    got = mix_(torch.empty_like(a), (a, b), linear_mix(weights), exact=exact).double()
    share = torch.tensor(weights).double() / sum(weights)
    true = share[0] * a.double() + share[1] * b.double()
    terms = (share[0] * a.double()).abs() + (share[1] * b.double()).abs()
    half_step = torch.finfo(dtype).eps / 2
    assert bool(((got - true).abs() <= half_step * true.abs() * 1.001 + 5e-7 * terms + 1e-7).all())


def test_more_tensors_than_two_and_more_elements_than_one_chunk(monkeypatch):
    monkeypatch.setattr("workbench.ops.merging._CHUNK", 64)
    tensors = [t.to(torch.bfloat16) for t in torch.randn((3, 10, 21), generator=torch.Generator().manual_seed(1))]
    got = linear(tensors, [1, 2, 5])
    true = (tensors[0].double() + 2 * tensors[1].double() + 5 * tensors[2].double()) / 8
    torch.testing.assert_close(got.double(), true, rtol=2**-8, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-4, 4), min_size=2, max_size=4).filter(lambda w: abs(sum(w)) > 0.1))
def test_linear_does_not_depend_on_the_order_of_the_parents(weights):
    tensors = list(torch.randn((len(weights), 6), generator=torch.Generator().manual_seed(2), dtype=torch.float64))
    torch.testing.assert_close(linear(tensors, weights), linear(tensors[::-1], weights[::-1]))


@pytest.mark.parametrize("weights", [(0.8, 0.6), (0.1, 0.95), (0.5, 0.5), (1.4, -0.4), (0.9, 0.9), (0.2, 0.2)])
def test_the_single_pass_over_more_elements_than_one_chunk(monkeypatch, weights):
    monkeypatch.setattr("workbench.ops.merging._CHUNK", 8)
    a, b = pair(torch.float64)
    got = mix_(torch.empty_like(a), (a, b), Mix(weights=weights), exact=False)
    torch.testing.assert_close(got, weights[0] * a + weights[1] * b, rtol=1e-6, atol=1e-9)


def test_a_parent_of_weight_zero_is_not_read():
    broken = torch.full((3,), math.nan)
    assert linear([torch.ones(3), broken], [1, 0]).tolist() == [1, 1, 1]
    assert mix_(torch.ones(3), (broken, broken), Mix(weights=(0.0, 0.0))).tolist() == [0, 0, 0]


@pytest.mark.parametrize("weights", [[1, -1], [0, 0], [0.1, 0.2, -0.3]])
def test_weights_that_sum_to_zero_are_refused(weights):
    with pytest.raises(ConfigError, match=r"sum to .*by which the merge divides\. Give weights whose sum is not 0"):
        linear_mix(weights)
    assert linear_mix(weights, normalise=False).coefficients == tuple(map(float, weights))


def test_cosine_by_hand_and_at_its_edges():
    a = torch.tensor([3.0, 4.0])
    assert cosine_similarity(a, torch.tensor([4.0, 3.0])) == pytest.approx(24 / 25)
    assert cosine_similarity(a, -2 * a) == pytest.approx(-1)
    assert cosine_similarity(a, torch.zeros(2)) == 0
    assert cosine_similarity(a * 1e18, a * 1e18) == pytest.approx(1)


def test_cosine_over_several_chunks(monkeypatch):
    a, b = pair(torch.bfloat16, (33, 9))
    whole = cosine_similarity(a, b)
    monkeypatch.setattr("workbench.ops.merging._ANGLE_CHUNK", 50)
    assert cosine_similarity(a, b) == pytest.approx(whole, abs=1e-6)
