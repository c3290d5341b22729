"""Many recipes of the same parents at work in one batch: a prompt's answer at every ratio, in one `generate`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any, NoReturn

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from workbench.errors import ConfigError, MergeError
from workbench.merging.live import LiveMerge
from workbench.merging.parents import weight_tensors
from workbench.merging.recipe import MergeRecipe
from workbench.merging.rows import Part, row_model
from workbench.ops.merging import linear_mix
from workbench.ops.rule_settings import RuleSettings
from workbench.ops.rules import merge_tensor

Key = tuple[str | tuple[str, tuple[str, ...], str | None], int | None, RuleSettings | None]
"""A component: a model's name; or a merge's method, parents and base, the parent it is of or all, and its settings."""


class RatioSpectrum:
    """One model in which every block of a batch's rows follows its own recipe.

    Where a merge is W = sum_j c_j D_j, a layer's output is sum_j c_j (D_j x): the components' products are computed
    once for all rows, and each row adds them with its own c. The components are

    - the parents themselves, and the base, for the methods with one number per tensor and parent (linear, slerp,
      nuslerp, multislerp, karcher, task_arithmetic, model_stock): no further memory, for any number of recipes;
    - for each parent the base with its trimmed task vector, where no sign is elected (dare_linear, della_linear,
      breadcrumbs), for each density, seed or other setting of the mask that occurs: weights and lambda are free;
    - the merge itself at lambda 1, for each setting that occurs, with all other methods: lambda is free.

    Densities are exact, as with `LiveMerge(exact=True)`.

    `model` is an ordinary transformers model for `generate`, with its cache, padding and streamers. For R recipes a
    batch is R equal blocks of rows, the first for the first recipe; `expand` makes such a batch, and what `generate`
    does by itself (beams, several sequences for each row) keeps it one. Rows must not be sorted or dropped on the
    way, so it is not for `generate_batch` or `evaluate`.

    Args:
        recipes: The recipes, of the same models; or one recipe of two parents, whose ratio then runs.
        ratios: For one recipe: how many shares of the second parent from 0 to 1, or the shares themselves.
        live: A `LiveMerge` of these parents, whose parents are then shared; its own weights are neither read nor moved.
        models: As in `LiveMerge`, where no `live` is given.
        tokenizer: As in `LiveMerge`.
        device: As in `LiveMerge`.
        dtype: As in `LiveMerge`.

    Raises:
        ConfigError: There is no recipe, fewer than 1 ratio, or both `live` and what it holds are given.
        MergeError: The parents do not fit each other or the recipes, or have layers that cannot be mixed by rows.
        ModelError: A parent cannot be loaded.

    Source: of our own: the rules' sums (`ops.rules`), by the distributive law.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    recipes: tuple[MergeRecipe, ...]

    def __init__(
        self,
        recipes: MergeRecipe | Sequence[MergeRecipe],
        ratios: int | Sequence[float] = 11,
        *,
        live: LiveMerge | None = None,
        models: Sequence[PreTrainedModel] | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
    ):
        rows = spectrum_recipes(recipes, ratios)
        if live is not None and any(given is not None for given in (models, tokenizer, device, dtype)):
            raise ConfigError(
                "live= was given together with models, tokenizer, device or dtype; a LiveMerge brings its own. "
                "Pass either."
            )
        self.live = live or LiveMerge(rows[0], models=models, tokenizer=tokenizer, device=device, dtype=dtype)
        self.tokenizer = self.live.tokenizer
        self._first = {name: group[0] for group in weight_tensors(self.live.model).values() for name in group}
        self.model, self._modules = row_model(self.live.model)
        self.model.save_pretrained = _refuse_to_save
        self._decoding: int | None = None
        # The parents stay as they are, so a recipe's numbers do; rows come and go while recipes recur.
        self._plan = lru_cache(256)(partial(recipe_plan, self.live))
        self.model.register_forward_pre_hook(self._check_rows, with_kwargs=True)
        self.apply(rows)

    def apply(self, recipes: MergeRecipe | Sequence[MergeRecipe], ratios: int | Sequence[float] = 11) -> None:
        """Give the blocks of rows other recipes of the same parents; a `generate` must not be under way.

        Args:
            recipes: As for the class.
            ratios: As for the class.

        Raises:
            ConfigError: There is no recipe, or a recipe is for another number of layers.
            MergeError: A recipe has other parents, or its weights sum to 0 at a tensor.
        """
        rows = spectrum_recipes(recipes, ratios)
        parts = components(self.live, rows, self._plan)
        for name, module in self._modules.items():
            own = {key: self._first.get(f"{name}.{key}") for key in ("weight", "bias")}
            module.assign({key: parts[first] for key, first in own.items() if first})
        # Whoever gives new recipes says by them what the rows are from now on.
        self.recipes, self._decoding = rows, None

    @property
    def ratios(self) -> tuple[float | None, ...]:
        """The second parent's share in each recipe; None where that is not one number."""
        return tuple(recipe.ratio for recipe in self.recipes)

    def expand(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Repeat a batch of P prompts for every recipe.

        Args:
            batch: What a tokenizer returns: tensors of P rows, padded on the left.

        Returns:
            Tensors of R * P rows on the model's device: row r * P + p is prompt p for recipe r.
        """
        count = len(self.recipes)
        return {
            name: tensor.to(self.model.device).repeat(count, *(1,) * (tensor.dim() - 1))
            for name, tensor in batch.items()
        }

    def _check_rows(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = args[0] if args else kwargs.get("input_ids")
        ids = kwargs.get("inputs_embeds") if ids is None else ids
        cache = kwargs.get("past_key_values")
        rows = len(ids) if ids is not None else 0
        if rows % len(self.recipes):
            raise MergeError(
                f"A batch of {rows} rows for {len(self.recipes)} recipes; it needs the same number of rows for each, "
                "in blocks. Make it with expand(batch)."
            )
        if cache is None or not cache.get_seq_length():
            self._decoding = rows
        elif self._decoding not in (None, rows):
            raise MergeError(
                f"The batch went from {self._decoding} to {rows} rows while it was decoded, so that rows no longer "
                "stand in their recipe's block. Use model.generate, which keeps the rows that have ended."
            )


def recipe_plan(live: LiveMerge, recipe: MergeRecipe) -> dict[str, Any]:
    """Return for each tensor a recipe's coefficients, or what its rule is told there."""
    return dict(live.steps(recipe) if recipe.entrywise else live.coefficients(recipe))


def components(
    live: LiveMerge, recipes: Sequence[MergeRecipe], plan: Callable[[MergeRecipe], Any] | None = None
) -> dict[str, Part]:
    """Return what the recipes' merges are sums of, each component once, and every recipe's coefficients.

    Args:
        live: The parents.
        recipes: R recipes of them.
        plan: Gives a recipe's `recipe_plan`, perhaps remembered; None works it out.

    Returns:
        Tensor name to J components and their coefficients, `(R, J)`.

    Raises:
        ConfigError: A recipe is for another number of layers.
        MergeError: A recipe has other parents, or its weights sum to 0 at a tensor.
    """
    plans: list[Any] = [(plan or partial(recipe_plan, live))(recipe) for recipe in recipes]
    names, found, targets = [*live.parents, live.base], {}, live.model.state_dict()
    for name, (parts, origin) in live.tensors().items():
        models: dict[Any, Any] = dict(zip(names, [*parts, origin]))
        sums = [_terms(recipe, plan[name]) for recipe, plan in zip(recipes, plans)]
        keys = list(dict.fromkeys(key for terms in sums for key, c in terms.items() if c)) or [(names[0], None, None)]
        tensors = [_component(models, *key).to(targets[name].dtype) for key in keys]
        table = [[terms.get(key, 0.0) for key in keys] for terms in sums]
        found[name] = tensors, torch.tensor(table, dtype=torch.float64)
    return found


def _terms(recipe: MergeRecipe, step: RuleSettings | tuple[float, ...]) -> dict[Key, float]:
    """Return one tensor's components with their coefficients."""
    what: Any = (recipe.method, recipe.parents, recipe.base)
    if not isinstance(step, RuleSettings):
        return {(name, None, None): c for name, c in zip([*recipe.parents, str(recipe.base)], step)}
    count, like = len(step.weights), replace(step, lambda_=1.0)
    terms: dict[Key, float] = {(what, None, like): step.lambda_}
    if recipe.rule.sparse and (not recipe.rule.elect or step.semantics != "mergekit"):
        # Masks and divisors are the same for all weights, so that every parent's part can be weighed afterwards.
        mix = linear_mix(step.weights, normalise=bool(step.normalise) and not recipe.rule.elect)
        like = replace(like, weights=(1.0,) * count)
        terms = {(what, i, like): step.lambda_ * c for i, c in enumerate(mix.coefficients)}
    # Rounded, so that shares of sum 1 leave the base out.
    return terms | {(str(recipe.base), None, None): round(1.0 - math.fsum(terms.values()), 12)}


def _component(models: Mapping[Any, Any], what: Any, place: int | None, settings: Any) -> Tensor:
    if isinstance(what, str):
        return models[what]
    method, parents, base = what
    if place is not None:
        settings = replace(settings, weights=[float(i == place) for i in range(len(settings.weights))])
    return merge_tensor(method, [models[name] for name in parents], models.get(base), settings)


def spectrum_recipes(
    recipes: MergeRecipe | Sequence[MergeRecipe], ratios: int | Sequence[float] = 11
) -> tuple[MergeRecipe, ...]:
    """Return the recipes of a spectrum, one for each block of rows.

    Args:
        recipes: The recipes themselves, or one recipe of two parents.
        ratios: For one recipe: a number of even steps from 0 to 1, or the second parent's shares.

    Raises:
        ConfigError: There is no recipe, or no ratio.
    """
    if not isinstance(recipes, MergeRecipe):
        if not recipes:
            raise ConfigError(
                "recipes=[]; a spectrum needs at least one recipe. Pass a MergeRecipe, or a list of them."
            )
        return tuple(recipes)
    shares = [i / max(ratios - 1, 1) for i in range(ratios)] if isinstance(ratios, int) else list(ratios)
    if not shares:
        raise ConfigError(f"ratios={ratios!r}; a spectrum needs at least one. Pass a number of steps, or a list.")
    return tuple(recipes.with_ratio(share) for share in shares)


def _refuse_to_save(*_: Any, **__: Any) -> NoReturn:
    raise MergeError(
        "This model holds many recipes at once, which no checkpoint can. Export one of its recipes with export_merge."
    )
