"""The estimate of memory and work, against what a real step of the same model takes."""

import copy
from importlib.util import find_spec

import pytest
import torch
from peft import AdaLoraConfig, LoraConfig, get_peft_model
from torch.nn.functional import cross_entropy
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, LlamaConfig, Qwen3Config, T5Config

from workbench.adapters import LoraMoeConfig, auxiliary_losses
from workbench.errors import ConfigError
from workbench.models import load_model
from workbench.training import estimate as module
from workbench.training.estimate import RESERVE, estimate_training, matmul_rate
from workbench.training.settings import TrainSettings, make_settings

SHAPE = {
    "vocab_size": 211,
    "hidden_size": 48,
    "intermediate_size": 112,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
T5 = {"vocab_size": 211, "d_model": 48, "d_kv": 12, "d_ff": 112, "num_heads": 4, "feed_forward_proj": "gated-gelu"}
CONFIGS = {
    "llama": lambda layers: LlamaConfig(**SHAPE, num_hidden_layers=layers),
    "qwen3": lambda layers: Qwen3Config(**SHAPE, head_dim=12, num_hidden_layers=layers, tie_word_embeddings=True),
    "t5": lambda layers: T5Config(**T5, num_layers=layers, num_decoder_layers=layers, dropout_rate=0.0),
}
ADAPTERS = {
    "none": None,
    "LoRA": LoraConfig(r=4, target_modules="all-linear"),
    "AdaLoRA": AdaLoraConfig(init_r=4, target_r=2, total_step=10, target_modules="all-linear"),
    "LoRA-MoE": LoraMoeConfig(r=3, num_experts=3, target_modules="all-linear", queue_size=16),
}
ROWS, LENGTH = 3, 40


def real(config, adapter, dtype, again=False):
    """Return the model, its optimiser, and a step that trains it."""
    torch.manual_seed(0)
    kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    model = kind.from_config(config, dtype=dtype)
    model = model if adapter is None else get_peft_model(model, copy.deepcopy(adapter))
    if again:
        model.activation_checkpointing_enable({"use_reentrant": False})
    for name, tensor in model.named_parameters():
        if "ranknum" in name:
            # PEFT 0.21 makes this count of ranks trainable where it casts it, that is, beside bfloat16 weights.
            tensor.requires_grad_(False)
    trained = [tensor for tensor in model.train().parameters() if tensor.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    ids = torch.randint(3, 200, (ROWS, LENGTH))
    more = {"decoder_input_ids": ids} if config.is_encoder_decoder else {}

    def step():
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
            logits = model(input_ids=ids, use_cache=False, **more).logits
        loss = cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())
        sum(auxiliary_losses(model).values(), loss).backward()

    return model, optimizer, step


def peak_of(step):
    """Return the most bytes that lived at once, as the allocator reports them."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        step()
    now = most = 0
    for event in seen.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parameters_gradients_and_optimiser_are_exact(adapter, dtype):
    config, chosen = CONFIGS["llama"](2), ADAPTERS[adapter]
    found = estimate_training(config, chosen, length=LENGTH, dtype=dtype, batch_size=ROWS)
    model, optimizer, step = real(config, chosen, dtype)
    step()
    optimizer.step()
    weights = sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
    gradients = sum(t.grad.nbytes for t in model.parameters() if t.grad is not None)
    state = sum(t.nbytes for held in optimizer.state.values() for t in held.values())
    assert found.memory["weights"] + found.memory["adapter"] == weights
    assert found.memory["gradients"] == gradients
    scores = 3 * gradients if adapter == "AdaLoRA" else 0
    assert found.memory["optimiser"] == state + scores
    assert found.parameters == sum(t.numel() for t in model.parameters())
    assert found.trained == sum(t.numel() for t in model.parameters() if t.requires_grad)


def test_adalora_keeps_three_scores_of_each_number():
    model, _, step = real(CONFIGS["llama"](2), ADAPTERS["AdaLoRA"], torch.float32)
    step()
    allocator = model.base_model.rankallocator
    allocator.update_ipt(model.base_model)
    held = [*allocator.ipt.values(), *allocator.exp_avg_ipt.values(), *allocator.exp_avg_unc.values()]
    assert sum(t.nbytes for t in held) == 3 * sum(t.nbytes for t in model.parameters() if t.requires_grad)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "adapter", "dtype", "again"),
    [
        ("llama", "LoRA", torch.float32, False),
        ("llama", "LoRA", torch.bfloat16, True),
        ("llama", "none", torch.float32, False),
        ("llama", "LoRA-MoE", torch.float32, False),
        ("llama", "LoRA-MoE", torch.float32, True),
        ("qwen3", "AdaLoRA", torch.float32, True),
        ("t5", "LoRA", torch.float32, False),
    ],
)
def test_activations_are_near_the_measured_peak(kind, adapter, dtype, again):
    config, chosen = CONFIGS[kind](5), ADAPTERS[adapter]
    settings = {"batch_size": ROWS, "gradient_checkpointing": again}
    found = estimate_training(config, chosen, length=LENGTH, dtype=dtype, **settings)
    _, _, step = real(config, chosen, dtype, again)
    step()  # gradients are there, and the losses' queues begin to fill
    assert 0.9 <= found.memory["activations"] / peak_of(step) <= 1.35


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_operations_are_those_of_a_real_step(kind):
    config, chosen = CONFIGS[kind](5), ADAPTERS["LoRA"]
    found = estimate_training(
        config, chosen, length=LENGTH, dtype=torch.float32, batch_size=ROWS, gradient_accumulation_steps=2
    )
    _, _, step = real(config, chosen, torch.float32)
    with FlopCounterMode(display=False) as counter:
        step()
    assert found.flops == 2 * counter.get_total_flops()
    assert found.tokens == 2 * ROWS * LENGTH


def test_checkpointing_is_told_both_ways_and_costs_work():
    config = CONFIGS["llama"](6)
    plain, again = (
        estimate_training(config, ADAPTERS["LoRA"], length=LENGTH, batch_size=ROWS, gradient_checkpointing=which)
        for which in (False, True)
    )
    assert plain.activations == again.activations
    assert plain.memory["activations"] > again.memory["activations"]
    assert again.flops > plain.flops


def test_8_bit_state_takes_about_a_quarter():
    config = LlamaConfig(**SHAPE | {"hidden_size": 128, "vocab_size": 1024}, num_hidden_layers=1)
    full, small = (
        estimate_training(config, None, length=8, dtype=torch.float32, optimizer=name).memory["optimiser"]
        for name in ("adamw", "adamw_8bit")
    )
    assert 0.25 <= small / full < 0.3


def test_a_training_after_an_estimate_meets_real_numbers():
    adapter = LoraMoeConfig(r=3, num_experts=3, target_modules=["down_proj"], queue_size=16, queue_dim=8)
    config = CONFIGS["llama"](2)
    estimate_training(config, adapter, length=8, dtype=torch.float32, batch_size=2)
    _, _, step = real(config, adapter, torch.float32)
    step()


def test_memory_that_is_short_is_one_error_with_the_remedy(monkeypatch, tmp_path):
    found = estimate_training(CONFIGS["llama"](6), ADAPTERS["LoRA"], length=LENGTH, batch_size=ROWS)
    assert found.total == round(sum(found.memory.values()) * (1 + RESERVE))
    monkeypatch.setattr(module, "get_max_memory", lambda: {"cpu": found.total, 0: found.total - 1})
    found.check("cpu", tmp_path)
    told = r"this needs about .* of memory and cuda:0 has .* free; .*gradient_checkpointing=True \(activations .*, not"
    with pytest.raises(ConfigError, match=told):
        found.check("cuda:0", tmp_path)
    assert "trained" in str(found)
    assert "reserve" in str(found)


def test_a_full_disk_is_one_error_with_the_remedy(monkeypatch, tmp_path):
    found = estimate_training(CONFIGS["llama"](2), ADAPTERS["LoRA"], length=8, save_total_limit=1)
    more = estimate_training(CONFIGS["llama"](2), ADAPTERS["LoRA"], length=8, save_total_limit=3)
    assert found.disk < more.disk
    monkeypatch.setattr(module, "get_max_memory", lambda: {"cpu": 10**15})
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: type("Usage", (), {"free": found.disk}))
    found.check("cpu", tmp_path / "not" / "there")
    with pytest.raises(ConfigError, match=r"this writes about .* free some space, .*save_total_limit=1"):
        more.check("cpu", tmp_path / "not" / "there")


def test_an_8_bit_optimiser_without_its_package_is_one_error():
    if find_spec("bitsandbytes") is not None:
        assert make_settings({"optimizer": "adamw_8bit"}).optimizer == "adamw_8bit"
        return
    with pytest.raises(ConfigError, match=r"needs bitsandbytes, which is not installed: pip install bitsandbytes"):
        make_settings({"optimizer": "adamw_8bit"})


def test_runs_from_before_the_choice_of_an_optimiser_go_on():
    assert "optimizer" not in TrainSettings().identity()
    assert TrainSettings(optimizer="adamw_8bit").identity()["optimizer"] == "adamw_8bit"
    with pytest.raises(ConfigError, match=r"optimizer='sgd' is unknown; use one of adamw, adamw_8bit"):
        TrainSettings(optimizer="sgd")


def test_attention_is_chosen_or_refused_with_the_remedy():
    model, _ = load_model("classroom/base", device="cpu", attn_implementation="eager")
    assert model.config._attn_implementation == "eager"
    usual, _ = load_model("classroom/base", device="cpu")
    assert usual.config._attn_implementation == "sdpa"
    with pytest.raises(ConfigError, match=r"'flash_attention_2' needs a CUDA device, .* or use 'sdpa'"):
        load_model("classroom/base", device="cpu", attn_implementation="flash_attention_2")
    with pytest.raises(ConfigError, match=r"attn_implementation='fast' is unknown. Use 'sdpa'"):
        load_model("classroom/base", attn_implementation="fast")


def test_a_row_of_one_token_is_refused():
    with pytest.raises(ConfigError, match="length=1: a row has at least 2 tokens"):
        estimate_training(CONFIGS["llama"](2), length=1)


def test_the_matrix_rate_is_a_number_of_operations():
    assert matmul_rate("cpu", torch.float32, seconds=0.0) > 0
