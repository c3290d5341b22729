"""Which of several choices a model finds likeliest: the prompt is read once, then every choice after it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from workbench.errors import DataError
from workbench.generation import check_logits, encode_prompt, evaluating, pad_left
from workbench.generation.routers import keep_routes
from workbench.records import Example


def choice_scores(
    model: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    *,
    batch_size: int = 32,
    progress: Callable[[int], Any] | None = None,
) -> list[list[float]]:
    """Return, for each example, the log-likelihood of each of its choices as the answer, per byte.

    score(c) = sum_t log p(c_t | prompt, c_<t) / bytes(c), in nats for one UTF-8 byte. Per byte, a long choice is not
    punished for its length, and models with different tokenizers compare. Prompts of similar length share a batch.

    Args:
        model: A causal language model of transformers.
        tokenizer: Its tokenizer.
        examples: Each with choices.
        batch_size: Most choices computed together; one example's choices always are.
        progress: Called after each batch with the number of examples just finished.

    Raises:
        DataError: An example has no choices, one of them is empty, or its answer is none of them.
        ModelError: The model's scores are not numbers.

    Source: `acc_norm` of EleutherAI's lm-evaluation-harness. Deviates: a choice is encoded by itself, since the prompt
    ends in a chat template or a line break, where texts part.
    """
    prompts = [encode_prompt(tokenizer, example.prompt()) for example in examples]
    choices = [choice_ids(tokenizer, example) for example in examples]
    scores: list[list[float]] = [[] for _ in examples]
    for rows in _batches(prompts, choices, batch_size):
        with evaluating(model):
            sums = iter(_log_likelihoods(model, [prompts[i] for i in rows], [choices[i] for i in rows]).tolist())
        for i in rows:
            scores[i] = [next(sums) / len(choice.encode()) for choice in examples[i].choices or ()]
        if progress is not None:
            progress(len(rows))
    return scores


def choice_ids(tokenizer: Any, example: Example) -> list[list[int]]:
    """Return the token ids of each choice of an example.

    Raises:
        DataError: There are no choices, one of them has no token, or the answer is none of them.
    """
    options = example.choices or ()
    if example.answer not in options:
        raise DataError(
            f"example {example.id!r} has the choices {options} and the answer {example.answer!r}; "
            "`likelihood` needs choices, one of which is the answer"
        )
    ids = [tokenizer(option, add_special_tokens=False)["input_ids"] for option in options]
    if not all(ids):
        raise DataError(f"example {example.id!r} has an empty choice among {options}; give every choice a text")
    return ids


def _batches(prompts: list[list[int]], choices: list[list[list[int]]], batch_size: int) -> list[list[int]]:
    batches: list[list[int]] = [[]]
    filled = 0
    for i in sorted(range(len(prompts)), key=lambda i: -len(prompts[i])):
        if filled + len(choices[i]) > batch_size and batches[-1]:
            batches.append([])
            filled = 0
        batches[-1].append(i)
        filled += len(choices[i])
    return batches


@torch.no_grad()
def _log_likelihoods(model: Any, prompts: list[list[int]], choices: list[list[list[int]]]) -> Tensor:
    """Return the summed log-likelihood of every choice, `(sum of choices,)`, in order."""
    ids, mask = pad_left(prompts, device=model.device)
    cache = DynamicCache(config=model.config)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    first = _log_probabilities(model, ids, mask, positions, cache, logits_to_keep=1)[:, -1]
    owner = torch.tensor([row for row, options in enumerate(choices) for _ in options], device=model.device)
    flat = [option for options in choices for option in options]
    total = first[owner, torch.tensor([option[0] for option in flat], device=model.device)]
    width = max(len(option) for option in flat) - 1
    if width == 0:
        return total
    # The last token of a choice predicts nothing that counts, so it is not read.
    read, real = _pad_right([option[:-1] for option in flat], width, model.device)
    wanted, _ = _pad_right([option[1:] for option in flat], width, model.device)
    cache.batch_select_indices(owner)
    keep_routes(model, owner)
    positions = mask.sum(-1)[owner, None] + torch.arange(width, device=model.device)
    rest = _log_probabilities(model, read, torch.cat([mask[owner], real], dim=1), positions, cache)
    return total + (rest.gather(-1, wanted[..., None])[..., 0] * real).sum(-1)


def _log_probabilities(model: Any, ids: Tensor, mask: Tensor, positions: Tensor, cache: Any, **kwargs: Any) -> Tensor:
    logits = model(
        input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True, **kwargs
    ).logits
    check_logits(logits)
    return torch.log_softmax(logits.float(), -1)


def _pad_right(rows: list[list[int]], width: int, device: Any) -> tuple[Tensor, Tensor]:
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=device)
    real = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)
    return ids, real
