"""Our merge against mergekit's `merge_tensors`, in memory, tensor by tensor."""

import math

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import workbench as wb
from workbench.errors import ConfigError, MergeError
from workbench.merging.weights import depth_positions
from workbench.ops.merging import cosine_similarity, linear, linear_mix, mix_, slerp, slerp_mix

methods = pytest.importorskip("mergekit.merge_methods", reason="mergekit is not installed (extra `peers`)")
from mergekit.config import ConditionalParameter, evaluate_setting  # noqa: E402

torch.set_num_threads(1)

RATIOS = (0.0, 0.05, 0.1, 0.3, 0.35, 0.4, 0.5, 0.6, 0.75, 0.9, 1.0)
DTYPES = (torch.float32, torch.bfloat16)


def theirs_linear(tensors, weights, normalise=True):
    return methods.merge_tensors(tensors, "linear", parameters={"weight": list(weights), "normalize": normalise})


def theirs_slerp(first, second, t):
    return methods.merge_tensors([first, second], "slerp", base_index=0, parameters={"t": t})


def step(size, dtype):
    """Distance between neighbouring numbers of a format at the given size."""
    digits = -math.log2(torch.finfo(dtype).eps)
    return torch.exp2(torch.floor(torch.log2(size.double().abs().clamp_min(1e-30))) - digits)


def steps_apart(ours, theirs, terms):
    """Largest difference, in steps at the size of the largest term."""
    largest = torch.stack([term.double().abs() for term in terms]).amax(0)
    return ((ours.double() - theirs.double()).abs() / step(largest, ours.dtype)).max().item()


def tensors(dtype, kind="relatives", size=(61, 83), seed=0, count=2):
    generator = torch.Generator().manual_seed(seed)
    noise = [torch.randn(size, generator=generator) * 0.02 for _ in range(count + 1)]
    if kind == "strangers":
        return [tensor.to(dtype) for tensor in noise[1:]]
    return [(noise[0] + 0.3 * tensor).to(dtype) for tensor in noise[1:]]


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16])
@pytest.mark.parametrize("kind", ["relatives", "strangers"])
def test_linear_is_theirs_bit_for_bit(dtype, kind):
    a, b = tensors(dtype, kind)
    for t in RATIOS:
        assert torch.equal(linear([a, b], [1 - t, t]), theirs_linear([a, b], [1 - t, t])), t


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weights", [[1, 2, 5], [1, 1, 1], [0.2, -0.1, 0.5], [3, 0, 0.25]])
@pytest.mark.parametrize("normalise", [True, False])
def test_three_parents_and_weights_of_any_sum(dtype, weights, normalise):
    parents = tensors(dtype, count=3)
    ours = linear(parents, weights, normalise=normalise)
    assert torch.equal(ours, theirs_linear(parents, weights, normalise))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["relatives", "strangers"])
def test_slerp_within_one_step_of_the_larger_term(dtype, kind):
    a, b = tensors(dtype, kind)
    cosine = cosine_similarity(a, b)
    for t in RATIOS:
        c1, c2 = slerp_mix(t, cosine).coefficients
        assert steps_apart(slerp(a, b, t), theirs_slerp(a, b, t), (c1 * a.double(), c2 * b.double())) <= 1, t


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["relatives", "strangers"])
def test_the_single_pass_differs_at_most_in_how_a_tie_is_broken(dtype, kind):
    a, b = tensors(dtype, kind)
    for t in RATIOS:
        ours = mix_(torch.empty_like(a), (a, b), linear_mix([1 - t, t]), exact=False)
        theirs = theirs_linear([a, b], [1 - t, t])
        allowed = 1 if dtype == torch.bfloat16 else 4
        assert steps_apart(ours, theirs, ((1 - t) * a, t * b, theirs)) <= allowed, t
        if dtype == torch.bfloat16:
            assert (ours != theirs).double().mean() < 0.02, t


@pytest.mark.parametrize("kind", ["relatives", "strangers"])
def test_the_single_pass_of_slerp_is_off_in_the_last_bit_at_most(kind):
    a, b = tensors(torch.bfloat16, kind)
    for t in RATIOS:
        mix = slerp_mix(t, cosine_similarity(a, b))
        c1, c2 = mix.coefficients
        ours, theirs = mix_(torch.empty_like(a), (a, b), mix, exact=False), theirs_slerp(a, b, t)
        assert steps_apart(ours, theirs, (c1 * a.double(), c2 * b.double(), theirs)) <= 1, t


EDGES = {
    "zero first": (0.0, 1.0),
    "zero second": (1.0, 0.0),
    "both zero": (0.0, 0.0),
    "parallel": (1.0, 3.0),
    "antipodal": (1.0, -1.0),
    "antipodal and longer": (1.0, -2.0),
    "tiny": (1e-12, 1.0),
}


@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_slerp_at_its_edges(edge, dtype):
    base = tensors(torch.float32, size=(7, 11))[0]
    a, b = ((scale * base).to(dtype) for scale in EDGES[edge])
    for t in (0.0, 0.3, 0.5, 1.0):
        ours, theirs = slerp(a, b, t), theirs_slerp(a, b, t)
        assert bool(ours.isfinite().all())
        assert steps_apart(ours, theirs, (a, b)) <= 2, t


def test_weights_that_sum_to_zero_are_an_error_here_and_not_a_number_there():
    a, b = tensors(torch.float32, size=(3, 5))
    assert not theirs_linear([a, b], [1, -1]).isfinite().all()
    with pytest.raises(ConfigError, match="sum to 0"):
        linear([a, b], [1, -1])
    assert torch.equal(linear([a, b], [1, -1], normalise=False), theirs_linear([a, b], [1, -1], False))


def llama(seed, dtype, **changes):
    torch.manual_seed(seed)
    sizes = {
        "hidden_size": 12,
        "intermediate_size": 20,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": 17,
    }
    return LlamaForCausalLM(LlamaConfig(**(sizes | changes))).to(dtype)


SHARES = {
    "number": 0.4,
    "curve": [0.0, 0.9, 0.3],
    "filters": {"self_attn.q": [1.0, 0.2], "self_attn": 0.7, "mlp": [0.1, 0.6, 0.2, 0.9, 0.5], "*": [0.35, 0.8]},
}


@pytest.mark.parametrize("method", ["linear", "slerp"])
@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("layers", [1, 4])
def test_a_live_model_is_theirs_under_curves_filters_and_ties(method, share, tied, layers):
    models = [llama(seed, torch.bfloat16, tie_word_embeddings=tied, num_hidden_layers=layers) for seed in range(2)]
    recipe = wb.MergeRecipe(parents=["a", "b"], method=method).with_ratio(SHARES[share])
    merged = wb.LiveMerge(recipe, models=models)
    states = [model.state_dict() for model in models]
    assert ("lm_head.weight" in merged.coefficients()) == (not tied)
    for name, (c1, c2) in merged.coefficients().items():
        t = evaluate_setting(name, setting(SHARES[share]), mergekit_position(name, layers), validate=float)
        parts = [state[name] for state in states]
        theirs = theirs_slerp(*parts, t) if method == "slerp" else theirs_linear(parts, [1 - t, t])
        ours = merged.model.state_dict()[name]
        assert steps_apart(ours, theirs, (c1 * parts[0].double(), c2 * parts[1].double())) <= 1, name
    assert torch.equal(merged.model.lm_head.weight, merged.model.get_input_embeddings().weight) == tied


def setting(share):
    if not isinstance(share, dict):
        return share
    return [ConditionalParameter(value=value, filter=name) for name, value in share.items()]


def mergekit_position(name, layers):
    """As mergekit's planner walks: 0 before and after the layers, i / (n - 1) in layer i, 1 in the only layer."""
    if ".layers." not in name:
        return 0
    return int(name.split(".")[2]) / (layers - 1) if layers > 1 else 1


def test_positions_are_the_planners():
    names = list(llama(0, torch.float32).state_dict())
    assert depth_positions(names) == {name: pytest.approx(mergekit_position(name, 4)) for name in names}


def test_a_curve_whose_weights_sum_to_zero_names_the_tensor():
    models = [llama(seed, torch.float32) for seed in range(2)]
    recipe = wb.MergeRecipe(parents=["a", "b"], weights=[1, [1, -1]])
    with pytest.raises(MergeError, match=r"'model.layers.3.* depth 1.00: the weights \[1.0, -1.0\] sum to 0"):
        wb.LiveMerge(recipe, models=models)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16])
@pytest.mark.parametrize("kind", ["relatives", "strangers"])
@pytest.mark.parametrize("seed", range(3))
def test_grid(dtype, kind, seed):
    a, b = tensors(dtype, kind, size=(701, 643), seed=seed)
    cosine = cosine_similarity(a, b)
    for t in (index / 20 for index in range(21)):
        assert torch.equal(linear([a, b], [1 - t, t]), theirs_linear([a, b], [1 - t, t])), t
        ours, theirs = slerp(a, b, t), theirs_slerp(a, b, t)
        c1, c2 = slerp_mix(t, cosine).coefficients
        assert steps_apart(ours, theirs, (c1 * a.double(), c2 * b.double())) <= 1, t
