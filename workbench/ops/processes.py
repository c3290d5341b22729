"""What processes that train side by side must agree on: means and rows over all of them, and weights in shards.

Each process reads its part of a batch, and gradients are averaged over processes, as DDP and FSDP do. A mean S / N over
the whole batch, with S and N the sums of the parts' S_p and N_p, becomes S_p / average(N) on process p: the average of
that over processes is S / N, in value and in gradient. With one process the functions return what they are given.
"""

from __future__ import annotations

import torch
from torch import Tensor, distributed
from torch.distributed.tensor import DTensor, distribute_tensor


def average(values: Tensor) -> Tensor:
    """Return the mean over processes of a tensor that each of them holds in the same shape, without gradient.

    Every process must call it, the same number of times and in the same order.
    """
    if alone():
        return values.detach()
    total = values.detach().to(torch.promote_types(values.dtype, torch.float32)).clone()
    distributed.all_reduce(total)
    return total / distributed.get_world_size()


def gather(rows: Tensor, dim: int = 0) -> Tensor:
    """Return the rows of all processes one after another along `dim`, in their order, without gradient.

    Every process must call it, with equally many rows.
    """
    if alone():
        return rows.detach()
    parts = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(distributed.get_world_size())]
    distributed.all_gather(parts, rows.detach().contiguous())
    return torch.cat(parts, dim=dim)


def gather_objects(value: object) -> list[object]:
    """Return the picklable value of each process, in their order; every process must call it."""
    if alone():
        return [value]
    parts: list[object] = [None] * distributed.get_world_size()
    distributed.all_gather_object(parts, value)
    return parts


def sharded(model: torch.nn.Module) -> bool:
    """Say whether FSDP has split the weights among processes."""
    return any(isinstance(tensor, DTensor) for tensor in model.parameters())


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor whole, with gradient to this process's shard where FSDP has split it; every process must call it.

    The gradient is not averaged over processes: of a loss that is the same in all it is the average already.
    """
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def put(tensor: Tensor, values: Tensor) -> None:
    """Write into a tensor, or into this process's shard of it, what every process holds whole."""
    if isinstance(tensor, DTensor):
        values = distribute_tensor(values.to(tensor.device), tensor.device_mesh, tensor.placements, src_data_rank=None)
    tensor.copy_(values)


def alone() -> bool:
    """Say whether no other process trains beside this one."""
    return not distributed.is_available() or not distributed.is_initialized() or distributed.get_world_size() == 1
