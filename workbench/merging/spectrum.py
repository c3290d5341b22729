"""Many recipes of the same parents at work in one batch: a prompt's answer at every ratio, in one `generate`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from workbench.errors import ConfigError, MergeError
from workbench.merging.live import LiveMerge
from workbench.merging.parents import weight_tensors
from workbench.merging.recipe import MergeRecipe
from workbench.merging.rows import row_model


class RatioSpectrum:
    """One model in which every block of a batch's rows follows its own recipe.

    Where a merge is W = sum_i c_i W_i, a layer's output is sum_i c_i (W_i x): the parents' products are computed once
    for all rows, and each row adds them with its own c. The parents are read, no merged weight is kept.

    `model` is an ordinary transformers model for `generate`, with its cache, padding and streamers. For R recipes a
    batch is R equal blocks of rows, the first for the first recipe; `expand` makes such a batch, and what `generate`
    does by itself (beams, several sequences for each row) keeps it one. Rows must not be sorted or dropped on the
    way, so it is not for `generate_batch` or `evaluate`.

    Args:
        recipes: The recipes, of the same parents; or one recipe of two parents, whose ratio then runs.
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

    Source: of our own; the sum is that of linear and slerp merges (`ops.merging`), by the distributive law.
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
        parents = [self.live.parent(i) for i in range(len(self.live.recipe.parents))]
        self._first = {name: group[0] for group in weight_tensors(parents[0]).values() for name in group}
        states = [parent.state_dict() for parent in parents]
        parts = {name: [state[name] for state in states] for name in self._first}
        self.model, self._modules = row_model(parents[0], parts)
        self.model.save_pretrained = _refuse_to_save
        self._decoding: int | None = None
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
        tables = [self.live.coefficients(recipe) for recipe in rows]
        for name, module in self._modules.items():

            def coefficients(key: str, name: str = name) -> Tensor:
                first = self._first[f"{name}.{key}"]
                return torch.tensor([table[first] for table in tables], dtype=torch.float64)

            module.assign(coefficients)
        self.recipes = rows

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
