"""What PEFT promises of a method, kept by ours: one list of configurations, every behaviour for each of them."""

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftConfig, PeftModel, PeftType, get_peft_model, inject_adapter_in_model

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

from pico_adapters import IDS, TARGETS, llama, logits, trained

from workbench.adapters import LoraMoeConfig, auxiliary_losses
from workbench.adapters._register import register
from workbench.adapters.lora_moe.model import LoraMoeModel
from workbench.errors import ConfigError

SIZES = {"r": 4, "num_experts": 3, "queue_size": 5, "queue_dim": 6}
CONFIGS = {
    "queue": lambda **changes: LoraMoeConfig(**SIZES, **({"target_modules": TARGETS} | changes)),
    "in_batch": lambda **changes: LoraMoeConfig(
        **SIZES, **({"target_modules": TARGETS, "contrastive": "in_batch", "shared_expert": True} | changes)
    ),
    "shared router": lambda **changes: LoraMoeConfig(
        **SIZES, **({"target_modules": TARGETS, "router": "layer", "use_rslora": True} | changes)
    ),
    "sequence": lambda **changes: LoraMoeConfig(
        **SIZES, **({"target_modules": TARGETS, "routing": "sequence", "lora_dropout": 0.1} | changes)
    ),
}
GREEDY = {"do_sample": False, "max_new_tokens": 6, "pad_token_id": 0, "attention_mask": torch.ones_like(IDS)}
ADAPTED = ("self_attn.q_proj", "self_attn.o_proj", "mlp.down_proj")


@pytest.fixture(params=CONFIGS)
def config(request):
    return CONFIGS[request.param]


def loaded(folder, **settings):
    return PeftModel.from_pretrained(llama(), folder, **settings).eval()


def test_the_story_loss_halves_disabling_matters_reload_is_identical(config, tmp_path):
    model = get_peft_model(llama(), config()).train()
    trainable = [name for name, tensor in model.named_parameters() if tensor.requires_grad]
    assert trainable
    assert all("lora_moe_" in name for name in trainable)
    optimizer = torch.optim.AdamW([tensor for tensor in model.parameters() if tensor.requires_grad], lr=0.05)
    losses = []
    for _ in range(25):
        loss = model(input_ids=IDS, labels=IDS).loss
        (loss + sum(auxiliary_losses(model).values())).backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    model.eval()
    with model.disable_adapter():
        assert torch.equal(logits(model), logits(llama()))
    assert not torch.allclose(logits(model), logits(llama()))
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(loaded(tmp_path)), logits(model))


def test_a_fresh_adapter_changes_nothing(config):
    assert torch.equal(logits(get_peft_model(llama(), config()).eval()), logits(llama()))


def test_the_saved_configuration_is_the_one_that_was_given(config, tmp_path):
    config(lora_alpha=7).save_pretrained(tmp_path)
    again = PeftConfig.from_pretrained(tmp_path)
    assert type(again) is LoraMoeConfig
    assert again.to_dict() | {"target_modules": set(TARGETS)} == config(lora_alpha=7).to_dict()


def test_generating_with_a_cache_is_generating_without(config):
    model = trained(llama(), config())
    with_cache = model.generate(input_ids=IDS, use_cache=True, **GREEDY)
    rows = [model(input_ids=with_cache[:, :n]).logits[:, -1].argmax(-1) for n in range(5, 11)]
    if next(iter(model.peft_config.values())).routing == "token":
        assert torch.equal(with_cache[:, 5:], torch.stack(rows, dim=1))
    plain = llama().generate(input_ids=IDS, use_cache=True, **GREEDY)
    assert with_cache.shape == plain.shape == (2, 11)


@pytest.mark.parametrize("autocast", [True, False])
def test_bfloat16(config, tmp_path, autocast):
    base = llama().to(torch.bfloat16)
    model = get_peft_model(copy.deepcopy(base), config(), autocast_adapter_dtype=autocast)
    dtypes = {tensor.dtype for tensor in model.parameters() if tensor.requires_grad}
    assert dtypes == {torch.float32 if autocast else torch.bfloat16}
    for tensor in model.parameters():
        tensor.data += 0.2 * torch.randn_like(tensor) * tensor.requires_grad
    model.train()
    for _ in range(2):
        loss = model(input_ids=IDS, labels=IDS).loss
        (loss + sum(auxiliary_losses(model).values())).backward()
    assert all(tensor.grad.isfinite().all() for tensor in model.parameters() if tensor.requires_grad)
    model.eval()
    assert logits(model).dtype == torch.bfloat16
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(base, tmp_path, autocast_adapter_dtype=autocast).eval()
    assert torch.equal(logits(again), logits(model))


def test_injecting_without_a_wrapper(config):
    model = inject_adapter_in_model(config(), llama()).train()
    model(input_ids=IDS)
    assert "balance" in auxiliary_losses(model)


def test_other_modules_and_biases_train_too(config, tmp_path):
    model = trained(llama(), config(modules_to_save=["lm_head"], bias="lora_moe_only"))
    trainable = [name for name, tensor in model.named_parameters() if tensor.requires_grad]
    assert any("lm_head.modules_to_save" in name for name in trainable)
    assert any(name.endswith("q_proj.base_layer.bias") for name in trainable)
    assert not any(name.endswith("k_proj.bias") for name in trainable)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(loaded(tmp_path)), logits(model))


def test_layers_are_chosen_as_for_lora(config):
    chosen = get_peft_model(llama(), config(layers_to_transform=1)).targeted_module_names
    assert chosen == [f"model.layers.1.{name}" for name in ADAPTED]
    lora = get_peft_model(llama(), LoraConfig(target_modules="all-linear"))
    assert get_peft_model(llama(), config(target_modules="all-linear")).targeted_module_names == (
        lora.targeted_module_names
    )
    default = get_peft_model(llama(), config(target_modules=None)).targeted_module_names
    assert default == get_peft_model(llama(), LoraConfig()).targeted_module_names


def test_it_comes_off_but_does_not_merge(config):
    model = trained(llama(), config())
    for merge in (model.merge_and_unload, model.merge_adapter):
        with pytest.raises(ConfigError, match=r"cannot be merged.*depends on the token.*unload\(\)"):
            merge()
    assert torch.equal(logits(model.unload()), logits(llama()))


def test_registering_twice_is_once_and_a_taken_name_is_told():
    register("lora_moe", LoraMoeConfig, LoraMoeModel)
    assert PeftType("LORA_MOE") is PeftType.LORA_MOE is LoraMoeConfig().peft_type
    assert PeftType.LORA_MOE in list(PeftType)
    with pytest.raises(ConfigError, match=r"already has a method 'lora'.*cannot share a name"):
        register("lora", LoraMoeConfig, LoraMoeModel)


def test_a_process_that_only_imports_the_adapters_can_load_one(tmp_path):
    trained(llama(), CONFIGS["queue"]()).save_pretrained(tmp_path)
    code = f"import workbench.adapters, peft; print(peft.PeftConfig.from_pretrained({str(tmp_path)!r}).peft_type.value)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "LORA_MOE"
