"""Writing answers: one stoppable stream for a person who watches, many prompts at once for a score."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from workbench.errors import ConfigError
from workbench.generation.decoder import Decoder, ends_of, evaluating
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
    room = room_after(model, len(ids))
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
    rooms = [min(max_new_tokens, room_after(model, len(ids))) for ids in encoded]
    order = sorted(range(len(encoded)), key=lambda i: -len(encoded[i]))
    answers = [""] * len(encoded)
    with evaluating(model):
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            written = _write_rows(
                model, [encoded[i] for i in rows], [rooms[i] for i in rows], ends_of(model, tokenizer)
            )
            for i, ids in zip(rows, written, strict=True):
                answers[i] = written_text(tokenizer, ids)
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


def room_after(model: Any, length: int) -> int:
    """Return how many tokens may follow a prompt of this length; the last of them needs no position of its own.

    Raises:
        ConfigError: The prompt is longer than the model's context.
    """
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
    ends = ends_of(model, tokenizer)
    written: list[int] = []
    with evaluating(model):
        decoder = Decoder(model, [ids])
        while len(written) < max_new_tokens and not (stop is not None and stop.is_set()):
            token = int(decoder.step(choose)[0])
            if token in ends:
                return
            written.append(token)
            yield written_text(tokenizer, written)


def _write_rows(model: Any, prompts: list[list[int]], rooms: list[int], ends: set[int]) -> list[list[int]]:
    written: list[list[int]] = [[] for _ in prompts]
    active = list(range(len(prompts)))
    decoder = Decoder(model, prompts)
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


def _greedy(logits: Tensor) -> Tensor:
    return logits.argmax(-1)


def _sampler(model: Any, temperature: float, seed: int) -> Callable[[Tensor], Tensor]:
    if temperature == 0:
        return _greedy
    generator = torch.Generator(device=model.device).manual_seed(seed)

    def sample(logits: Tensor) -> Tensor:
        return torch.multinomial(torch.softmax(logits / temperature, -1), 1, generator=generator)[:, 0]

    return sample


def written_text(tokenizer: Any, ids: list[int]) -> str:
    """Return the text of some tokens without the replacement marks of a character whose last bytes are missing."""
    text = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text.rstrip("\ufffd")
