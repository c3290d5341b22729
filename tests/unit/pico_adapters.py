"""Pico models, and PEFT adapters of every kind on them with random weights, for tests."""

import copy
import warnings

import torch
from peft import AdaLoraConfig, LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

IDS = torch.tensor([[1, 5, 9, 2, 16], [3, 3, 0, 7, 11]])
TARGETS = ["q_proj", "o_proj", "down_proj"]


def llama(seed=0, **changes):
    torch.manual_seed(seed)
    sizes = {
        "hidden_size": 12,
        "intermediate_size": 20,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": 17,
        "tie_word_embeddings": False,
        "attention_bias": True,
    }
    return shaken(LlamaForCausalLM(LlamaConfig(**(sizes | changes))).eval())


def gpt2(seed=0):
    torch.manual_seed(seed)
    config = GPT2Config(n_embd=12, n_layer=2, n_head=2, vocab_size=17, n_positions=9, tie_word_embeddings=False)
    return shaken(GPT2LMHeadModel(config).eval())


def shaken(model):
    """Give every tensor numbers that matter: biases that are not 0, weights that are not tiny."""
    for tensor in model.parameters():
        tensor.data += 0.2 * torch.randn_like(tensor)
    return model


def lora(**changes):
    return LoraConfig(**({"r": 3, "lora_alpha": 5, "target_modules": TARGETS, "task_type": "CAUSAL_LM"} | changes))


def adalora(**changes):
    settings = {"init_r": 4, "target_r": 2, "lora_alpha": 5, "total_step": 10, "target_modules": TARGETS}
    return AdaLoraConfig(**(settings | {"task_type": "CAUSAL_LM"} | changes))


def trained(base, config, seed=1):
    """Return a PEFT model on a copy of the base, with what training would change set to random numbers."""
    model = get_peft_model(copy.deepcopy(base), config).eval()
    torch.manual_seed(seed)
    for name, tensor in model.named_parameters():
        if "magnitude" in name:
            tensor.data *= 1 + 0.3 * torch.rand_like(tensor)
        elif tensor.requires_grad:
            tensor.data += 0.3 * torch.randn_like(tensor)
    return model


def saved(base, config, folder, seed=1):
    """Save such an adapter and return the PEFT model that holds it."""
    model = trained(base, config, seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(folder)
    return model


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits
