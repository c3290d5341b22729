"""How much each token of an answer surprises a model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from workbench.errors import ConfigError
from workbench.generation.answers import Prompt, context_length, encode_prompt
from workbench.generation.decoder import check_logits, evaluating


@torch.no_grad()
def surprise(model: Any, tokenizer: Any, prompt: Prompt, answer: str | Sequence[int]) -> Tensor:
    """Return -log2 p of each token of an answer, given the prompt and the tokens before it.

    0 bits is a token that the model was sure of, log2 V one of V that it held equally likely.

    Args:
        model: A causal language model of transformers, not necessarily the one that wrote the answer.
        tokenizer: Its tokenizer.
        prompt: What the user said, or a chat; the chat template is applied here.
        answer: Token ids, which need no second encoding, or a text.

    Returns:
        `(T,)`, float32, on the CPU, in bits; empty for an empty answer.

    Raises:
        ConfigError: The prompt has no token, prompt and answer are longer than the model's context, or a token is not
            the model's.
        ModelError: The model's scores are not numbers.
    """
    before = encode_prompt(tokenizer, prompt)
    text = isinstance(answer, str)
    after = tokenizer(answer, add_special_tokens=False, verbose=False)["input_ids"] if text else list(answer)
    limit, size = context_length(model), model.get_input_embeddings().weight.shape[0]
    if limit is not None and len(before) + len(after) - 1 > limit:
        raise ConfigError(
            f"prompt and answer have {len(before)} + {len(after)} tokens and the model's context holds {limit}; "
            "shorten one of them"
        )
    if any(not 0 <= token < size for token in after):
        raise ConfigError(f"token {max(after)} is not one of the model's {size}; take the model's own tokenizer")
    if not after:
        return torch.zeros(0)
    ids = torch.tensor([before + after[:-1]], device=model.device)
    with evaluating(model):
        logits = model(input_ids=ids, use_cache=False, logits_to_keep=len(after)).logits[0].float()
    check_logits(logits)
    bits = -torch.log_softmax(logits, -1).gather(1, torch.tensor(after, device=logits.device)[:, None])[:, 0]
    return (bits / math.log(2)).cpu()
