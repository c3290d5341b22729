"""Mixtures of experts of two layers: native ones of transformers, and PEFT's X-LoRA on a pico model."""

import warnings

import torch
import transformers
from peft import XLoraConfig, get_peft_model
from pico_adapters import lora, saved
from pico_language import pico

EXPERTS, TOP = 3, 2
NATIVE = {
    "Mixtral": {"num_local_experts": EXPERTS},
    "Qwen2Moe": {"num_experts": EXPERTS, "moe_intermediate_size": 12, "shared_expert_intermediate_size": 12},
    "Qwen3Moe": {"num_experts": EXPERTS, "moe_intermediate_size": 12, "head_dim": 8},
    "Olmoe": {"num_experts": EXPERTS},
}


def mixture(kind="Mixtral", *, seed=0, **changes):
    """Return a random mixture whose routers and next tokens vary."""
    sizes = {"vocab_size": 260, "hidden_size": 24, "intermediate_size": 36, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 3, "num_key_value_heads": 1, "max_position_embeddings": 256}
    sizes |= {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0, "initializer_range": 0.4}
    torch.manual_seed(seed)
    config = getattr(transformers, f"{kind}Config")(**sizes, num_experts_per_tok=TOP, **NATIVE[kind], **changes)
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    for name, tensor in model.named_parameters():
        if name.endswith("gate.weight"):
            tensor.data.normal_(0, 0.5)
    return model


def xlora(folder, **changes):
    """Return X-LoRA over two random LoRA adapters, which are written below `folder`."""
    targets = lora(target_modules=["q_proj", "v_proj"])
    paths = {}
    for i in range(2):
        saved(pico(), targets, folder / str(i), seed=i)
        paths[str(i)] = str(folder / str(i))
    base = pico()
    base.config.use_cache = False
    config = XLoraConfig(task_type="CAUSAL_LM", hidden_size=24, adapters=paths, **changes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return get_peft_model(base, config).eval()
