"""Merge in memory into one model that answers at once: move a slider, ask again."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Event
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from workbench.errors import ConfigError, MergeError
from workbench.merging.coefficients import tensor_mix
from workbench.merging.parents import check_depth, check_fit, check_tokenizers, place, weight_tensors
from workbench.merging.recipe import DTYPES, MergeRecipe
from workbench.merging.turns import Turns
from workbench.merging.weights import depth_positions
from workbench.models import load_model
from workbench.ops.merging import Mix, cosine_similarity, mix_

_EXACT_UP_TO = 1 << 25


class LiveMerge:
    """Hold the parents, and one model whose weights follow a recipe.

    Every move recomputes the weights from the pristine parents, so that nothing drifts and a way back is exact. Memory:
    each parent once, and the live model. Tensors with several names (a tied lm_head) are computed once, under their
    first name. Settings, tokenizer and generation settings are the first parent's.

    `model` is an ordinary transformers model; who computes with it while others may move the recipe does so inside
    `generation()`.

    Args:
        recipe: The merge to start with.
        models: The parents, already loaded, in the order of the recipe's parents; they are held, not copied (except
            where `device` or `dtype` differ), so leave their weights alone. None loads them by name.
        tokenizer: The parents' common tokenizer, where `models` are given.
        device: As in `load_model`; None keeps that of the given `models`.
        dtype: As in `load_model`; None takes the recipe's, or keeps that of the given `models`.
        exact: True computes in mergekit's order, for the same bits; False reads memory once where it can, which is two
            to three times faster and may be off in the last bit (see `ops.merging.mix_`). None is exact for models of
            up to 2^25 (33 million) weights, where a move takes milliseconds either way.

    Raises:
        MergeError: The parents do not fit each other.
        ConfigError: The recipe is for another number of layers, or `models` for another number of parents.
        ModelError: A parent cannot be loaded.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    exact: bool

    def __init__(
        self,
        recipe: MergeRecipe,
        *,
        models: Sequence[PreTrainedModel] | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        exact: bool | None = None,
    ):
        dtype = dtype if dtype is not None else recipe.dtype
        if models is None:
            self._parents, self.tokenizer = _load(recipe.parents, device, dtype)
        else:
            self._parents, self.tokenizer = _adopt(recipe.parents, models, device, dtype), tokenizer
            check_fit(self._parents)
        self.model = copy.deepcopy(next(iter(self._parents.values()))).eval()
        self._targets = _float_tensors(self.model)
        sources = [_float_tensors(parent) for parent in self._parents.values()]
        self._sources = {name: [tensors[name] for tensors in sources] for name in self._targets}
        size = sum(target.numel() for target in self._targets.values())
        self.exact = size <= _EXACT_UP_TO if exact is None else exact
        self._positions = depth_positions(self._targets)
        self._cosines: dict[str, float] = {}
        self._turns = Turns()
        self._recipe = recipe
        self.apply(recipe)

    @property
    def recipe(self) -> MergeRecipe:
        """The recipe that the model's weights follow now."""
        return self._recipe

    def parent(self, name: str | int) -> PreTrainedModel:
        """Return a pristine parent by name or place, to ask it something; leave its weights alone.

        Raises:
            ConfigError: There is no such parent.
        """
        return self._parents[self.recipe.parents[self._place(name)]]

    def coefficients(self, recipe: MergeRecipe | None = None) -> dict[str, tuple[float, ...]]:
        """Return what each tensor is, or would be, made of: W = sum_i c_i W_i.

        Args:
            recipe: Any recipe of the same parents; None is the present one.

        Returns:
            Tensor name to one coefficient per parent, in the order of the parents.

        Raises:
            MergeError: The recipe has other parents, or its weights sum to 0 at a tensor.
            ConfigError: The recipe is for another number of layers.
        """
        return {name: mix.coefficients for name, mix in self._mixes(recipe or self.recipe).items()}

    def apply(self, recipe: MergeRecipe) -> None:
        """Recompute all weights, in place, from the parents.

        Waits for whoever is inside `generation()`; previews there are asked to stop. When this raises, the weights
        and the recipe are those from before.

        Args:
            recipe: A recipe of the same parents; its `dtype` is not looked at again.

        Raises:
            MergeError: The recipe has other parents, its weights sum to 0 at a tensor, or the call comes from inside
                a `generation()` of the same thread.
            ConfigError: The recipe is for another number of layers.
        """
        with self._turns.writing():
            mixes = self._mixes(recipe)
            try:
                self._write(mixes)
            except BaseException:
                self._write(self._mixes(self.recipe))
                raise
            self._recipe = recipe

    def reset(self, parent: str | int = 0) -> None:
        """Make the model bit for bit one of its parents, and the recipe that of this parent alone.

        Args:
            parent: Name or place of a parent.

        Raises:
            ConfigError: There is no such parent.
        """
        chosen = self._place(parent)
        self.apply(self.recipe.replace(weights=[float(index == chosen) for index in range(len(self._parents))]))

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

    def _mixes(self, recipe: MergeRecipe) -> dict[str, Mix]:
        if recipe.parents != self.recipe.parents:
            raise MergeError(
                f"The recipe's parents are {list(recipe.parents)}, this LiveMerge holds {list(self.recipe.parents)}. "
                "Keep the parents, or make a new LiveMerge(recipe)."
            )
        check_depth(self._targets, recipe.num_layers)
        return {name: tensor_mix(recipe, name, place, self._cosine) for name, place in self._positions.items()}

    def _write(self, mixes: dict[str, Mix]) -> None:
        for name, target in self._targets.items():
            mix_(target, self._sources[name], mixes[name], exact=self.exact)

    def _cosine(self, name: str) -> float:
        if name not in self._cosines:
            self._cosines[name] = cosine_similarity(*self._sources[name])
        return self._cosines[name]

    def _place(self, parent: str | int) -> int:
        names = list(self._parents)
        if parent in names:
            return names.index(str(parent))
        if isinstance(parent, int) and 0 <= parent < len(names):
            return parent
        raise ConfigError(f"No parent {parent!r}; the parents are {names}. Pass one of these names, or its place.")


def _float_tensors(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    state = model.state_dict()
    return {name: state[name] for name in weight_tensors(model) if state[name].is_floating_point()}


def _load(
    names: Sequence[str], device: Any, dtype: Any
) -> tuple[dict[str, PreTrainedModel], PreTrainedTokenizerBase | None]:
    loaded = {name: load_model(name, device=device, dtype=dtype) for name in names}
    models = {name: model for name, (model, _) in loaded.items()}
    check_fit(models)
    check_tokenizers({name: tokenizer for name, (_, tokenizer) in loaded.items()})
    return models, loaded[names[0]][1]


def _adopt(
    names: Sequence[str], models: Sequence[PreTrainedModel], device: Any, dtype: Any
) -> dict[str, PreTrainedModel]:
    if len(models) != len(names):
        raise ConfigError(f"{len(models)} models for the {len(names)} parents {list(names)}. Pass one for each.")
    if isinstance(dtype, str) and dtype not in DTYPES:
        raise ConfigError(f"dtype={dtype!r}; a merge works in one of {', '.join(DTYPES)}. Give one of these.")
    dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    device = None if device is None else torch.device(device)
    return {name: place(model, device, dtype) for name, model in zip(names, models)}
