"""How hard an example is: the model's loss, length, rare terms, a label, or any function; and stages cut by it."""

from __future__ import annotations

import hashlib
import itertools
import math
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from workbench.curriculum.losses import answer_losses
from workbench.curriculum.stage import Rows, Stage, records
from workbench.data import load_examples
from workbench.errors import ConfigError, DataError, WorkbenchWarning
from workbench.models import chat_prompt
from workbench.records import EXAMPLE_COLUMNS, Example

By = str | Callable[[Example], float]
MEASURES = ("loss", "length", "rarity")
_GENERAL = ("classroom/general_knowledge", "classroom/instruction")
_WORD = re.compile(r"[^\W\d_]{4,}")
_KNOWN: dict[str, float] = {}


def difficulty(
    examples: Rows,
    by: By = "loss",
    *,
    model: Any = None,
    tokenizer: Any = None,
    corpus: Iterable[str] | None = None,
    order: Sequence[str] | None = None,
    batch_tokens: int = 8192,
    progress: bool = True,
) -> list[float]:
    """Return how hard each example is; larger is harder.

    A loss is kept for the session by the content of model and example, so that asking again costs nothing.

    Args:
        examples: Examples, or rows with their columns.
        by: `loss`, the model's loss in nats per answer token; `length`, words of the answer; `rarity`, see `rarity`; a
            label column such as `stage` or `skill`; or a function of an example.
        model: For `loss`, a causal language model of transformers.
        tokenizer: For `loss`, its tokenizer.
        corpus: For `rarity`, texts of general language; None takes the classroom's general ones.
        order: For a label column, its labels from easy to hard; None takes the order in which they first appear.
        batch_tokens: For `loss`, most padded tokens computed together.
        progress: Show a bar for `loss`.

    Returns:
        One number for each example; NaN where `loss` meets one that is longer than the model's context.

    Raises:
        ConfigError: The measure is unknown, lacks its model, or a label is not in `order`.
    """
    rows = records(examples)
    if callable(by):
        return [float(by(example)) for example in rows]
    if by == "loss":
        return _losses(rows, model, tokenizer, batch_tokens, progress)
    if by == "length":
        return [float(len(example.answer.split())) for example in rows]
    if by == "rarity":
        return rarity(rows, corpus)
    labels = _labels(rows, by, order)
    return [float(labels.index(str(getattr(example, by)))) for example in rows]


def rarity(examples: Sequence[Example], corpus: Iterable[str] | None = None) -> list[float]:
    """Return how rare the domain's terms in each example are in general language, in nats.

    Mean over terms of -log((n(w) + 1) / (N + V + 1)) with counts n of a general corpus of N words, V different ones.
    Terms are words of at least four letters that are more frequent in the examples than there; 0 where there is none.

    Args:
        examples: The examples; context, query and answer count.
        corpus: Texts of general language; None takes the classroom's general questions and instructions.
    """
    if corpus is None:
        corpus = [f"{row['query']} {row['answer']}" for name in _GENERAL for row in load_examples(name).to_list()]
    general = Counter(word for text in corpus for word in _WORD.findall(text.lower()))
    words = [_WORD.findall(f"{e.context} {e.query} {e.answer}".lower()) for e in examples]
    here = Counter(itertools.chain.from_iterable(words))
    total, own = sum(general.values()) + len(general) + 1, max(1, sum(here.values()))
    surprise = {
        word: -math.log((general[word] + 1) / total) for word, n in here.items() if n / own > general[word] / total
    }
    found = [[surprise[word] for word in line if word in surprise] for line in words]
    return [sum(values) / len(values) if values else 0.0 for values in found]


def stage_by_difficulty(
    examples: Rows,
    by: By = "loss",
    *,
    num_stages: int = 3,
    borders: Sequence[float] | None = None,
    names: Sequence[str] | None = None,
    order: Sequence[str] | None = None,
    too_long: str = "error",
    settings: Mapping[str, Any] | None = None,
    **measuring: Any,
) -> list[Stage]:
    """Cut examples into stages, the easiest first, and sort each stage the same way.

    Args:
        examples: Examples, or rows with their columns, as `load_examples` returns.
        by: As in `difficulty`; a label column makes a stage of each label.
        num_stages: Number of stages with about equally many examples each, at least 1.
        borders: Instead, rising values of the measure: the k-th stage ends below the k-th border.
        names: Their names; None says `stage 1`, `stage 2`, or the labels.
        order: Labels from easy to hard.
        too_long: For `loss`, what to do with examples longer than the model's context: `error`, or `drop`, which names
            them in a warning.
        settings: Fields of `Stage` for every stage, e.g. `{"epochs": 2}`.
        **measuring: Other arguments of `difficulty`: model, tokenizer, corpus, batch_tokens, progress.

    Raises:
        ConfigError: An argument is out of range, or a stage would be empty.
        DataError: Examples are too long.
    """
    rows = records(examples)
    values = difficulty(rows, by, order=order, **measuring)
    rows, values = _fitting(rows, values, too_long)
    if isinstance(by, str) and by not in MEASURES:
        names = names or _labels(rows, by, order)
        borders = [k + 0.5 for k in range(len(names) - 1)]
    ranked = sorted(range(len(rows)), key=lambda i: values[i])
    if borders is None:
        if not 1 <= num_stages <= len(rows):
            raise ConfigError(f"num_stages={num_stages} for {len(rows)} examples; it must be from 1 to that number")
        parts = [part.tolist() for part in np.array_split(ranked, num_stages)]
    else:
        edges = [-math.inf, *borders, math.inf]
        parts = [[i for i in ranked if low <= values[i] < high] for low, high in itertools.pairwise(edges)]
    if borders is not None and not (sorted(borders) == [*borders] and all(parts)):
        raise ConfigError(
            f"borders={[*borders]} give stages of {[len(part) for part in parts]} examples; borders must rise and "
            f"leave no stage empty: the measure runs from {min(values):.3g} to {max(values):.3g}"
        )
    names = names or [f"stage {k + 1}" for k in range(len(parts))]
    if len(names) != len(parts):
        raise ConfigError(f"names={[*names]} for {len(parts)} stages; give one name for each")
    return [
        Stage(name=name, data=[rows[i] for i in part], **(settings or {}))
        for name, part in zip(names, parts, strict=True)
    ]


def agreement(measures: Mapping[str, Sequence[float]]) -> list[dict[str, Any]]:
    """Return Spearman's rank correlation of every two measures of the same examples: `first`, `second`, `rho`, `n`.

    Pairs with a NaN are left out; rho is NaN where a measure does not vary.
    """
    rows = []
    for (first, a), (second, b) in itertools.combinations(measures.items(), 2):
        pairs = np.array([(x, y) for x, y in zip(a, b, strict=True) if not math.isnan(x + y)], dtype=float).reshape(
            -1, 2
        )
        ranks = [_ranks(column) for column in pairs.T]
        varied = len(pairs) > 1 and all(np.ptp(rank) > 0 for rank in ranks)
        rho = float(np.corrcoef(ranks)[0, 1]) if varied else math.nan
        rows.append({"first": first, "second": second, "rho": rho, "n": len(pairs)})
    return rows


def _ranks(values: np.ndarray) -> np.ndarray:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum()
    return (last - (counts - 1) / 2)[place]


def _labels(rows: Sequence[Example], by: str, order: Sequence[str] | None) -> list[str]:
    if by not in EXAMPLE_COLUMNS:
        raise ConfigError(
            f"by={by!r} is no measure; use {', '.join(MEASURES)}, a column such as 'stage', or a function"
        )
    found = list(dict.fromkeys(str(getattr(row, by)) for row in rows))
    strange = sorted(set(found) - set(found if order is None else order))
    if strange:
        raise ConfigError(f"{by} has the label {strange[0]!r}, and order={list(order or ())}; name every label in it")
    return found if order is None else [label for label in order if label in found]


def _fitting(rows: list[Example], values: list[float], too_long: str) -> tuple[list[Example], list[float]]:
    if too_long not in ("error", "drop"):
        raise ConfigError(f"too_long={too_long!r}; use 'error' or 'drop'")
    over = [example.id for example, value in zip(rows, values, strict=True) if math.isnan(value)]
    if not over:
        return rows, values
    told = f"{len(over)} of {len(rows)} examples are longer than the model's context: {', '.join(over[:5])}"
    told += f" and {len(over) - 5} more" if len(over) > 5 else ""
    if too_long == "error" or len(over) == len(rows):
        raise DataError(f"{told}. Shorten them, take by='length', or give too_long='drop' to leave them out.")
    warnings.warn(f"{told}. They are left out.", WorkbenchWarning, stacklevel=3)
    kept = [i for i, value in enumerate(values) if not math.isnan(value)]
    return [rows[i] for i in kept], [values[i] for i in kept]


def _losses(rows: list[Example], model: Any, tokenizer: Any, batch_tokens: int, progress: bool) -> list[float]:
    if model is None or tokenizer is None:
        raise ConfigError("by='loss' needs model= and tokenizer=; by='length' or by='rarity' needs neither")
    mark = _fingerprint(model)
    keys = [_hash(f"{mark}\0{chat_prompt(tokenizer, e.prompt())}\0{e.answer}".encode()) for e in rows]
    todo = [i for i in dict(zip(keys, range(len(rows)), strict=True)).values() if keys[i] not in _KNOWN]
    encoded = {i: _encode(tokenizer, rows[i]) for i in todo}
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None) or math.inf
    _KNOWN.update({keys[i]: math.nan for i in todo if sum(map(len, encoded[i])) > limit})
    todo = sorted((i for i in todo if keys[i] not in _KNOWN), key=lambda i: sum(map(len, encoded[i])))
    training = model.training
    model.eval()
    with torch.inference_mode(), tqdm(total=len(todo), unit="ex", desc="loss", disable=not progress) as bar:
        for batch in _batches(todo, encoded, batch_tokens):
            found = _batch_losses(model, [encoded[i] for i in batch])
            _KNOWN.update(zip((keys[i] for i in batch), found, strict=True))
            bar.update(len(batch))
    model.train(training)
    return [_KNOWN[key] for key in keys]


def _encode(tokenizer: Any, example: Example) -> tuple[list[int], list[int]]:
    """Return the tokens of prompt and answer, the end of the text among the answer's, as training reads them."""
    text, end = chat_prompt(tokenizer, example.prompt()), tokenizer.eos_token_id
    prompt = tokenizer(text, add_special_tokens=not tokenizer.chat_template, verbose=False)["input_ids"]
    answer = tokenizer(example.answer, add_special_tokens=False, verbose=False)["input_ids"]
    return prompt, [*answer, *([] if end is None else [end])]


def _batches(order: list[int], encoded: Mapping[int, Any], batch_tokens: int) -> Iterable[list[int]]:
    batch: list[int] = []
    for i in order:
        if batch and (len(batch) + 1) * sum(map(len, encoded[i])) > batch_tokens:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def _batch_losses(model: Any, batch: list[tuple[list[int], list[int]]]) -> list[float]:
    """Read rows that end together, so that scores are computed for the width of the longest answer alone."""
    width, kept = max(len(p) + len(a) for p, a in batch), max(len(a) for _, a in batch) + 1
    ids, mask = torch.zeros(len(batch), width, dtype=torch.long), torch.zeros(len(batch), width, dtype=torch.long)
    labels = torch.full((len(batch), width), -100)
    for row, (prompt, answer) in enumerate(batch):
        size = len(prompt) + len(answer)
        ids[row, width - size :], mask[row, width - size :] = torch.tensor([*prompt, *answer]), 1
        labels[row, width - len(answer) :] = torch.tensor(answer)
    ids, mask, labels = (tensor.to(model.device) for tensor in (ids, mask, labels))
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    logits = model(
        input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False, logits_to_keep=kept
    ).logits
    return answer_losses(logits, labels[:, -kept:]).tolist()


def _fingerprint(model: torch.nn.Module) -> str:
    """Hash names, shapes and 64 numbers of every weight: enough to tell a model from itself after training."""
    parts = [
        (name, tuple(tensor.shape), tensor.detach().flatten()[:: max(1, tensor.numel() // 64)][:64].float().tolist())
        for name, tensor in model.named_parameters()
    ]
    return _hash(repr(parts).encode())


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:24]
