"""Skills side by side: one pair of matrices for each layer, whatever the number of skills."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from workbench.deltas import Delta
from workbench.deltas.adapter import read_adapter
from workbench.deltas.weights import Source, Weights, open_weights
from workbench.errors import ConfigError
from workbench.paths import adapter_folder, read_json_object


@dataclass(frozen=True, kw_only=True, eq=False)
class BankLayer:
    """What all skills add to one linear layer: with every weight 1, B A.

    Args:
        A: `(R, in)`, the skills' rows one below the other; R is the sum of `ranks`.
        B: `(out, R)`, with each skill's scale folded in.
        ranks: Of each skill here, in the order of their names; pruning leaves unequal ones, and 0.
    """

    A: Tensor
    B: Tensor
    ranks: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class SkillBank:
    """The updates of several skills over one base, layer by layer.

    Args:
        names: The skills, in order.
        layers: Module name of the base to its part, in the order of the base's modules.
    """

    names: tuple[str, ...]
    layers: Mapping[str, BankLayer]

    @classmethod
    def open(cls, folders: Mapping[str, str | Path], base: Source, *, strict: bool = True) -> SkillBank:
        """Read skills that PEFT has saved as LoRA, rsLoRA or AdaLoRA adapters.

        Ranks may differ: the updates are put side by side, in float32, and nothing is averaged.

        Args:
            folders: Name to the folder of an adapter.
            base: The model that they were trained on, wrapped by PEFT or not, or its folder.
            strict: Refuse a skill whose recorded base has another name, or whose layers are not those of the first.

        Raises:
            ConfigError: There is no skill; one is more than low-rank updates of layers; or `strict` refuses it.
            ModelError: A folder cannot be read, lacks a tensor, holds NaN, or is an adapter of another kind.
            MergeError: A skill does not fit the base.

        Source: SA-MDKIF (arXiv 2402.00474), skills composed in update space: after AdaLoRA's pruning ranks differ.
        """
        if not folders:
            raise ConfigError("there is no skill; a bank holds at least one. Pass a name and a folder for each.")
        weights = _bare(open_weights(base))
        found: dict[str, dict[str, tuple[Tensor, Tensor]]] = {}
        for name, folder in folders.items():
            path = adapter_folder(folder)
            found[name] = _factors(name, Delta(label=str(path), base=weights, terms=read_adapter(path, weights)))
            if strict:
                _check_base(name, path, weights)
        if strict:
            _check_targets({name: set(skill) for name, skill in found.items()})
        order = [key.removesuffix(".weight") for key in weights.shapes]
        modules = [module for module in order if any(module in skill for skill in found.values())]
        return cls(names=tuple(found), layers={module: _layer(module, list(found.values())) for module in modules})


def _layer(module: str, skills: list[dict[str, tuple[Tensor, Tensor]]]) -> BankLayer:
    up, down = next(skill[module] for skill in skills if module in skill)
    absent = up.new_zeros(len(up), 0), down.new_zeros(0, down.shape[1])
    parts = [skill.get(module, absent) for skill in skills]
    return BankLayer(
        A=torch.cat([down for _, down in parts]).contiguous(),
        B=torch.cat([up for up, _ in parts], dim=1).contiguous(),
        ranks=tuple(len(down) for _, down in parts),
    )


def _factors(skill: str, delta: Delta) -> dict[str, tuple[Tensor, Tensor]]:
    """Return B `(out, r)` and A `(r, in)` of each module that the skill changes."""
    factors: dict[str, tuple[Tensor, Tensor]] = {}
    for name in delta.names:
        pair, module = delta.factors(name), name.removesuffix(".weight")
        if pair is None:
            raise ConfigError(
                f"the skill {skill!r} ({delta.label}) changes {name!r} by more than a product of two thin matrices "
                "(DoRA, trained biases or modules_to_save do); a bank holds low-rank updates of linear layers. Train "
                "it with LoRA, rsLoRA or AdaLoRA alone."
            )
        left, right = (part.float() for part in pair)
        factors[module] = (right.T, left.T) if module in delta.base.transposed else (left, right)
    return factors


def _check_base(name: str, folder: Path, base: Weights) -> None:
    """Compare names without what stands before them: a model may lie in another place than when it was trained on."""
    trained_on = read_json_object(folder / "adapter_config.json").get("base_model_name_or_path") or ""
    here, there = Path(base.label).name, Path(trained_on).name
    named = isinstance(base.origin, Path) or getattr(base.origin, "name_or_path", "")
    if there and named and here != there:
        raise ConfigError(
            f"the skill {name!r} ({folder}) was trained on {trained_on!r}, this model is {base.label!r}; a skill is an "
            "update of its own base. Load that base, or set strict=False to try it on this one."
        )


def _check_targets(targets: Mapping[str, set[str]]) -> None:
    (first, wanted), *others = targets.items()
    for name, modules in others:
        if modules != wanted:
            odd = sorted(modules ^ wanted)
            raise ConfigError(
                f"the skills {first!r} and {name!r} adapt different layers: {len(odd)} are in one of them only, e.g. "
                f"{odd[0]!r}. Train all skills with the same target_modules, or set strict=False, under which a skill "
                "adds nothing where it has no update."
            )


def _bare(weights: Weights) -> Weights:
    """Return the weights of a model under the names that they have without PEFT's layers around them."""
    names = {_plain(name): name for name in weights.shapes}
    return replace(
        weights,
        shapes={name: weights.shapes[held] for name, held in names.items()},
        tied={_plain(name): tuple(map(_plain, others)) for name, others in weights.tied.items()},
        transposed=frozenset(module.removesuffix(".base_layer") for module in weights.transposed),
        fetch=lambda name: weights.fetch(names[name]),
    )


def _plain(name: str) -> str:
    return name.replace(".base_layer.", ".")
