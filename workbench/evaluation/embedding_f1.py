"""BERTScore's formula over the hidden states of an encoder that the user has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from workbench.errors import ConfigError
from workbench.generation import check_logits, context_length, evaluating


def embedding_f1(
    references: Sequence[str],
    outputs: Sequence[str],
    model: Any,
    tokenizer: Any,
    *,
    layer: int = -1,
    batch_size: int = 32,
) -> list[tuple[float, float, float]]:
    """Compare texts by the cosine of their tokens' hidden states, each token with its most similar one.

    With unit vectors x_i of the reference and y_j of the output: P = mean_j max_i x_i y_j, R = mean_i max_j x_i y_j,
    F = 2 P R / (P + R), each held within 0..1. Special tokens are left out, and text that spells one stays text. A text
    longer than the encoder's context is read in windows side by side, so that nothing is cut.

    Args:
        references: The wanted texts.
        outputs: The texts to compare, as many.
        model: A model of transformers that gives hidden states, with an encoder's or a causal mask.
        tokenizer: Its tokenizer, of the fast kind.
        layer: Index of the hidden state, 0 for the embeddings and -1 for the last.
        batch_size: Most texts of a side, and most windows, computed together.

    Returns:
        P, R, F for each pair; zeros where a text has no token.

    Raises:
        ConfigError: The tokenizer is not of the fast kind.
        ModelError: The hidden states are not numbers.
        ValueError: There are not as many references as outputs.

    Source: Zhang et al. (2020), BERTScore, arXiv 1904.09675, section 3. Deviates: no idf weights and no rescaling;
    the layer is not chosen by a correlation with judgements, so figures compare only under one encoder and layer.
    """
    if not tokenizer.is_fast:
        raise ConfigError(f"{type(tokenizer).__name__} is not a fast tokenizer; load it by AutoTokenizer")
    pairs = list(zip(references, outputs, strict=True))
    found = []
    with evaluating(model), torch.inference_mode():
        for start in range(0, len(pairs), batch_size):
            texts = [text for pair in pairs[start : start + batch_size] for text in pair]
            states = _states(texts, model, tokenizer, layer, batch_size)
            found += [_matched(*two) for two in zip(states[::2], states[1::2], strict=True)]
    return found


def _states(texts: list[str], model: Any, tokenizer: Any, layer: int, batch_size: int) -> list[Tensor]:
    """Return the unit vectors of each text's tokens, [tokens, hidden]."""
    limits = [limit for limit in (context_length(model), tokenizer.model_max_length) if limit]
    windows = tokenizer(
        texts,
        truncation=True,
        max_length=min(limits),
        return_overflowing_tokens=True,
        return_special_tokens_mask=True,
        split_special_tokens=True,
    )
    ids, special = windows["input_ids"], windows["special_tokens_mask"]
    parts: list[list[Tensor]] = [[] for _ in texts]
    filled = [row for row, tokens in enumerate(ids) if tokens]
    for start in range(0, len(filled), batch_size):
        rows = filled[start : start + batch_size]
        tokens = pad_sequence(
            [torch.tensor(ids[row]) for row in rows], batch_first=True, padding_value=tokenizer.pad_token_id or 0
        )
        mask = pad_sequence([torch.ones(len(ids[row]), dtype=torch.long) for row in rows], batch_first=True)
        hidden = model(
            input_ids=tokens.to(model.device), attention_mask=mask.to(model.device), output_hidden_states=True
        ).hidden_states[layer]
        check_logits(hidden)
        for row, state in zip(rows, torch.nn.functional.normalize(hidden.float(), dim=-1).cpu(), strict=True):
            kept = torch.tensor(special[row]) == 0
            parts[windows["overflow_to_sample_mapping"][row]].append(state[: len(kept)][kept])
    return [torch.cat(part) if part else torch.zeros(0, 1) for part in parts]


def _matched(wanted: Tensor, given: Tensor) -> tuple[float, float, float]:
    if not len(wanted) or not len(given):
        return 0.0, 0.0, 0.0
    cosines = given @ wanted.T
    precision, recall = (cosines.amax(dim).mean().clamp(0, 1).item() for dim in (1, 0))
    both = precision + recall
    return precision, recall, 2 * precision * recall / both if both else 0.0
