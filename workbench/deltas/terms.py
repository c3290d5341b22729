"""The pieces of a weight update: a product of two thin matrices, or a tensor that is read when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Factors:
    """The update scale * left @ right, kept as its factors.

    Args:
        left: `(rows, R)`; R may be 0, which is no update.
        right: `(R, columns)`.
        scale: A plain number.
    """

    left: Tensor
    right: Tensor
    scale: float = 1.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Dense:
    """The update scale * read(), formed anew at each reading so that nothing of a model's size is kept.

    Args:
        read: Returns the tensor, in float32 or wider; the same one every time.
        scale: A plain number.
    """

    read: Callable[[], Tensor]
    scale: float = 1.0


Term = Factors | Dense


def wide(tensor: Tensor) -> Tensor:
    """Return the tensor in the format that sums are formed in: float32, or float64 where it is that already."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def concatenated(terms: Sequence[Factors], device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """Return one pair of factors for the sum of several, [s_1 B_1 | s_2 B_2 | ...] and [A_1; A_2; ...].

    Args:
        terms: At least one, of one shape.
        device: Where the factors shall be; None is where the first ones are.

    Returns:
        Left `(rows, sum of R)` and right `(sum of R, columns)`, whose product is the sum.
    """
    device = terms[0].left.device if device is None else device
    left = torch.cat([wide(term.left.to(device)) * term.scale for term in terms], dim=1)
    right = torch.cat([wide(term.right.to(device)) for term in terms], dim=0)
    dtype = torch.promote_types(left.dtype, right.dtype)
    return left.to(dtype), right.to(dtype)


def total(terms: Sequence[Term], device: torch.device | None = None) -> Tensor:
    """Return the sum of the terms as one tensor, in float32, or float64 where a term has it.

    Args:
        terms: At least one, of one shape.
        device: Where the sum shall be; None is where the first term is.
    """
    factors = [term for term in terms if isinstance(term, Factors)]
    result: Tensor | None = None
    if factors:
        left, right = concatenated(factors, device)
        result = left @ right
    for term in terms:
        if isinstance(term, Factors):
            continue
        part = wide(term.read()) * term.scale
        result = part.to(device) if result is None else result + part.to(result.device)
    assert result is not None, "an update has at least one term"
    return result
