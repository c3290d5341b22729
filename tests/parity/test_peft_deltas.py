"""What we read from a saved adapter against PEFT's own forward and merge, for each kind of adapter."""

import copy
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer

from workbench.deltas import Delta, combine

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

from pico_adapters import IDS, adalora, gpt2, llama, logits, lora, saved, trained

torch.set_num_threads(1)

KINDS = {
    "lora": lora(),
    "rslora": lora(use_rslora=True),
    "dora": lora(use_dora=True),
    "dora, rslora": lora(use_dora=True, use_rslora=True),
    "rank and alpha patterns": lora(
        rank_pattern={"q_proj": 5, r"layers\.1\..*down_proj": 1}, alpha_pattern={"^model.*o_proj": 9}
    ),
    "patterns, rslora": lora(rank_pattern={"q_proj": 5}, alpha_pattern={"o_proj": 9}, use_rslora=True),
    "lora_bias": lora(target_modules=["q_proj", "o_proj"], lora_bias=True),
    "all biases": lora(bias="all"),
    "biases of the layers": lora(bias="lora_only"),
    "embedding": lora(target_modules=["embed_tokens", "q_proj", "lm_head"]),
    "embedding, dora": lora(target_modules=["embed_tokens", "q_proj"], use_dora=True),
    "modules_to_save": lora(modules_to_save=["lm_head", "embed_tokens"]),
    "adalora": adalora(),
}


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=2e-6 * theirs.abs().max().item())


def ours(delta, base, weight=1.0):
    model = copy.deepcopy(base)
    delta.apply_to(model, weight)
    return logits(model)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("by_folder", [False, True])
def test_weight_one_is_pefts_forward_and_merge(kind, by_folder, tmp_path):
    base = llama()
    base.save_pretrained(tmp_path / "base")
    peft_model = saved(base, copy.deepcopy(KINDS[kind]), tmp_path / "adapter")
    delta = Delta.from_adapter(tmp_path / "adapter", base=tmp_path / "base" if by_folder else base)
    result = ours(delta, base)
    assert (result - logits(base)).abs().max() > 0.1
    close(result, logits(peft_model))
    close(result, logits(peft_model.merge_and_unload()))


GPT2_KINDS = [
    lora(target_modules=["c_attn", "c_proj"]),
    lora(target_modules=["c_attn"], use_dora=True),
    adalora(target_modules=["c_fc"]),
]


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
@pytest.mark.parametrize("config", GPT2_KINDS, ids=["lora", "dora", "adalora"])
def test_layers_that_keep_their_weight_transposed(config, tmp_path):
    base = gpt2()
    base.save_pretrained(tmp_path / "base")
    peft_model = saved(base, config, tmp_path / "adapter")
    for place in (base, tmp_path / "base"):
        result = ours(Delta.from_adapter(tmp_path / "adapter", base=place), base)
        close(result, logits(peft_model))
    close(result, logits(peft_model.merge_and_unload()))


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")
def test_adalora_with_ranks_that_training_pruned(tmp_path):
    base = llama()
    model = trained(base, adalora(tinit=1, tfinal=2, deltaT=1, total_step=8, init_r=4, target_r=1))
    steps = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    model.train()
    for step in range(8):
        model(input_ids=IDS, labels=IDS).loss.backward()
        steps.step()
        model.base_model.update_and_allocate(step)
        steps.zero_grad()
    expected = logits(model.eval())
    ranks = {name: sum(kept) for name, kept in model.peft_config["default"].rank_pattern.items()}
    assert len(set(ranks.values())) > 1, ranks
    assert sum(ranks.values()) == len(ranks), ranks
    model.save_pretrained(tmp_path / "adapter")
    delta = Delta.from_adapter(tmp_path / "adapter", base=base)
    kept = [delta.factors(name)[0].shape[1] for name in delta.names]
    assert sorted(kept) == sorted(ranks.values())
    close(ours(delta, base), expected)
    loaded = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "adapter").eval()
    close(ours(delta, base), logits(loaded))
    close(ours(delta, base), logits(loaded.merge_and_unload()))


@pytest.mark.parametrize("weights", [(0.6, 0.4), (1.0, -0.7), (-2.0, 0.5), (0.0, 0.0)])
def test_several_adapters_are_pefts_with_their_scales_set(weights, tmp_path):
    base = llama()
    configs = lora(rank_pattern={"q_proj": 5}), lora(r=2, lora_alpha=7, target_modules=["q_proj", "gate_proj"])
    for seed, (name, config) in enumerate(zip("ab", configs)):
        saved(base, config, tmp_path / name, seed=seed)
    model = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "a", adapter_name="a").eval()
    model.load_adapter(str(tmp_path / "b"), adapter_name="b")
    model.base_model.set_adapter(["a", "b"])
    for layer in (module for module in model.modules() if isinstance(module, LoraLayer)):
        for name, weight in zip("ab", weights):
            if name in layer.scaling:
                layer.set_scale(name, weight)
    deltas = [Delta.from_adapter(tmp_path / name, base=base) for name in "ab"]
    close(ours(combine(deltas, weights), base), logits(model))


def test_bfloat16_is_rounded_once(tmp_path):
    base = llama().to(torch.bfloat16)
    peft_model = saved(base, lora(), tmp_path / "adapter")
    delta = Delta.from_adapter(tmp_path / "adapter", base=base)
    name = "model.layers.0.self_attn.q_proj.weight"
    layer = peft_model.base_model.model.model.layers[0].self_attn.q_proj
    a, b = (getattr(layer, f"lora_{part}")["default"].weight.double() for part in "AB")
    exact = base.state_dict()[name].double() + 5 / 3 * b @ a
    merged = delta.merged(name)
    assert merged.dtype == torch.bfloat16
    # Half a step of bfloat16, and what float32 adds to it where two neighbours are equally near.
    step = torch.finfo(torch.bfloat16).eps * exact.abs()
    assert ((merged.double() - exact).abs() <= 0.5001 * step).all()
