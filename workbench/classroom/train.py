"""Train the three classroom models: a base on a mixture, then tunings of it on instructions and on clinical tasks."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from workbench.classroom.tokenizer import END, PAD
from workbench.models import chat_prompt
from workbench.records import Example

PLAIN_TEXT = ("prose", "drill")
"""Skills whose rows are text without a question."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """One tokenised text; the loss counts from position `start` on."""

    ids: list[int]
    start: int = 1


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One training phase.

    Args:
        shares: Group of examples to its share of the drawn examples; the shares sum to 1.
        tokens: Number of tokens read, padding included.
        lr: Peak learning rate of AdamW; linear warm-up over 3 % of the tokens, then cosine decay to a tenth.
        answers_only: Count the loss on answers alone; otherwise on prompts as well.
        batch_tokens: Padded tokens per step.
        weight_decay: AdamW's decoupled decay.
    """

    shares: Mapping[str, float]
    tokens: int
    lr: float
    answers_only: bool
    batch_tokens: int = 2048
    weight_decay: float = 0.1

    def scaled(self, factor: float) -> Phase:
        """Return the same phase over `factor` times the tokens."""
        return replace(self, tokens=int(self.tokens * factor))


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """Shape of a classroom model (Llama layout with tied embeddings)."""

    hidden_size: int = 160
    intermediate_size: int = 480
    num_hidden_layers: int = 4
    num_attention_heads: int = 5
    max_position_embeddings: int = 1024


def new_model(size: ModelSize, tokenizer: PreTrainedTokenizerBase, *, seed: int) -> LlamaForCausalLM:
    """Return a freshly initialised model for the tokenizer's vocabulary."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=size.hidden_size,
        intermediate_size=size.intermediate_size,
        num_hidden_layers=size.num_hidden_layers,
        num_attention_heads=size.num_attention_heads,
        num_key_value_heads=size.num_attention_heads,
        max_position_embeddings=size.max_position_embeddings,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.get_vocab()[END],
        pad_token_id=tokenizer.get_vocab()[PAD],
    )
    model = LlamaForCausalLM(config)
    # On a CPU and rows of about a hundred tokens the fused kernel costs more than the plain one: half as fast again.
    model.set_attn_implementation("eager")
    return model


def encode(example: Example, tokenizer: PreTrainedTokenizerBase, *, answers_only: bool) -> Item:
    """Tokenise an example as the chat template renders it; prose and drills are their text alone."""
    end = [tokenizer.eos_token_id]
    answer = tokenizer(example.answer, add_special_tokens=False).input_ids + end
    if example.skill in PLAIN_TEXT:
        return Item(ids=end + answer)
    prompt = tokenizer(chat_prompt(tokenizer, example.prompt()), add_special_tokens=False).input_ids
    return Item(ids=prompt + answer, start=len(prompt) if answers_only else 1)


def _draw(groups: Mapping[str, Sequence[Item]], shares: Mapping[str, float], rng: random.Random) -> Iterator[Item]:
    """Yield items forever: a group by its share, and within a group every item once before any comes again."""
    queues: dict[str, list[Item]] = {name: [] for name in shares}
    names, weights = list(shares), list(shares.values())
    while True:
        name = rng.choices(names, weights)[0]
        if not queues[name]:
            queues[name] = list(groups[name])
            rng.shuffle(queues[name])
        yield queues[name].pop()


def _batches(items: Iterator[Item], batch_tokens: int, rng: random.Random, window: int = 512) -> Iterator[list[Item]]:
    """Yield batches of about equal padded size; sorting inside a window of items keeps padding small."""
    while True:
        drawn = sorted((next(items) for _ in range(window)), key=lambda item: len(item.ids))
        batches: list[list[Item]] = [[]]
        for item in drawn:
            if batches[-1] and (len(batches[-1]) + 1) * len(item.ids) > batch_tokens:
                batches.append([])
            batches[-1].append(item)
        rng.shuffle(batches)
        yield from batches


def _collate(batch: Sequence[Item], pad: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(len(item.ids) for item in batch)
    ids = torch.full((len(batch), width), pad)
    labels = torch.full((len(batch), width), -100)
    for row, item in enumerate(batch):
        ids[row, : len(item.ids)] = torch.tensor(item.ids)
        labels[row, item.start : len(item.ids)] = torch.tensor(item.ids[item.start :])
    return ids.to(device), labels.to(device)


def _loss(model: LlamaForCausalLM, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the mean cross-entropy over counted tokens; right padding needs no mask in a causal model."""
    hidden = model.model(ids).last_hidden_state[:, :-1]
    counted = labels[:, 1:] != -100
    return F.cross_entropy(model.lm_head(hidden[counted]).float(), labels[:, 1:][counted])


def fit(
    model: LlamaForCausalLM,
    groups: Mapping[str, Sequence[Item]],
    phase: Phase,
    *,
    seed: int,
    report: Callable[[str], None] = print,
) -> LlamaForCausalLM:
    """Train a model in place through one phase, in bfloat16 autocast.

    Args:
        model: The model; it is trained where its parameters are.
        groups: Group name to its tokenised items; every group of `phase.shares` must be there.
        phase: What to draw, how much, how fast.
        seed: Order of examples.
        report: Called with a line of progress about every 10 % of the phase.

    Returns:
        The same model in evaluation mode.
    """
    device = model.device
    rng = random.Random(f"order/{seed}")
    decayed = [p for p in model.parameters() if p.ndim == 2]
    plain = [p for p in model.parameters() if p.ndim != 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": phase.weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=phase.lr,
        betas=(0.9, 0.95),
        fused=True,
    )
    model.train()
    seen, told, started, running = 0, 0, time.monotonic(), 0.0
    pad = int(model.config.pad_token_id or 0)
    for batch in _batches(_draw(groups, phase.shares, rng), phase.batch_tokens, rng):
        progress = seen / phase.tokens
        if progress >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = phase.lr * min(progress / 0.03 + 0.01, 0.55 + 0.45 * math.cos(math.pi * progress))
        ids, labels = _collate(batch, pad, device)
        with torch.autocast(device.type, torch.bfloat16):
            loss = _loss(model, ids, labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seen += ids.numel()
        running = loss.item() if running == 0 else 0.95 * running + 0.05 * loss.item()
        if seen / phase.tokens >= (told + 1) / 10:
            told += 1
            rate = seen / (time.monotonic() - started)
            report(f"{seen / 1e6:5.1f} M tokens  loss {running:.3f}  {rate:,.0f} tokens/s")
    return model.eval()
