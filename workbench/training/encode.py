"""Examples to token ids whose loss counts on the answer alone; nothing is cut off."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor

from workbench.errors import ConfigError, DataError, WorkbenchWarning
from workbench.generation import context_length, encode_prompt
from workbench.records import Rows, records


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """Examples ready to train on.

    Args:
        data: Columns `input_ids`, `start` (position of the answer's first token) and `row` (place in `ids`).
        ids: Id of each example.
        dropped: Ids of examples that were too long.
        digest: Hash of all token ids and starts.
    """

    data: Dataset
    ids: tuple[str, ...]
    dropped: tuple[str, ...]
    digest: str


def encode(
    model: Any,
    tokenizer: Any,
    examples: Rows,
    *,
    max_length: int | None = None,
    too_long: str = "error",
    name: str = "examples",
) -> Encoded:
    """Tokenise examples as the model's chat template renders them, each followed by its answer and the end token.

    Args:
        model: For its context length.
        tokenizer: Its tokenizer.
        examples: Examples, or rows with their columns, such as `load_examples` returns.
        max_length: Most tokens of prompt, answer and end; None takes the model's context.
        too_long: `error` or `drop`.
        name: How messages call the examples.

    Raises:
        DataError: There are no examples, one lacks an answer, or some are too long.
        ConfigError: `max_length` exceeds the model's context.
    """
    limit = _limit(model, max_length)
    rows = records(examples)
    if not rows:
        raise DataError(f"{name} is empty; training needs at least one example: look at its file, split and filters")
    lacking = [record.id for record in rows if not record.answer.strip()]
    if lacking:
        raise DataError(
            f"{len(lacking)} of {len(rows)} {name} have no answer, e.g. {shown(lacking)}; only answers are trained "
            "on, so give them one or filter them out"
        )
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    prompts = [encode_prompt(tokenizer, record.prompt()) for record in rows]
    answers = tokenizer([record.answer for record in rows], add_special_tokens=False, verbose=False)["input_ids"]
    sizes = [len(prompt) + len(answer) + len(end) for prompt, answer in zip(prompts, answers, strict=True)]
    kept = [i for i, size in enumerate(sizes) if limit is None or size <= limit]
    dropped = tuple(record.id for record, size in zip(rows, sizes) if limit is not None and size > limit)
    if dropped:
        _tell_too_long(name, dropped, len(rows), max(sizes), limit, drop=too_long == "drop" and bool(kept))
    columns = {
        "input_ids": [[*prompts[i], *answers[i], *end] for i in kept],
        "start": [len(prompts[i]) for i in kept],
        "row": list(range(len(kept))),
    }
    digest = hashlib.sha256(repr((columns["input_ids"], columns["start"])).encode()).hexdigest()
    ids = tuple(rows[i].id for i in kept)
    return Encoded(data=Dataset.from_dict(columns), ids=ids, dropped=dropped, digest=digest)


def collate(rows: Sequence[Mapping[str, Any]], *, pad: int) -> dict[str, Tensor]:
    """Pad rows of `Encoded.data` on the right.

    Returns:
        `input_ids`, `attention_mask` and `labels` (-100 but on answers and their end), each `(B, T)`, and `row` `(B,)`.
    """
    width = max(len(row["input_ids"]) for row in rows)
    ids = torch.full((len(rows), width), pad)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for place, row in enumerate(rows):
        size = len(row["input_ids"])
        ids[place, :size] = torch.tensor(row["input_ids"])
        mask[place, :size] = 1
        labels[place, row["start"] : size] = ids[place, row["start"] : size]
    row = torch.tensor([row["row"] for row in rows])
    return {"input_ids": ids, "attention_mask": mask, "labels": labels, "row": row}


def shown(ids: Sequence[str], first: int = 5) -> str:
    """Write a few ids for a message."""
    return ", ".join(map(repr, ids[:first])) + (f" and {len(ids) - first} more" if len(ids) > first else "")


def _limit(model: Any, max_length: int | None) -> int | None:
    context = context_length(model)
    if max_length is not None and context is not None and max_length > context:
        raise ConfigError(f"max_length={max_length} exceeds the model's context of {context} tokens; lower it")
    return max_length or context


def _tell_too_long(name: str, ids: Sequence[str], total: int, longest: int, limit: int | None, *, drop: bool) -> None:
    told = (
        f"{len(ids)} of {total} {name} have more than {limit} tokens with their answer (up to {longest}): {shown(ids)}"
    )
    if not drop:
        raise DataError(
            f"{told}. A cut answer is never trained on: raise max_length if the model's context allows, shorten them, "
            "or pass too_long='drop' to leave them out of data that has shorter ones."
        )
    warnings.warn(f"{told}. They are left out; the run's `dropped` names them all.", WorkbenchWarning, stacklevel=5)
