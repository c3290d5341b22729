"""Variants: whatever can answer, by name."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from workbench.errors import ConfigError
from workbench.generation.answers import encode_prompt, room_after
from workbench.generation.decoder import ends_of
from workbench.generation.endpoint import Endpoint, EndpointEngine
from workbench.generation.engines import AdapterEngine, LiveEngine, SpectrumEngine
from workbench.generation.lanes import Engine, Row
from workbench.generation.requests import Answer
from workbench.merging.live import LiveMerge
from workbench.merging.spectrum import RatioSpectrum
from workbench.models import load_model, model_folder
from workbench.paths import adapter_folder, read_json_object


@dataclass(frozen=True, kw_only=True, eq=False)
class Variant:
    """Something that answers, and the engine on which it does so; several variants can share one.

    Args:
        name: What people see.
        kind: `"model"`, `"adapter"`, `"live"`, `"spectrum"` or `"endpoint"`.
        engine: Where its rows are computed.
        tokenizer: The one of all variants.
        choice: What a request gets that asks for nothing else: adapters, or a recipe.
    """

    name: str
    kind: str
    engine: Engine | EndpointEngine
    tokenizer: Any
    choice: Any = None

    def row(self, answer: Answer) -> Row:
        """Return the row of a request.

        Raises:
            ConfigError: The prompt has no token or more than the model's context, or the request has a recipe or a
                ratio for a variant that is no merge.
            MergeError: The recipe has no ratio.
        """
        request, choice = answer.request, self.choice
        if request.recipe is not None or request.ratio is not None:
            if self.kind not in ("live", "spectrum"):
                raise ConfigError(f"variant {self.name!r} is no merge, so that it takes neither a recipe nor a ratio")
            choice = request.recipe or choice.with_ratio(request.ratio)
        if isinstance(self.engine, EndpointEngine):
            return Row(answer=answer, prompt=[], room=0, ends=set(), choice=None, generator=None)
        model = self.engine.model
        prompt = encode_prompt(self.tokenizer, request.messages)
        size = model.get_input_embeddings().weight.shape[0]
        if max(prompt) >= size:
            # On a GPU such a token would break the whole process.
            raise ConfigError(
                f"the tokenizer gave token {max(prompt)} and variant {self.name!r} has {size}; all variants of a "
                "comparison share one tokenizer, which must be theirs"
            )
        generator = torch.Generator(device=model.device).manual_seed(request.seed) if request.temperature else None
        room = min(request.max_new_tokens, room_after(model, len(prompt)))
        ends = ends_of(model, self.tokenizer)
        return Row(answer=answer, prompt=prompt, room=room, ends=ends, choice=choice, generator=generator)


def make_variants(variants: Mapping[str, Any], tokenizer: Any) -> dict[str, Variant]:
    """Return what a scheduler needs of each variant.

    Adapters over one base share its weights and its batch: those of one PEFT model, folders over the same base, and
    the base itself. An adapter that is more than low-rank updates of linear layers has its base for itself where it
    comes from a folder, and takes turns with its neighbours where it is part of a PEFT model.

    Args:
        variants: Name to one of: a transformers model; a PEFT model, with the adapters that are active now, or
            `(PEFT model, adapter's name)`; a `LiveMerge`; a `RatioSpectrum`, which answers with its middle recipe
            where a request has none; what `load_model` takes; the folder of an adapter, over the base that it names,
            or `(base, folder)`; an `Endpoint`.
        tokenizer: The common tokenizer.

    Raises:
        ConfigError: There is no variant, or one is of another kind.
        ModelError: One cannot be loaded.
        MergeError: An adapter does not fit its base.
    """
    if not variants:
        raise ConfigError("variants={}: there is nothing to compare; pass name: model, at least one")
    maker = _Maker(tokenizer)
    made = {name: maker.make(name, given) for name, given in variants.items()}
    return {
        name: replace(one, engine=maker.engines.get(id(one.engine.model), one.engine)) for name, one in made.items()
    }


class _Maker:
    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.loaded: dict[str, Any] = {}
        self.engines: dict[int, Engine] = {}

    def make(self, name: str, given: Any) -> Variant:
        if isinstance(given, LiveMerge):
            return self._variant(name, "live", LiveEngine(given), given.recipe)
        if isinstance(given, RatioSpectrum):
            return self._variant(name, "spectrum", SpectrumEngine(given), given.recipes[len(given.recipes) // 2])
        if isinstance(given, Endpoint):
            return self._variant(name, "endpoint", EndpointEngine(given))
        base, adapter = given if isinstance(given, tuple) and len(given) == 2 else (given, None)
        if isinstance(base, str | Path):
            folder = adapter_folder(base)
            if (folder / "adapter_config.json").is_file():
                config = read_json_object(folder / "adapter_config.json")
                base, adapter = str(config.get("base_model_name_or_path")), folder
            base = self._load(base)
        if not callable(base) or not hasattr(base, "config"):
            raise ConfigError(
                f"variant {name!r} is a {type(given).__name__}; pass a transformers or PEFT model, (PEFT model, "
                "adapter), a LiveMerge, a RatioSpectrum, an Endpoint, a model's name, or an adapter's folder"
            )
        if hasattr(base, "peft_config") and hasattr(base, "get_base_model"):
            return self._adapters(name, base, adapter)
        if adapter is not None:
            return self._folder(name, base, adapter_folder(adapter))
        return self._variant(name, "model", self.engines.setdefault(id(base), Engine(base)), ())

    def _adapters(self, name: str, model: Any, adapter: Any) -> Variant:
        unfit = [
            one.peft_type for one in model.peft_config.values() if one.is_prompt_learning or "XLORA" in one.peft_type
        ]
        if unfit:
            raise ConfigError(
                f"variant {name!r} is a {unfit[0]} model, which does not decode in batches that rows join and leave; "
                "take an adapter that changes layers, such as LoRA"
            )
        if adapter is None:
            active = model.active_adapters
            choice = tuple(active) if isinstance(active, list) else (active,)
        elif adapter in model.peft_config:
            choice = (adapter,)
        else:
            raise ConfigError(f"variant {name!r}: no adapter {adapter!r}; the model has {', '.join(model.peft_config)}")
        return self._variant(name, "adapter", self._mixed(model.get_base_model()), choice)

    def _folder(self, name: str, base: Any, folder: Path) -> Variant:
        engine = self._mixed(base)
        if not engine.adapters.mixing:
            raise ConfigError(
                f"variant {name!r}: its base has adapters within that cannot share a batch; pass the folder with a "
                "base of its own"
            )
        if read_json_object(folder / "adapter_config.json").get("peft_type") in ("LORA", "ADALORA"):
            with suppress(ConfigError):
                engine.adapters.add_folder(name, folder)
                return self._variant(name, "adapter", engine, (name,))
        from workbench.adapters.mixed import adapted_copy

        return self._variant(name, "adapter", Engine(adapted_copy(base, folder)), ())

    def _mixed(self, model: Any) -> AdapterEngine:
        from workbench.adapters.mixed import MixedAdapters

        engine = self.engines.get(id(model))
        if not isinstance(engine, AdapterEngine):
            engine = self.engines[id(model)] = AdapterEngine(model, MixedAdapters(model))
        return engine

    def _load(self, name: str | Path) -> Any:
        place = str(model_folder(name))
        if place not in self.loaded:
            self.loaded[place] = load_model(name)[0]
        return self.loaded[place]

    def _variant(self, name: str, kind: str, engine: Engine | EndpointEngine, choice: Any = None) -> Variant:
        return Variant(name=name, kind=kind, engine=engine, tokenizer=self.tokenizer, choice=choice)
