"""A parity badge: how far a merge is from what another tool makes of the same parents."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from workbench.errors import ConfigError
from workbench.merging.coefficients import tensor_settings
from workbench.merging.mergekit_yaml import VECTORS, mergekit_names
from workbench.merging.recipe import OWN, MergeRecipe
from workbench.merging.sources import Parent, adopt_sources, load_sources
from workbench.merging.weights import depth_positions
from workbench.ops.merging import linear_mix
from workbench.ops.rule_settings import RuleSettings
from workbench.ops.rules import merge_tensor


@dataclass(frozen=True, kw_only=True)
class Parity:
    """What a comparison found; printed, it is the badge.

    Args:
        method: The method that was compared.
        tool: The other tool.
        version: Its version.
        largest: Largest difference between two entries.
        tensor: The tensor in which it is.
        scale: Largest magnitude in that tensor.
        tensors: How many tensors were compared.
        note: What the comparison left out, or empty.
    """

    method: str
    tool: str
    version: str
    largest: float
    tensor: str
    scale: float
    tensors: int
    note: str = ""

    def __str__(self) -> str:
        where = f" (in {self.tensor}, whose largest entry is {self.scale:.2g})" if self.largest else ""
        return (
            f"{self.method} against {self.tool} {self.version}: largest difference {self.largest:.2g}{where} in "
            f"{self.tensors} tensors{self.note and '; '}{self.note}"
        )


@torch.no_grad()
def recipe_parity(
    recipe: MergeRecipe,
    *,
    models: Sequence[Parent] | None = None,
    base: PreTrainedModel | None = None,
    device: str | torch.device | None = None,
) -> Parity:
    """Merge every tensor by our exact rule and by the tool whose semantics the recipe names, and compare.

    Both work in float32 and round to the parents' format. DARE and DELLA draw other masks in every tool, so they are
    compared at density 1, without masks.

    Args:
        recipe: Any recipe with `semantics="mergekit"`, or `"peft"` for `task_arithmetic`, `ties` and `dare_*`.
        models: The parents, already loaded; None loads them by name, as `LiveMerge` does.
        base: The base, where `models` are given and the recipe has one.
        device: As in `LiveMerge`.

    Raises:
        ConfigError: mergekit is not installed, or no tool has the recipe's semantics.
        MergeError: The parents do not fit each other.
        ModelError: A parent cannot be loaded.
    """
    tool = _tool(recipe)
    note = ""
    if recipe.rule.trim in ("random", "della") and recipe.density is not None:
        note = "compared at density 1, since every tool draws masks of its own"
        recipe = recipe.replace(density=None)
    if models is None:
        sources = load_sources(recipe.parents, recipe.base, device, recipe.dtype)
    else:
        held = (recipe.base, base) if recipe.base and base is not None else None
        sources = adopt_sources(recipe.parents, models, held, None, device, recipe.dtype)
    tensors = sources.tensors(recipe.parents, recipe.base)
    worst, largest, scale = "", -1.0, 0.0
    for name, place in depth_positions(tensors).items():
        settings, (parts, origin) = tensor_settings(recipe, name, place), tensors[name]
        ours = merge_tensor(recipe.method, parts, origin, settings)
        theirs = (_by_mergekit if tool == "mergekit" else _by_peft)(recipe.method, parts, origin, settings)
        apart = float((ours.double() - theirs.double()).abs().max()) if ours.numel() else 0.0
        if not apart <= largest:
            worst, largest, scale = name, apart, float(theirs.abs().max())
    return Parity(
        method=recipe.method,
        tool=tool,
        version=version(tool),
        largest=largest,
        tensor=worst,
        scale=scale,
        tensors=len(tensors),
        note=note,
    )


def _tool(recipe: MergeRecipe) -> str:
    if recipe.semantics == "paper":
        raise ConfigError(
            "semantics='paper'; no tool merges just as the papers say. Compare with semantics='mergekit' or 'peft'."
        )
    if recipe.semantics == "peft":
        plain = recipe.normalise is None and recipe.rescale is None and len(set(recipe.density or ())) <= 1
        if recipe.method not in _IN_PEFT or not plain:
            raise ConfigError(
                f"semantics='peft' with {recipe.method}; PEFT has {', '.join(_IN_PEFT)}, with one density for all and "
                "without normalise and rescale. Compare such a recipe, or use semantics='mergekit'."
            )
        return "peft"
    try:
        import mergekit.merge_methods  # noqa: F401  # pyright: ignore[reportMissingImports, reportUnusedImport]
    except ImportError as error:
        raise ConfigError(
            f"mergekit is not installed ({error}); the comparison runs it. Install the extra: pip install "
            "'workbench[peers]'."
        ) from error
    return "mergekit"


_IN_PEFT = ("task_arithmetic", "ties", "dare_linear", "dare_ties")


def _by_mergekit(method: str, tensors: Sequence[Tensor], base: Tensor | None, settings: RuleSettings) -> Tensor:
    from mergekit.merge_methods import merge_tensors  # pyright: ignore[reportMissingImports]

    asked = {theirs: getattr(settings, ours) for ours, theirs in mergekit_names(method).items()}
    if method == "slerp":
        asked["t"] = linear_mix(settings.weights).coefficients[1]
    else:
        asked["weight"] = list(settings.weights)
    asked |= {name: list(settings.own(name)) for name in OWN} | VECTORS.get(settings.vectors or "", {})
    known = _parameters(method)
    return merge_tensors(
        [*tensors] if base is None else [base, *tensors],
        method,
        parameters={key: value for key, value in asked.items() if value is not None and key in known},
        base_index=0 if base is not None or method == "slerp" else None,
        dtype=torch.promote_types(tensors[0].dtype, torch.float32),
        out_dtype=tensors[0].dtype,
    )


def _parameters(method: str) -> set[str]:
    from mergekit.merge_methods import get  # pyright: ignore[reportMissingImports]

    return {parameter.name for parameter in get(method).spec.parameters}


def _by_peft(method: str, tensors: Sequence[Tensor], base: Any, settings: RuleSettings) -> Tensor:
    from peft.utils import merge_utils

    work = torch.promote_types(tensors[0].dtype, torch.float32)
    deltas = [tensor.to(work) - base.to(work) for tensor in tensors]
    weights = torch.tensor(settings.weights, dtype=work, device=base.device)
    density = () if method == "task_arithmetic" else (settings.density_of(0),)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of density 1, which prunes nothing
        merged = getattr(merge_utils, method)(deltas, weights, *density)
    return (base.to(work) + settings.lambda_ * merged).to(base.dtype)
