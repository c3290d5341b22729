"""Deltas: hand-worked updates, exact sums in update space, no drift, and one clear error for each broken adapter."""

import copy
import json
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pico_adapters import adalora, llama, lora, saved
from safetensors.torch import load_file, save_file

from workbench.deltas import Delta, combine
from workbench.errors import ConfigError, MergeError, ModelError

torch.set_num_threads(1)

QUERY = "model.layers.0.self_attn.q_proj"
PREFIX = "base_model.model."


@pytest.fixture(scope="module")
def base():
    return llama()


@pytest.fixture(scope="module")
def folders(base, tmp_path_factory):
    """Three adapters that share some tensors: LoRA, DoRA and AdaLoRA."""
    kinds = {
        "lora": lora(rank_pattern={"q_proj": 5}),
        "dora": lora(use_dora=True, target_modules=["q_proj", "gate_proj"]),
        "adalora": adalora(target_modules=["q_proj", "o_proj"]),
    }
    places = {name: tmp_path_factory.mktemp(name) for name in kinds}
    for seed, (name, config) in enumerate(kinds.items()):
        saved(base, config, places[name], seed=seed)
    return places


@pytest.fixture
def deltas(base, folders):
    return [Delta.from_adapter(folder, base=base) for folder in folders.values()]


def spoil(source, target, config=None, rename=None, **tensors):
    """Copy an adapter with changed settings and tensors; None removes a tensor."""
    settings_ = json.loads((source / "adapter_config.json").read_text()) | (config or {})
    contents = load_file(source / "adapter_model.safetensors")
    for name, value in tensors.items():
        key = next(key for key in contents if key.endswith(name.replace("__", ".")))
        contents.pop(key) if value is None else contents.update({key: value})
    contents = {key.replace(*(rename or ("", ""))): value for key, value in contents.items()}
    (target / "adapter_config.json").write_text(json.dumps(settings_))
    save_file(contents, target / "adapter_model.safetensors")
    return target


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def by_hand(tmp_path, config, **tensors):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "lora_alpha": 6, "r": 2} | config))
    save_file(
        {f"{PREFIX}layer.{k.replace('__', '.')}": v for k, v in tensors.items()}, tmp_path / "adapter_model.safetensors"
    )
    model = torch.nn.Module()
    model.layer = torch.nn.Linear(2, 3)
    model.layer.weight.data = torch.tensor([[3.0, 0.0], [0.0, 1.0], [0.0, 2.0]])
    return Delta.from_adapter(tmp_path, base=model)


A, B = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 0.0]])


def test_lora_by_hand(tmp_path):
    delta = by_hand(tmp_path, {}, lora_A__weight=A, lora_B__weight=B, lora_B__bias=torch.tensor([1.0, 0.0, -1.0]))
    assert delta.tensor("layer.weight").tolist() == [[0, 6], [3, 0], [0, 0]]
    assert delta.tensor("layer.bias").tolist() == [3, 0, -3]
    assert delta.names == ("layer.weight", "layer.bias")
    assert delta.shape("layer.weight") == (3, 2)
    assert delta.factors("layer.bias") is None


def test_rslora_by_hand(tmp_path):
    delta = by_hand(tmp_path, {"use_rslora": True}, lora_A__weight=A, lora_B__weight=B)
    assert delta.tensor("layer.weight")[1, 0].item() == pytest.approx(6 / 2**0.5)


def test_dora_by_hand(tmp_path):
    # s = 3, so W + s B A = [[3, 4], [2, 1], [0, 2]], whose rows have the norms 5, sqrt(5) and 2.
    parts = {"lora_A__weight": A, "lora_B__weight": B * 2 / 3}
    magnitude = torch.tensor([10.0, 5.0**0.5, 6.0])
    delta = by_hand(tmp_path, {"use_dora": True}, lora_magnitude_vector=magnitude, **parts)
    expected = torch.tensor([[6.0, 8.0], [2.0, 1.0], [0.0, 6.0]])
    torch.testing.assert_close(delta.merged("layer.weight"), expected)
    assert delta.factors("layer.weight") is None


def test_adalora_by_hand(tmp_path):
    config = {"peft_type": "ADALORA", "init_r": 3, "lora_alpha": 6}
    delta = by_hand(tmp_path, config, lora_A=A, lora_B=B, lora_E=torch.tensor([[2.0], [-1.0]]))
    expected = torch.tensor([[0.0, -4.0], [4.0, 0.0], [0.0, 0.0]])
    torch.testing.assert_close(delta.tensor("layer.weight"), expected, rtol=1e-5, atol=1e-5)


def test_a_rank_pruned_to_nothing_adds_nothing(tmp_path):
    config = {"peft_type": "ADALORA", "init_r": 3}
    delta = by_hand(tmp_path, config, lora_A=A[:0], lora_B=B[:, :0], lora_E=torch.zeros(0, 1))
    assert delta.tensor("layer.weight").tolist() == [[0, 0], [0, 0], [0, 0]]
    assert torch.equal(delta.merged("layer.weight"), delta.base.read("layer.weight"))


def test_low_rank_updates_stay_factored(deltas):
    left, right = deltas[0].factors(f"{QUERY}.weight")
    assert (left.shape, right.shape) == ((12, 5), (5, 12))
    both = combine([deltas[0], deltas[2]], [0.5, -2])
    left, right = both.factors(f"{QUERY}.weight")
    assert (left.shape, right.shape) == ((12, 9), (9, 12))
    torch.testing.assert_close(left @ right, both.tensor(f"{QUERY}.weight"))


@settings(max_examples=25, deadline=None)
@given(weights=st.lists(st.floats(-3, 3), min_size=3, max_size=3))
def test_a_sum_is_the_sum_of_the_dense_updates(base, folders, weights):
    parts = [Delta.from_adapter(folder, base=base) for folder in folders.values()]
    together = combine(parts, weights)
    assert set(together.names) == {name for part in parts for name in part.names}
    for name in together.names:
        dense = sum(w * d.tensor(name).double() for d, w in zip(parts, weights) if name in d.names)
        torch.testing.assert_close(together.tensor(name).double(), dense, rtol=1e-5, atol=1e-5)


def test_sums_of_sums(deltas):
    nested = combine([combine(deltas[:2], [1, -0.5]), deltas[2]], [2, 3])
    flat = combine(deltas, [2, -1, 3])
    for name in flat.names:
        torch.testing.assert_close(nested.tensor(name), flat.tensor(name))


def test_moves_do_not_drift_and_zero_is_the_base(base, deltas):
    model = copy.deepcopy(base)
    combine(deltas, [0.3, -0.4, 1.1]).apply_to(model)
    once = state(model)
    for weights in ([9, 9, 9], [-1, 0, 2], [0.3, -0.4, 1.1]):
        combine(deltas, weights).apply_to(model)
    assert all(torch.equal(tensor, once[name]) for name, tensor in model.state_dict().items())
    combine(deltas, [0, 0, 0]).apply_to(model)
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in base.state_dict().items())


def test_a_state_dict_can_be_written(base, deltas):
    target = state(base)
    deltas[0].apply_to(target, -0.5)
    for name, tensor in base.state_dict().items():
        change = deltas[0].tensor(name) if name in deltas[0].names else torch.zeros_like(tensor)
        torch.testing.assert_close(target[name], tensor - 0.5 * change)


def test_the_adapter_may_be_half_precision(base, folders, tmp_path):
    halves = {k: v.bfloat16() for k, v in load_file(folders["lora"] / "adapter_model.safetensors").items()}
    save_file(halves, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text((folders["lora"] / "adapter_config.json").read_text())
    delta = Delta.from_adapter(tmp_path, base=base)
    b, a = (halves[f"{PREFIX}{QUERY}.lora_{part}.weight"].float() for part in "BA")
    torch.testing.assert_close(delta.tensor(f"{QUERY}.weight"), b @ a)


def test_between_two_checkpoints(base, tmp_path):
    tuned = llama(seed=5)
    tuned.save_pretrained(tmp_path / "tuned", max_shard_size="4KB")
    assert (tmp_path / "tuned" / "model.safetensors.index.json").is_file()
    base.save_pretrained(tmp_path / "base")
    pairs = [(tuned, base), (tmp_path / "tuned", base), (str(tmp_path / "tuned"), tmp_path / "base")]
    for delta in (Delta.between(*pair) for pair in pairs):
        assert set(delta.names) == set(base.state_dict())
        for name, tensor in tuned.state_dict().items():
            assert torch.equal(delta.tensor(name), tensor - base.state_dict()[name])
            torch.testing.assert_close(delta.merged(name), tensor)


def test_checkpoints_and_adapters_add_up(base, folders, tmp_path):
    base.save_pretrained(tmp_path)
    tuned, name = llama(seed=5), f"{QUERY}.weight"
    whole, adapter = Delta.between(tuned, tmp_path), Delta.from_adapter(folders["dora"], base=tmp_path)
    together = combine([whole, adapter], [0.5, -1])
    torch.testing.assert_close(together.tensor(name), 0.5 * whole.tensor(name) - adapter.tensor(name))
    assert together.base.origin == tmp_path.resolve()


def test_tied_models_have_each_tensor_once(tmp_path):
    tied, tuned = llama(tie_word_embeddings=True), llama(seed=3, tie_word_embeddings=True)
    tied.save_pretrained(tmp_path)
    for source in (tied, tmp_path):
        delta = Delta.between(tuned, source)
        assert "model.embed_tokens.weight" in delta.names
        assert "lm_head.weight" not in delta.names


def test_deltas_of_folders_travel_to_other_processes(base, folders, tmp_path):
    base.save_pretrained(tmp_path)
    delta = Delta.from_adapter(folders["dora"], base=tmp_path)
    other = pickle.loads(pickle.dumps(delta))
    assert all(torch.equal(delta.tensor(name), other.tensor(name)) for name in delta.names)


def test_repr_says_what_it_is(deltas):
    assert repr(deltas[0]).endswith("on 'LlamaForCausalLM': 6 tensors, 6 of them low-rank)")
    assert "4 tensors, 0 of them low-rank" in repr(deltas[1])


@pytest.mark.parametrize("target", ["embed_tokens", "lm_head"])
def test_tied_embeddings_are_refused(target, tmp_path):
    tied = llama(tie_word_embeddings=True)
    tied.save_pretrained(tmp_path / "base")
    saved(tied, lora(target_modules=[target, "q_proj"]), tmp_path / "adapter")
    for place in (tied, tmp_path / "base"):
        with pytest.raises(MergeError, match=r"changes 'model.embed_tokens.weight'|changes 'lm_head.weight'.*tie_word"):
            Delta.from_adapter(tmp_path / "adapter", base=place)


CASES = {
    "nan": ({"q_proj__lora_A__weight": torch.full((5, 12), torch.nan)}, "q_proj.lora_A.weight' of .* holds NaN"),
    "no B": ({"q_proj__lora_B__weight": None}, "no tensor lora_B for 'model.layers.0.self_attn.q_proj'.*lora_A"),
    "no layer": (
        {"0__self_attn__q_proj__lora_A__weight": None, "0__self_attn__q_proj__lora_B__weight": None},
        "no tensors for 'model.layers.0.self_attn.q_proj', which its adapter_config.json targets",
    ),
    "kind": ({"config": {"peft_type": "LOHA"}}, "peft_type 'LOHA'; those that are read .* LORA, ADALORA"),
    "kind missing": ({"config": {"peft_type": None}}, "peft_type None"),
    "rank": ({"config": {"rank_pattern": {}}}, "rank 5 for '.*', its adapter_config.json says 3"),
    "alpha": ({"config": {"lora_alpha": None}}, "lora_alpha=None in adapter_config.json"),
    "no r": ({"config": {"r": 0}}, "r=0 in adapter_config.json"),
    "parameters": ({"config": {"target_parameters": ["x"]}}, r"target_parameters=\['x'\], under which"),
    "replicated": ({"config": {"layer_replication": [[0, 2]]}}, "layer_replication="),
    "invocation": ({"config": {"alora_invocation_tokens": [3]}}, "alora_invocation_tokens="),
    "tokens": ({"config": {"trainable_token_indices": [3]}}, "trainable_token_indices="),
    "pissa": ({"config": {"init_lora_weights": "pissa_niter_4"}}, "'pissa_niter_4', which changed the base"),
    "no magnitude": ({"config": {"use_dora": True}}, "no tensor lora_magnitude_vector for"),
    "cut": ({"q_proj__lora_B__weight": torch.ones(12, 4)}, r"lora_B of shape \(12, 4\) and lora_A of shape \(5, 12\)"),
}


@pytest.mark.parametrize("case", CASES)
def test_broken_adapters_are_named(case, base, folders, tmp_path):
    changes, message = CASES[case]
    spoil(folders["lora"], tmp_path, **changes)
    with pytest.raises(ModelError, match=message):
        Delta.from_adapter(tmp_path, base=base)


def test_missing_files_are_named(base, folders, tmp_path):
    with pytest.raises(ModelError, match=r"no adapter_config.json.*Check the path"):
        Delta.from_adapter(tmp_path, base=base)
    base.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"It holds a whole model: use Delta.between"):
        Delta.from_adapter(tmp_path, base=base)
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(ModelError, match="not readable JSON"):
        Delta.from_adapter(tmp_path, base=base)
    (tmp_path / "adapter_config.json").write_text((folders["lora"] / "adapter_config.json").read_text())
    with pytest.raises(ModelError, match=r"no adapter_model.safetensors. Copy the whole"):
        Delta.from_adapter(tmp_path, base=base)
    (tmp_path / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(ModelError, match=r"only as pickle \(adapter_model.bin\).*save_pretrained"):
        Delta.from_adapter(tmp_path, base=base)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"cut")
    with pytest.raises(ModelError, match=r"damaged or cut short \(3 bytes"):
        Delta.from_adapter(tmp_path, base=base)
    with pytest.raises(ModelError, match="'nowhere' is not a folder here"):
        Delta.from_adapter("nowhere", base=base)


def test_an_adapter_for_another_base_is_refused(folders):
    wide = llama(intermediate_size=24)
    with pytest.raises(MergeError, match=r"down_proj.weight' of shape \(12, 20\), in .* it has shape \(12, 24\)"):
        Delta.from_adapter(folders["lora"], base=wide)
    with pytest.raises(MergeError, match=r"layers.1.*, which 'LlamaForCausalLM' does not have"):
        Delta.from_adapter(folders["lora"], base=llama(num_hidden_layers=1))
    with pytest.raises(ModelError, match=r"no tensors for 'model.layers.2"):
        Delta.from_adapter(folders["lora"], base=llama(num_hidden_layers=3))


def test_lora_bias_on_a_layer_without_bias_is_refused(tmp_path):
    plain = llama(attention_bias=False)
    with pytest.warns(UserWarning, match="no bias"):
        saved(plain, lora(target_modules=["q_proj"], lora_bias=True), tmp_path)
    with pytest.raises(MergeError, match=r"q_proj.bias', which .* A bias cannot be added to a layer that has none"):
        Delta.from_adapter(tmp_path, base=plain)


def test_the_base_names_what_the_adapter_was_trained_on(folders, tmp_path):
    spoil(folders["lora"], tmp_path, {"base_model_name_or_path": "some/base"}, rename=("o_proj", "oo_proj"))
    with pytest.raises(MergeError, match=r"oo_proj.weight', which .*It was trained on 'some/base'\. Pass that base"):
        Delta.from_adapter(tmp_path, base=llama())


def test_bases_that_cannot_be_read(folders, tmp_path):
    with pytest.raises(ModelError, match="'nowhere' is not a folder here"):
        Delta.from_adapter(folders["lora"], base="nowhere")
    with pytest.raises(ModelError, match=r"config.json of .* gives no causal language model"):
        Delta.from_adapter(folders["lora"], base=tmp_path)
    llama().config.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"has no model.safetensors"):
        Delta.from_adapter(folders["lora"], base=tmp_path)
    quantised = llama()
    quantised.state_dict(keep_vars=True)[f"{QUERY}.weight"].requires_grad = False
    quantised.state_dict(keep_vars=True)[f"{QUERY}.weight"].data = torch.ones(12, 12, dtype=torch.int8)
    with pytest.raises(ModelError, match=r"holds torch.int8 numbers.*unquantised"):
        Delta.from_adapter(folders["dora"], base=quantised)


def test_a_row_without_norm_is_refused(folders, base):
    dead = copy.deepcopy(base)
    dead.state_dict()[f"{QUERY}.weight"].fill_(torch.nan)
    with pytest.raises(MergeError, match=r"Row 0 of 'model.layers.0.self_attn.q_proj.weight' has norm 0 or NaN"):
        Delta.from_adapter(folders["dora"], base=dead)


def test_checkpoints_that_do_not_fit(base):
    with pytest.raises(MergeError, match=r"'model.layers.2.* is missing in 'LlamaForCausalLM'"):
        Delta.between(llama(num_hidden_layers=3), base)
    with pytest.raises(MergeError, match=r"shape \(19, 12\) in .* and \(17, 12\) in .*same vocabulary"):
        Delta.between(llama(vocab_size=19), base)
    broken = copy.deepcopy(base)
    broken.state_dict()[f"{QUERY}.weight"][0, 0] = torch.nan
    with pytest.raises(MergeError, match=rf"adds to tensor '{QUERY}.weight' holds NaN"):
        Delta.between(broken, base).tensor(f"{QUERY}.weight")


def test_wrong_uses_are_named(base, deltas):
    with pytest.raises(MergeError, match=r"does not change tensor 'x'; it changes 6, e.g."):
        deltas[0].tensor("x")
    with pytest.raises(MergeError, match="does not change tensor 'x'"):
        deltas[0].merged("x")
    with pytest.raises(MergeError, match=r"The target is the base itself.*deepcopy"):
        deltas[0].apply_to(base)
    with pytest.raises(MergeError, match="is missing in the target"):
        deltas[0].apply_to({})
    with pytest.raises(MergeError, match=r"has shape \(2,\) in the target"):
        deltas[0].apply_to(dict.fromkeys(deltas[0].names, torch.ones(2)))
    with pytest.raises(ConfigError, match="weight nan is not finite"):
        deltas[0].apply_to(copy.deepcopy(base), float("nan"))
    with pytest.raises(ConfigError, match="2 weights for 3 deltas"):
        combine(deltas, [1, 2])
    with pytest.raises(ConfigError, match="0 weights for 0 deltas"):
        combine([], [])
    with pytest.raises(ConfigError, match="weight inf is not finite"):
        combine(deltas[:1], [float("inf")])


def test_overflow_in_half_precision_is_named(folders):
    half = llama().half()
    delta = Delta.from_adapter(folders["lora"], base=half)
    with pytest.raises(MergeError, match=r"holds NaN or infinity, from the sum in torch.float16. Use a smaller"):
        delta.merged(f"{QUERY}.weight", 1e6)


def test_different_bases_do_not_add_up(base, folders):
    other = Delta.from_adapter(folders["lora"], base=copy.deepcopy(base))
    with pytest.raises(MergeError, match=r"updates add up only on one base"):
        combine([Delta.from_adapter(folders["lora"], base=base), other], [1, 1])
