"""compose_skills: the weights of trained skills for a new task, from a few examples of it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from workbench.adapters.lorahub import Composition, SearchStep, search_weights
from workbench.adapters.skill_mix import SkillMix
from workbench.adapters.skill_router.model import open_bank
from workbench.errors import ConfigError, DataError
from workbench.generation import evaluating
from workbench.training.encode import collate, encode


def compose_skills(
    model: Any,
    tokenizer: Any,
    examples: Iterable[Any],
    skills: Mapping[str, str | Path],
    *,
    mix: str = "update",
    optimizer: str = "ngopt",
    shots: int | None = None,
    bound: float = 1.5,
    l1: float = 0.05,
    budget: int = 40,
    seed: int = 0,
    faithful_scaling: bool = False,
    batch_size: int = 32,
    max_length: int | None = None,
    strict: bool = True,
    on_step: Callable[[SearchStep], Any] | None = None,
    stop: Event | None = None,
) -> Composition:
    """Find one weight for each skill by which a base answers the examples of a new task best, without gradients.

    Minimises the cross-entropy of the answers (prompts are masked) + l1 * mean|w|. The model is not changed; while the
    search runs, the skills' mix stands beside its layers, for whoever else uses the same model, too. LoraHub as it was
    published is `mix="factor", optimizer="ngopt", faithful_scaling=True`.

    Args:
        model: The plain base that the skills were trained on; an encoder-decoder such as T5 reads the prompt with its
            encoder.
        tokenizer: Its tokenizer.
        examples: Examples of the task, or rows with their columns, as `load_examples` returns.
        skills: Name to the folder of a LoRA, rsLoRA or AdaLoRA adapter.
        mix: `update`, the weighted sum of the skills' updates, or `factor`, see `SkillMix`.
        optimizer: `ngopt` or `cma`, see `search_weights`.
        shots: Draw so many of the examples, by the seed; None takes all.
        bound: Largest |w|.
        l1: Weight of the mean |w|.
        budget: Most candidates, w = 0 included.
        seed: Of the draw and of the optimiser.
        faithful_scaling: Divide the sum of the batches' mean losses by the number of examples, as the reference does:
            with 5 examples in one batch the loss is a fifth of what it should be, and the penalty counts five times as
            much. Otherwise the loss is the mean over all answer tokens.
        batch_size: Most examples computed together.
        max_length: Most tokens of prompt, answer and end; None is the model's context.
        strict: Refuse skills of another base by name, or with unequal layers.
        on_step: Called with each candidate.
        stop: Set it from any thread to end with the best so far.

    Returns:
        The composition: `.weights`, `.trace`, `.found_better`, `.seconds`, `.tokens`, `.about`.

    Raises:
        ConfigError: An argument is out of range, a skill does not fit, or the model carries an adapter.
        DataError: There are fewer examples than shots, none, one without an answer, or one that is too long.
        ModelError: A skill's folder cannot be read, or the base gives no numbers.
        MergeError: A skill's tensors do not fit the base.

    Source: LoraHub (arXiv 2307.13269), section 3; SA-MDKIF (arXiv 2402.00474), skill adaptation with few shots.
    """
    if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise ConfigError(
            "the model carries an adapter already, perhaps of an earlier call, as PEFT wraps layers in place; skills "
            "are composed on their plain base: load it anew, or pass what unload() returns"
        )
    if batch_size < 1:
        raise ConfigError(f"batch_size={batch_size}: at least 1")
    encoded = encode(model, tokenizer, _draw(list(examples), shots, seed), max_length=max_length)
    rows: list[Any] = list(encoded.data)
    if not faithful_scaling:  # whose batches weigh alike, whatever is in them
        rows.sort(key=lambda row: len(row["input_ids"]))
    batches = [_batch(rows[i : i + batch_size], model) for i in range(0, len(rows), batch_size)]
    mixer = SkillMix(open_bank({name: str(folder) for name, folder in skills.items()}, model, strict), mix)
    with evaluating(model), mixer.on(model) as put:

        def loss(weights: dict[str, float]) -> float:
            put(weights)
            sums = [_summed(model, *batch) for batch in batches]
            if faithful_scaling:
                return sum(total / count for total, count in sums) / len(rows)
            return sum(total for total, _ in sums) / sum(count for _, count in sums)

        found = search_weights(
            loss, list(skills), optimizer=optimizer, bound=bound, l1=l1, budget=budget, seed=seed, on_step=on_step,
            stop=stop,
        )  # fmt: skip
    about = {"mix": mix, "faithful_scaling": faithful_scaling, "examples": list(encoded.ids)}
    tokens = sum(len(row["input_ids"]) for row in rows) * len(found.trace)
    return replace(found, tokens=tokens, about=found.about | about)


def _draw(examples: list[Any], shots: int | None, seed: int) -> Sequence[Any]:
    if shots is None:
        return examples
    if not 1 <= shots <= len(examples):
        raise DataError(
            f"shots={shots} of {len(examples)} examples; there must be at least as many examples as shots, and 1 shot. "
            "Give more examples, or fewer shots."
        )
    return random.Random(seed).sample(examples, shots)


def _batch(rows: list[Any], model: Any) -> tuple[dict[str, Tensor], Tensor]:
    """Return the model's inputs, and what the next tokens should be at those places where an answer is read."""
    if model.config.is_encoder_decoder:
        return _pair(rows, model)
    batch = {name: tensor.to(model.device) for name, tensor in collate(rows, pad=0).items()}
    following = batch["labels"][:, 1:]
    places = (following != -100).any(0).nonzero()[:, 0]
    read = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "logits_to_keep": places}
    return read, following[:, places]


def _pair(rows: list[Any], model: Any) -> tuple[dict[str, Tensor], Tensor]:
    """Return what an encoder reads, the prompt, with what its decoder reads before each token of the answer."""
    prompts = [torch.tensor(row["input_ids"][: row["start"]]) for row in rows]
    answers = [torch.tensor(row["input_ids"][row["start"] :]) for row in rows]
    ids, labels = pad_sequence(prompts, True), pad_sequence(answers, True, -100)
    mask = pad_sequence([torch.ones_like(prompt) for prompt in prompts], True)
    decoded = model.prepare_decoder_input_ids_from_labels(labels)
    read = {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": decoded}
    return {name: tensor.to(model.device) for name, tensor in read.items()}, labels.to(model.device)


@torch.no_grad()
def _summed(model: Any, read: dict[str, Tensor], wanted: Tensor) -> tuple[float, int]:
    """Return the summed cross-entropy of a batch's answer tokens, and their number."""
    logits, counted = model(**read, use_cache=False).logits, wanted != -100
    return float(cross_entropy(logits[counted].float(), wanted[counted], reduction="sum")), int(counted.sum())
