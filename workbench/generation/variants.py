"""Variants: whatever can answer, by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from workbench.errors import ConfigError
from workbench.generation.answers import encode_prompt, room_after
from workbench.generation.decoder import ends_of
from workbench.generation.lanes import Engine, Row
from workbench.generation.requests import Answer
from workbench.models import load_model


@dataclass(frozen=True, kw_only=True, eq=False)
class Variant:
    """Something that answers, and the engine on which it does so; several variants can share one.

    Args:
        name: What people see.
        kind: `"model"`.
        engine: Where its rows are computed.
        tokenizer: The one of all variants.
        choice: The engine's state that the variant needs where a request asks for no other.
    """

    name: str
    kind: str
    engine: Engine
    tokenizer: Any
    choice: Any = None

    def row(self, answer: Answer) -> Row:
        """Return the row of a request.

        Raises:
            ConfigError: The prompt has no token or more than the model's context.
        """
        request, model = answer.request, self.engine.model
        prompt = encode_prompt(self.tokenizer, request.messages)
        generator = torch.Generator(device=model.device).manual_seed(request.seed) if request.temperature else None
        room = min(request.max_new_tokens, room_after(model, len(prompt)))
        ends = ends_of(model, self.tokenizer)
        return Row(answer=answer, prompt=prompt, room=room, ends=ends, choice=self.choice, generator=generator)


def make_variants(variants: Mapping[str, Any], tokenizer: Any) -> dict[str, Variant]:
    """Return what a scheduler needs of each variant.

    Args:
        variants: Name to a transformers model, or to what `load_model` takes.
        tokenizer: The common tokenizer.

    Raises:
        ConfigError: There is no variant, or one is of another kind.
        ModelError: One cannot be loaded.
    """
    if not variants:
        raise ConfigError("variants={}: there is nothing to compare; pass name: model, at least one")
    engines: dict[int, Engine] = {}
    made = {}
    for name, given in variants.items():
        model = load_model(given)[0] if isinstance(given, str) else given
        engine = engines.setdefault(id(model), Engine(model))
        made[name] = Variant(name=name, kind="model", engine=engine, tokenizer=tokenizer)
    return made
