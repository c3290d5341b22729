"""Safetensors shards, written tensor by tensor and block by block, so that no shard is ever held in memory."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

INDEX = "model.safetensors.index.json"

_LETTERS = {"float": "F", "bfloat": "BF", "int": "I", "uint": "U", "bool": "BOOL"}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A tensor that is to be written.

    Args:
        name: Its name in the checkpoint.
        dtype: Its number format.
        shape: Its shape.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """The number of its elements."""
        return torch.Size(self.shape).numel()

    @property
    def nbytes(self) -> int:
        """The number of bytes that its elements take."""
        return self.numel * self.dtype.itemsize


def plan_shards(entries: Iterable[Entry], max_bytes: int) -> dict[str, list[Entry]]:
    """Share out tensors among files, in the natural order of their names.

    Args:
        entries: The tensors of a model.
        max_bytes: Most bytes of tensors in one file; a larger tensor gets a file for itself.

    Returns:
        File name to its tensors; one file is `model.safetensors`, several are numbered as transformers does.
    """
    shards: list[list[Entry]] = [[]]
    size = 0
    for entry in sorted(entries, key=lambda entry: _natural(entry.name)):
        if shards[-1] and size + entry.nbytes > max_bytes:
            shards.append([])
            size = 0
        shards[-1].append(entry)
        size += entry.nbytes
    if len(shards) == 1:
        return {"model.safetensors": shards[0]}
    return {f"model-{i:05d}-of-{len(shards):05d}.safetensors": shard for i, shard in enumerate(shards, 1)}


def _natural(name: str) -> list[str | int]:
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def index_text(shards: Mapping[str, Sequence[Entry]]) -> str:
    """Return the text of the index, which says for each tensor the file that holds it."""
    total = sum(entry.nbytes for shard in shards.values() for entry in shard)
    places = {entry.name: file for file, shard in shards.items() for entry in shard}
    return json.dumps({"metadata": {"total_size": total}, "weight_map": places}, indent=2) + "\n"


def write_shard(path: Path, entries: Sequence[Entry], blocks: Callable[[Entry], Iterable[Tensor]]) -> None:
    """Write one safetensors file; it appears under its name when it is whole and on the disk.

    Args:
        path: The file.
        entries: Its tensors.
        blocks: Returns a tensor's elements, in order, in pieces of any size, in the entry's format.

    Raises:
        OSError: The disk refuses.
    """
    # The wide formats come first, so that each tensor lies at a multiple of its element's size.
    entries = sorted(entries, key=lambda entry: -entry.dtype.itemsize)
    partial = path.with_name(f"{path.name}.writing")
    with partial.open("wb") as file:
        file.write(_header(entries))
        for entry in entries:
            for block in blocks(entry):
                file.write(block.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _header(entries: Sequence[Entry]) -> bytes:
    table: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for entry in entries:
        place = [start, start + entry.nbytes]
        table[entry.name] = {"dtype": _format(entry.dtype), "shape": entry.shape, "data_offsets": place}
        start += entry.nbytes
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _format(dtype: torch.dtype) -> str:
    kind = str(dtype).removeprefix("torch.")
    letters = kind.rstrip("0123456789")
    return _LETTERS[letters] + kind.removeprefix(letters)
