"""Modules in which each block of a batch's rows has its own merge: y_r = sum_j c_rj (D_j x_r).

No merged weight is ever formed for a few tokens: the components' products are added, so that every component is read
once for all rows. A batch of R recipes is R equal blocks of rows, the first block for the first recipe.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from workbench.errors import MergeError

MIXED_FROM = {"cpu": 64, "cuda": 512}
"""From so many tokens of one recipe on, forming its weight costs less than a second product."""

Part = tuple[Sequence[Tensor], Tensor]
"""The J component tensors D_j of a parameter, read and never written, and the coefficients `(R, J)`."""


class RowLinear(nn.Module):
    """A linear layer whose weight and bias are another mix of the components in each block of rows.

    Args:
        inner: The layer to stand in for.
    """

    def __init__(self, inner: nn.Linear | Conv1D) -> None:
        super().__init__()
        self.weight, self._turned = _shared(inner.weight), isinstance(inner, Conv1D)

    def assign(self, parts: Mapping[str, Part]) -> None:
        """Take the components and coefficients of the parameters `weight` and, where there is one, `bias`."""
        weights, self._mix = parts["weight"]
        # Kept as `(in, out)`, the right-hand side of a product.
        self._parts = [weight if self._turned else weight.t() for weight in weights]
        # A component that a recipe does not use is not multiplied for it: a spectrum's ends have one parent each.
        spans = [(j, *_span(column)) for j, column in enumerate(self._mix.t())]
        self._active = [(j, i, k, _numbers(self._mix[i:k, j], self.weight)) for j, i, k in spans]
        self._bias = _mixed(*parts["bias"]) if "bias" in parts else None

    def forward(self, x: Tensor) -> Tensor:
        """Return `(B, ..., out)` for `(B, ..., in)`."""
        rows = x.reshape(len(self._mix), -1, x.shape[-1])
        many = rows.shape[1] >= MIXED_FROM.get(x.device.type, MIXED_FROM["cuda"])
        y = self._by_weight(rows) if many else self._by_product(rows)
        if self._bias is not None:
            y += self._bias[:, None]
        return y.view(*x.shape[:-1], y.shape[-1])

    def _by_product(self, rows: Tensor) -> Tensor:
        y = rows.new_zeros(*rows.shape[:2], self._parts[0].shape[1])
        for j, first, last, scale in self._active:
            # Scaled in the format of sums and rounded once, so that half precision does not bend the ratio itself.
            block = torch.mul(rows[first:last], scale, out=rows.new_empty(last - first, *rows.shape[1:]))
            y[first:last].flatten(0, 1).addmm_(block.flatten(0, 1), self._parts[j])
        return y

    def _by_weight(self, rows: Tensor) -> Tensor:
        y = rows.new_empty(*rows.shape[:2], self._parts[0].shape[1])
        for row, numbers in enumerate(self._mix.tolist()):
            torch.mm(rows[row], _sum(self._parts, numbers), out=y[row])
        return y


class RowEmbedding(nn.Module):
    """An embedding whose table is another mix of the components in each block of rows.

    Args:
        inner: The embedding to stand in for, of any kind that is linear in its table.
    """

    def __init__(self, inner: nn.Embedding) -> None:
        super().__init__()
        self.weight, self._like = _shared(inner.weight), (inner,)

    def assign(self, parts: Mapping[str, Part]) -> None:
        """Take the components `(V, D)` and coefficients of the parameter `weight`."""
        (inner,), (weights, table) = self._like, parts["weight"]
        self._inner = [copy.deepcopy(inner, {id(inner.weight): _shared(weight)}) for weight in weights]
        self._scales = _numbers(table.t(), self.weight)

    def forward(self, ids: Tensor) -> Tensor:
        """Return `(B, T, D)` for `(B, T)`."""
        rows = ids.reshape(self._scales.shape[1], -1)
        y = sum(scale * inner(rows) for inner, scale in zip(self._inner, self._scales))
        return cast(Tensor, y).to(self.weight.dtype).view(*ids.shape, -1)


class RowNorm(nn.Module):
    """A norm whose weight, and bias, are another mix of the components in each block of rows.

    Args:
        inner: The norm to stand in for; it multiplies the normalised input by a function of its weight.
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.weight, self.inner = _shared(cast(Tensor, inner.weight)), copy.copy(inner)
        # torch's own norms take a weight of their input's last dimensions only, so they normalise, and we scale.
        self._plain = isinstance(inner, nn.LayerNorm | nn.RMSNorm)
        self.inner._parameters = dict.fromkeys(inner._parameters) if self._plain else {}

    def assign(self, parts: Mapping[str, Part]) -> None:
        """Take the components and coefficients of every parameter."""
        self._values = {name: _mixed(*part) for name, part in parts.items()}
        if not self._plain:
            self.inner.__dict__.update(self._values)

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised input, of the same shape."""
        rows = x.unflatten(0, (len(self._values["weight"]), -1))
        values = {name: _spread(value, rows) for name, value in self._values.items()}
        if self._plain:
            y = self.inner(rows) * values["weight"]
            return (y + values["bias"] if "bias" in values else y).flatten(0, 1)
        self.inner.__dict__.update(values)
        return self.inner(rows).flatten(0, 1)


RowModule = RowLinear | RowEmbedding | RowNorm


def row_model(model: Any) -> tuple[Any, dict[str, RowModule]]:
    """Return a copy of a model without weights of its own, in which every layer that has some mixes them by rows.

    Args:
        model: The model whose layers and settings are taken; it is left as it is, its tensors are not copied.

    Returns:
        The model, and by name the modules that wait for their components.

    Raises:
        MergeError: A layer with weights is neither linear, nor an embedding, nor a norm.
    """
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    copied = copy.deepcopy(model, shared)
    modules: dict[str, RowModule] = {}
    for name, module in list(copied.named_modules(remove_duplicate=False)):
        own = [key for key, value in module._parameters.items() if value is not None]
        if own:
            modules[name] = _row_module(name, module, own)
            copied.set_submodule(name, modules[name])
    return copied.eval(), modules


def _row_module(name: str, module: nn.Module, own: Sequence[str]) -> RowModule:
    kind = type(module)
    if kind.forward in (nn.Linear.forward, Conv1D.forward):
        return RowLinear(cast(nn.Linear, module))
    if isinstance(module, nn.Embedding):
        return RowEmbedding(module)
    if "norm" in kind.__name__.lower() and {"weight"} <= {*own} <= {"weight", "bias"}:
        return RowNorm(module)
    raise MergeError(
        f"Layer {name!r} is a {kind.__name__} with the parameters {sorted(own)}; many recipes in one batch need "
        "layers that are linear, embeddings or norms. Merge this model one recipe at a time, with LiveMerge."
    )


def _shared(tensor: Tensor) -> nn.Parameter:
    """A parameter on the same memory: moving the copy to another device must not move the parent."""
    return nn.Parameter(tensor.detach(), requires_grad=False)


def _span(column: Tensor) -> tuple[int, int]:
    used = column.nonzero()[:, 0].tolist() or [0]
    return used[0], used[-1] + 1


def _numbers(table: Tensor, like: Tensor) -> Tensor:
    """Coefficients as factors of `(R, tokens, D)`, in the format that sums are formed in."""
    return table[..., None, None].to(like.device, torch.promote_types(like.dtype, torch.float32))


def _sum(parts: Sequence[Tensor], numbers: Sequence[float]) -> Tensor:
    used = [(part, c) for part, c in zip(parts, numbers) if c] or [(parts[0], 0.0)]
    (first, c), *rest = used
    if not rest and c == 1.0:
        return first
    if len(rest) == 1 and math.isclose(c + rest[0][1], 1.0):
        return torch.lerp(first, *rest[0])
    total = first.to(torch.promote_types(first.dtype, torch.float32)) * c
    for part, number in rest:
        total.add_(part, alpha=number)
    return total.to(first.dtype)


def _mixed(parts: Sequence[Tensor], table: Tensor) -> Tensor:
    """Return every recipe's mix of small tensors, `(R, *shape)`."""
    return torch.stack([_sum(parts, numbers) for numbers in table.tolist()])


def _spread(value: Tensor, rows: Tensor) -> Tensor:
    """Put a mix `(R, *shape)` beside the last dimensions of `(R, B/R, ..., *shape)`."""
    return value.view(len(value), *(1,) * (rows.dim() - value.dim()), *value.shape[1:])
