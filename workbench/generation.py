"""Writing answers: one stoppable stream for a person who watches, many prompts at once for a score."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from workbench.errors import ConfigError, ModelError
from workbench.models import chat_prompt

Prompt = str | list[dict[str, str]]
"""What a user says, or a chat as transformers writes it: `[{"role": "user", "content": "..."}]`."""


def stream(
    model: Any,
    tokenizer: Any,
    prompt: Prompt,
    *,
    max_new_tokens: int = 48,
    temperature: float = 0.0,
    seed: int = 0,
    stop: threading.Event | None = None,
) -> Iterator[str]:
    """Yield the answer so far after each new token, until the model ends it or someone stops it.

    The chat template is applied here, so `prompt` is plain text. A character whose bytes are not all there yet is held
    back. At the end of the model's context the answer ends, also before `max_new_tokens`.

    Args:
        model: A causal language model of transformers.
        tokenizer: Its tokenizer.
        prompt: What the user says, or a list of chat messages.
        max_new_tokens: Most tokens to write, at least 1.
        temperature: 0 takes the likeliest token each time; above 0 samples from softmax(logits / temperature).
        seed: Of this stream's own random generator; the global generator is not touched.
        stop: Set it from any thread: no further token is computed.

    Returns:
        An iterator over growing texts; each begins with the one before it.

    Raises:
        ConfigError: An argument is out of range, or the prompt has no token or more than the model's context.
        ModelError: The model's scores are not numbers.
    """
    if max_new_tokens < 1 or temperature < 0:
        raise ConfigError(
            f"max_new_tokens={max_new_tokens}, temperature={temperature}: they must be at least 1 and at least 0; "
            "use temperature=0 for the likeliest answer"
        )
    ids = encode_prompt(tokenizer, prompt)
    room = _room(model, len(ids))
    return _stream(model, tokenizer, ids, min(max_new_tokens, room), _sampler(model, temperature, seed), stop)


def generate_batch(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int = 48,
    batch_size: int = 32,
    progress: Callable[[int], Any] | None = None,
) -> list[str]:
    """Answer many prompts greedily, and return the answers in the order of the prompts.

    Prompts of similar length share a batch, padded on the left; a row that has ended leaves its batch. Each answer is
    the one that `stream` gives at temperature 0, up to ties that rounding in another batch shape may break differently.

    Args:
        model: A causal language model of transformers.
        tokenizer: Its tokenizer.
        prompts: Texts or chats; the chat template is applied here.
        max_new_tokens: Most tokens for each answer, at least 1.
        batch_size: Most prompts computed together, at least 1.
        progress: Called after each batch with the number of prompts just finished.

    Returns:
        One text for each prompt.

    Raises:
        ConfigError: An argument is out of range, or a prompt has no token or more than the model's context.
        ModelError: The model's scores are not numbers.
    """
    if max_new_tokens < 1 or batch_size < 1:
        raise ConfigError(f"max_new_tokens={max_new_tokens}, batch_size={batch_size}: both must be at least 1")
    encoded = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    rooms = [min(max_new_tokens, _room(model, len(ids))) for ids in encoded]
    order = sorted(range(len(encoded)), key=lambda i: -len(encoded[i]))
    answers = [""] * len(encoded)
    with evaluating(model):
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            written = _write_rows(model, [encoded[i] for i in rows], [rooms[i] for i in rows], _ends(model, tokenizer))
            for i, ids in zip(rows, written, strict=True):
                answers[i] = _text(tokenizer, ids)
            if progress is not None:
                progress(len(rows))
    return answers


def encode_prompt(tokenizer: Any, prompt: Prompt) -> list[int]:
    """Return the token ids of a prompt in the model's own chat template, ready for the answer to follow.

    Raises:
        ConfigError: Nothing is left to answer: the prompt encodes to no token.
    """
    # A chat template writes its own special tokens; adding them once more would double the first one.
    text = chat_prompt(tokenizer, prompt)
    ids = tokenizer(text, add_special_tokens=not tokenizer.chat_template, verbose=False)["input_ids"]
    if not ids:
        raise ConfigError(f"prompt {prompt!r} encodes to no token; a prompt must hold some text")
    return list(ids)


def context_length(model: Any) -> int | None:
    """Return the number of positions the model was made for, or None where its configuration names none."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def _room(model: Any, length: int) -> int:
    """Return how many tokens may follow a prompt; the last of them needs no position of its own."""
    limit = context_length(model)
    if limit is not None and length > limit:
        raise ConfigError(
            f"the prompt has {length} tokens and the model's context holds {limit}; shorten the prompt "
            "or take a model with a longer context"
        )
    return 2**31 if limit is None else limit - length + 1


def _stream(
    model: Any,
    tokenizer: Any,
    ids: list[int],
    max_new_tokens: int,
    choose: Callable[[Tensor], Tensor],
    stop: threading.Event | None,
) -> Iterator[str]:
    ends = _ends(model, tokenizer)
    written: list[int] = []
    with evaluating(model):
        decoder = _Decoder(model, [ids])
        while len(written) < max_new_tokens and not (stop is not None and stop.is_set()):
            token = int(decoder.step(choose)[0])
            if token in ends:
                return
            written.append(token)
            yield _text(tokenizer, written)


def _write_rows(model: Any, prompts: list[list[int]], rooms: list[int], ends: set[int]) -> list[list[int]]:
    written: list[list[int]] = [[] for _ in prompts]
    active = list(range(len(prompts)))
    decoder = _Decoder(model, prompts)
    while active:
        tokens = decoder.step(_greedy).tolist()
        going = []
        for place, (row, token) in enumerate(zip(active, tokens, strict=True)):
            if token in ends:
                continue
            written[row].append(token)
            if len(written[row]) < rooms[row]:
                going.append(place)
        if len(going) < len(active):
            decoder.keep(going)
            active = [active[place] for place in going]
    return written


class _Decoder:
    """The state of one batch of answers: cache, mask and next input; `step` writes one token for each row."""

    def __init__(self, model: Any, prompts: list[list[int]]) -> None:
        self.model = model
        self.cache = DynamicCache(config=model.config)
        self.ids, self.mask = pad_left(prompts, device=model.device)
        self.positions = (self.mask.cumsum(-1) - 1).clamp(min=0)

    @torch.no_grad()
    def step(self, choose: Callable[[Tensor], Tensor]) -> Tensor:
        logits = self.model(
            input_ids=self.ids,
            attention_mask=self.mask,
            position_ids=self.positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        check_logits(logits)
        tokens = choose(logits.float())
        self.ids = tokens[:, None]
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(tokens), 1)], dim=1)
        self.positions = self.positions[:, -1:] + 1
        return tokens

    def keep(self, rows: list[int]) -> None:
        if rows:
            index = torch.tensor(rows, device=self.ids.device)
            # A model can hold routers of ours only where they were imported; PEFT is slow to import for all others.
            if adapters := sys.modules.get("workbench.adapters"):
                adapters.keep_sequences(self.model, index)
            self.cache.batch_select_indices(index)
            self.ids, self.mask, self.positions = self.ids[index], self.mask[index], self.positions[index]


def pad_left(rows: Sequence[Sequence[int]], *, device: Any) -> tuple[Tensor, Tensor]:
    """Return token ids and attention mask, both `(B, T)` int64, with each row at the right end; padding is id 0."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask


def check_logits(logits: Tensor) -> None:
    """Refuse scores from which no token can be chosen.

    Raises:
        ModelError: A score is NaN or +infinity.
    """
    if bool(torch.isnan(logits).any() | torch.isposinf(logits).any()):
        raise ModelError(
            f"{int((~torch.isfinite(logits)).sum())} of the model's {logits.numel()} scores are not finite; its "
            "weights are broken or overflow in this dtype: load it again, in float32 if it was in float16"
        )


def _greedy(logits: Tensor) -> Tensor:
    return logits.argmax(-1)


def _sampler(model: Any, temperature: float, seed: int) -> Callable[[Tensor], Tensor]:
    if temperature == 0:
        return _greedy
    generator = torch.Generator(device=model.device).manual_seed(seed)

    def sample(logits: Tensor) -> Tensor:
        return torch.multinomial(torch.softmax(logits / temperature, -1), 1, generator=generator)[:, 0]

    return sample


def _ends(model: Any, tokenizer: Any) -> set[int]:
    """Chat models end a turn with another token than a text, so the tokenizer's and the model's ends both count."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    ends = set(configured if isinstance(configured, list | tuple) else [configured])
    return {int(end) for end in ends | {tokenizer.eos_token_id} if end is not None}


def _text(tokenizer: Any, ids: list[int]) -> str:
    """Return the text of some tokens without the replacement marks of a character whose last bytes are missing."""
    text = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text.rstrip("\ufffd")


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Switch dropout off, and back on afterwards if the model was training."""
    was_training = model.training
    if was_training:
        model.eval()
    try:
        yield
    finally:
        if was_training:
            model.train()
