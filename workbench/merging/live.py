"""Merge in memory into one model that answers at once: move a slider, ask again."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from threading import Event
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from workbench.errors import ConfigError, MergeError
from workbench.merging.coefficients import tensor_mix, tensor_settings
from workbench.merging.parents import check_depth
from workbench.merging.recipe import MergeRecipe
from workbench.merging.sources import Group, Parent, adopt_sources, float_tensors, load_sources
from workbench.merging.turns import Turns
from workbench.merging.weights import depth_positions
from workbench.models import load_model
from workbench.ops.density import Codes, codes_key, has_codes, make_codes, merge_coded
from workbench.ops.merging import Mix, cosine_similarity, mix_
from workbench.ops.rule_settings import RuleSettings
from workbench.ops.rules import coefficients, merge_tensor
from workbench.ops.sparsify import delta_chunks, whole_model_threshold

_EXACT_UP_TO = 1 << 25


class LiveMerge:
    """Hold the parents, and one model whose weights follow a recipe.

    Every move recomputes the weights from the pristine parents, so that nothing drifts and a way back is exact. Memory:
    each parent and the base once, and the live model; of an adapter, the tensors that it changes in float32. A sparse
    method (TIES, DARE, DELLA, breadcrumbs) also keeps one byte for each weight of each parent, on the model's device,
    made at its first move and freed when the method changes: with it a density is a comparison, off by at most 1/256.
    Tensors with several names (a tied lm_head) are computed once, under their first name. Settings, tokenizer and
    generation settings are those of the first whole model, or of the base.

    `parents` names all parents, `base` the base; a recipe may take some of them. `model` is an ordinary transformers
    model; who computes with it while others may move the recipe does so inside `generation()`.

    Args:
        recipe: The merge to start with.
        models: The parents, already loaded, in the order of the recipe's parents: models, or `Delta`s of adapters. They
            are held, not copied (except where `device` or `dtype` differ), so leave their weights alone. None loads
            them by name; a folder of an adapter that PEFT saved is read as what it adds to the base.
        base: The base, loaded or by name, also for a recipe that does not read one yet; None takes the recipe's.
        tokenizer: The parents' common tokenizer, where `models` are given.
        device: As in `load_model`; None keeps that of the given `models`.
        dtype: As in `load_model`; None takes the recipe's, or keeps that of the given `models`.
        exact: True computes as `export_merge` does: in mergekit's order, for the same bits, and with the density as it
            is, which sorts at each move. False reads memory once where it can, which is two to three times faster and
            may be off in the last bit (see `ops.merging.mix_`), and moves the density in 256ths. None is exact for
            models of up to 2^25 (33 million) weights, where a move takes milliseconds either way, but for the density.
        vocabulary: What to do where tokenizers of parents loaded by name differ: `"union"`, `"base"`, or None for an
            error; see `align_vocabularies`. `parent()` and `model` then have the common one.
        compiled: Let `torch.compile` make one loop of each sparse method; see `ops.density.merge_coded`.

    Raises:
        MergeError: The parents do not fit each other.
        ConfigError: The recipe is for another number of layers, `models` for another number of parents, a parent is an
            adapter and there is no base, or `base` is not the recipe's.
        ModelError: A parent cannot be loaded.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    exact: bool | None
    compiled: bool

    def __init__(
        self,
        recipe: MergeRecipe,
        *,
        models: Sequence[Parent] | None = None,
        base: PreTrainedModel | str | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        exact: bool | None = None,
        vocabulary: str | None = None,
        compiled: bool = False,
    ):
        dtype = dtype if dtype is not None else recipe.dtype
        origin = _base_name(recipe, base)
        if models is None:
            self._all = load_sources(recipe.parents, origin, device, dtype, vocabulary)
        else:
            whole = load_model(origin, device=device, dtype=dtype)[0] if origin and not _is_model(base) else base
            held: Any = None if origin is None else (origin, whole)
            self._all = adopt_sources(recipe.parents, models, held, tokenizer, device, dtype)
        self.base, self.tokenizer = origin, self._all.tokenizer
        self.parents = tuple(recipe.parents)
        self.model = copy.deepcopy(self._all.first).eval()
        self._targets = float_tensors(self.model)
        size = sum(target.numel() for target in self._targets.values())
        self.exact, self.compiled, self._small = exact, compiled, size <= _EXACT_UP_TO
        self._positions = depth_positions(self._targets)
        self._cosines: dict[tuple[Any, str], float] = {}
        self._codes: dict[str, tuple[Any, list[Codes]]] = {}
        self._models: dict[str, PreTrainedModel] = {}
        self._turns = Turns()
        self._recipe = recipe
        self.apply(recipe)

    @property
    def recipe(self) -> MergeRecipe:
        """The recipe that the model's weights follow now."""
        return self._recipe

    def parent(self, name: str | int) -> PreTrainedModel:
        """Return a pristine parent by name or place, to ask it something; leave its weights alone.

        Of an adapter, it is a copy of the base with what the adapter adds, made when first asked for.

        Raises:
            ConfigError: There is no such parent.
        """
        chosen = self.parents[self._place(name)]
        if chosen not in self._models:
            self._models[chosen] = self._all.model(chosen)
        return self._models[chosen]

    def tensors(self, recipe: MergeRecipe | None = None) -> dict[str, Group]:
        """Return the pristine tensors that a recipe merges, which are shared and must only be read.

        Args:
            recipe: Whose parents' and base's; None gives those of all parents, and of the base where there is one.

        Returns:
            Tensor name to a tensor of each parent, in their order, and the base's or None.

        Raises:
            MergeError: The recipe has a model that is not held here.
        """
        if recipe is None:
            return self._all.tensors(self.parents, self.base)
        if not {*recipe.parents, recipe.base} <= {*self.parents, self.base, None}:
            raise MergeError(
                f"The recipe's parents are {list(recipe.parents)}{_on(recipe.base)}, this LiveMerge holds "
                f"{list(self.parents)}{_on(self.base)}. Keep to these, or make a new LiveMerge(recipe)."
            )
        return self._all.tensors(recipe.parents, recipe.base)

    def coefficients(self, recipe: MergeRecipe | None = None) -> dict[str, tuple[float, ...]]:
        """Return what each tensor is, or would be, made of: W = sum_i c_i W_i.

        Args:
            recipe: Any recipe that `apply` takes; None is the present one.

        Returns:
            Tensor name to one coefficient per parent, in the order of the recipe's parents, and the base's last where
            the recipe has a base.

        Raises:
            MergeError: The recipe has other models, its weights sum to 0 at a tensor, or its method weighs every entry
                of a tensor by itself.
            ConfigError: The recipe is for another number of layers.
        """
        recipe = recipe or self.recipe
        if recipe.entrywise:
            raise MergeError(
                f"{recipe.method} weighs every entry by itself, so that no tensor has one number per parent. Ask for "
                "the coefficients of a method such as linear, slerp or task_arithmetic."
            )
        found, tensors = {}, self.tensors(recipe)
        for name, step in self.steps(recipe).items():
            if isinstance(step, RuleSettings):
                parts, origin = tensors[name]
                numbers = coefficients(recipe.method, parts, origin, step)
                found[name] = numbers if origin is None else (*numbers, 1.0 - sum(numbers))
            else:
                found[name] = step.coefficients
        return found

    def apply(self, recipe: MergeRecipe) -> None:
        """Recompute all weights, in place, from the parents.

        Waits for whoever is inside `generation()`; previews there are asked to stop. When this raises, the weights
        and the recipe are those from before.

        Args:
            recipe: A recipe of models that are held here: of all parents or some, on the base or on one of the parents.
                Its `dtype` is not looked at again.

        Raises:
            MergeError: The recipe has another model, its weights sum to 0 at a tensor, or the call comes from inside a
                `generation()` of the same thread.
            ConfigError: The recipe is for another number of layers.
        """
        with self._turns.writing():
            steps = self.steps(recipe)
            try:
                self._write(recipe, steps)
            except BaseException:
                self._write(self.recipe, self.steps(self.recipe))
                raise
            self._recipe = recipe

    def reset(self, parent: str | int = 0) -> None:
        """Make the model bit for bit one of its parents or the base, and the recipe that of this model alone.

        An adapter's model is the base with what it adds, rounded once.

        Args:
            parent: Name or place of a parent, or the base's name.

        Raises:
            ConfigError: There is no such parent.
        """
        held: dict[str, Any] = {"parents": self.parents, "weights": [0.0] * len(self.parents)}
        if parent == self.base and self.base is not None:
            alone = self.recipe.with_method("task_arithmetic", **held, base=self.base, normalise=None)
        else:
            held["weights"][self._place(parent)] = 1.0
            method = self.recipe.method if self.recipe.method in ("linear", "slerp") else "linear"
            alone = self.recipe.with_method(method, **held)
        self.apply(alone)

    @contextmanager
    def generation(self, *, preview: bool = True) -> Iterator[Event]:
        """Hold the weights still: everything inside sees one recipe.

        Args:
            preview: A move of the recipe sets the yielded event, on which the work inside should end soon (hand it to
                `stream(stop=...)`). With False the event stays unset and a move waits until the work is done.

        Returns:
            A context that yields the event. Several threads can be inside at once.
        """
        with self._turns.reading(cut_short=preview) as stop:
            yield stop

    def steps(self, recipe: MergeRecipe) -> dict[str, Mix | RuleSettings]:
        """Return what is done at each tensor: a plain sum, or what the recipe's rule is told there.

        Raises:
            MergeError: As for `apply`.
            ConfigError: As for `apply`.
        """
        tensors = self.tensors(recipe)
        check_depth(self._targets, recipe.num_layers)
        if recipe.method in ("linear", "slerp"):
            cosine = partial(self._cosine, recipe.parents, tensors)
            return {name: tensor_mix(recipe, name, place, cosine) for name, place in self._positions.items()}
        threshold = self._thresholds(recipe)
        plan = {name: tensor_settings(recipe, name, place, threshold) for name, place in self._positions.items()}
        if recipe.method != "task_arithmetic":
            return dict(plan)
        return {name: self._as_mix(tensors[name], settings) for name, settings in plan.items()}

    def _as_mix(self, group: Group, settings: RuleSettings) -> Mix | RuleSettings:
        # Off in the last bit only; but with weights of 0 it is the one way to the base's own bits.
        if self.exact is not False and any(settings.weights):
            return settings
        numbers = coefficients("task_arithmetic", *group, settings)
        return Mix(weights=(*numbers, 1.0 - sum(numbers)))

    def _write(self, recipe: MergeRecipe, steps: dict[str, Mix | RuleSettings]) -> None:
        if self.exact or not recipe.rule.sparse:
            self._codes.clear()
        for name, (parts, origin) in self.tensors(recipe).items():
            target, step = self._targets[name], steps[name]
            if isinstance(step, Mix):
                parts = parts if origin is None else [*parts, origin]
                alike = all(part.dtype == target.dtype for part in parts)
                mix_(target, parts, step, exact=not alike or (self._small if self.exact is None else self.exact))
            elif origin is not None and not self.exact and has_codes(recipe.method, step):
                codes = self._codes_of(recipe, name, step, parts, origin)
                merge_coded(recipe.method, parts, origin, step, codes, out=target, compiled=self.compiled)
            else:
                merge_tensor(recipe.method, parts, origin, step, out=target)

    def _codes_of(
        self, recipe: MergeRecipe, name: str, settings: RuleSettings, parts: list[Tensor], origin: Tensor
    ) -> list[Codes]:
        key = (recipe.parents, recipe.base, *codes_key(recipe.method, settings))
        if name not in self._codes or self._codes[name][0] != key:
            self._codes.pop(name, None)
            make = partial(make_codes, recipe.method, base=origin, settings=settings)
            self._codes[name] = key, [make(tensor=tensor, parent=index) for index, tensor in enumerate(parts)]
        return self._codes[name][1]

    def _thresholds(self, recipe: MergeRecipe) -> list[float] | None:
        """TIES as in the paper trims over the whole model, at one density for each parent."""
        if recipe.method != "ties" or recipe.semantics != "paper" or recipe.density is None:
            return None

        def chunks(parent: int) -> Iterator[Tensor]:
            for tensors, origin in self.tensors(recipe).values():
                yield from delta_chunks(tensors[parent], origin)

        count = sum(target.numel() for target in self._targets.values())
        density = recipe.settings_at("", 0.0).density or ()
        return [whole_model_threshold(partial(chunks, place), count, share) for place, share in enumerate(density)]

    def _cosine(self, parents: Sequence[str], tensors: Mapping[str, Group], name: str) -> float:
        key = (parents, name)
        if key not in self._cosines:
            self._cosines[key] = cosine_similarity(*tensors[name][0])
        return self._cosines[key]

    def _place(self, parent: str | int) -> int:
        names = list(self.parents)
        if parent in names:
            return names.index(str(parent))
        if isinstance(parent, int) and 0 <= parent < len(names):
            return parent
        raise ConfigError(f"No parent {parent!r}; the parents are {names}. Pass one of these names, or its place.")


def _is_model(base: object) -> bool:
    return isinstance(base, PreTrainedModel)


def _on(base: str | None) -> str:
    return f" on the base {base!r}" if base else ""


def _base_name(recipe: MergeRecipe, base: PreTrainedModel | str | None) -> str | None:
    if isinstance(base, PreTrainedModel):
        return recipe.base or base.name_or_path or "base"
    if recipe.base and base and recipe.base != base:
        raise ConfigError(f"base={base!r}, and the recipe's base is {recipe.base!r}. Leave one of them out.")
    return recipe.base or base
