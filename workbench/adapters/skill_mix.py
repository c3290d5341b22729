"""Skills mixed by weights, in update space or in factor space as LoraHub does, beside a plain base."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad

from workbench.adapters.skill_router.bank import SkillBank
from workbench.errors import ConfigError

MIXES = ("update", "factor")


class SkillMix:
    """What several skills add to the layers of a base, mixed by weights into one pair of thin matrices each.

    `update`: sum_s w_s B_s A_s, side by side and exact. `factor`: (sum_s w_s B_s)(sum_s w_s A_s), LoraHub's, in which
    the skills' factors also multiply each other.

    Args:
        bank: The skills.
        mix: `update` or `factor`.

    Raises:
        ConfigError: `mix` is another word.

    Source: LoraHub (arXiv 2307.13269), equation 1.
    Deviates: in `factor`, skills of lower rank, as AdaLoRA's pruning leaves them, are padded with zeros to the largest;
    and each B carries its own skill's scale, where the reference takes the first skill's for all.
    """

    def __init__(self, bank: SkillBank, mix: str = "update"):
        if mix not in MIXES:
            raise ConfigError(f"mix={mix!r}; it is one of {', '.join(MIXES)}")
        self.names, self.mix = bank.names, mix
        self._parts: dict[str, tuple[Tensor, ...]] = {}
        for module, layer in bank.layers.items():
            down, up = layer.A, layer.B.T
            if mix == "factor":
                down, up = (_stacked(part, layer.ranks) for part in (down, up))
            owners = torch.arange(len(layer.ranks)).repeat_interleave(torch.tensor(layer.ranks))
            self._parts[module] = down, up, owners.to(down.device)

    def factors(self, weights: Mapping[str, float]) -> dict[str, tuple[Tensor, Tensor]]:
        """Return A `(R, in)` and B `(out, R)` of each module, in float32; R is the sum of the ranks, or the largest.

        Args:
            weights: Of each skill.

        Raises:
            ConfigError: A skill has no weight, or a weight has no skill.
        """
        if set(weights) != set(self.names):
            raise ConfigError(f"weights are of {', '.join(weights)}; give one to each of {', '.join(self.names)}")
        values, mixed = torch.tensor([float(weights[name]) for name in self.names]), {}
        for module, (down, up, owners) in self._parts.items():
            here = values.to(down.device)
            if self.mix == "update":
                mixed[module] = down, (up * here[owners, None]).T
            else:
                mixed[module] = torch.tensordot(here, down, 1), torch.tensordot(here, up, 1).T
        return mixed

    @contextmanager
    def on(self, model: nn.Module) -> Iterator[Callable[[Mapping[str, float]], None]]:
        """Let the mix add to a plain base while the block runs; the model's weights stay as they are.

        Args:
            model: The base of the skills.

        Yields:
            What sets the weights; before its first call nothing is added.
        """
        held: dict[str, tuple[Tensor, Tensor]] = {}

        def add(name: str, _module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor | None:
            if name not in held:
                return None
            down, up = held[name]
            return (output + linear(linear(inputs[0].to(down.dtype), down), up)).to(output.dtype)

        modules: dict[str, Any] = {name: model.get_submodule(name) for name in self._parts}
        for name, module in modules.items():
            self._parts[name] = tuple(part.to(module.weight.device) for part in self._parts[name])
        hooks = [module.register_forward_hook(partial(add, name)) for name, module in modules.items()]
        try:
            yield lambda weights: held.update(self.factors(weights))
        finally:
            for handle in hooks:
                handle.remove()


def _stacked(rows: Tensor, ranks: Sequence[int]) -> Tensor:
    """Return the skills' rows as `(S, largest rank, width)`."""
    parts = rows.split(list(ranks))
    return torch.stack([pad(part, (0, 0, 0, max(ranks) - len(part))) for part in parts])
