"""Carry out a merge on the disk: parents are read and the result is written piece by piece, whatever their size."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import AutoModelForCausalLM

from workbench.errors import ConfigError, MergeError, ModelError, WorkbenchError
from workbench.merging.card import model_card
from workbench.merging.coefficients import tensor_mix, tensor_settings
from workbench.merging.parents import check_depth
from workbench.merging.recipe import MergeRecipe
from workbench.merging.shards import INDEX, Entry, index_text, plan_shards, write_shard
from workbench.merging.stored import Stored, check_stored, merged_dtype, open_stored
from workbench.merging.vocabulary import Vocabulary, align_vocabularies, vocabulary_tensors
from workbench.merging.weights import depth_positions
from workbench.models import load_tokenizer
from workbench.ops.merging import cosine_similarity, mix_
from workbench.ops.rules import merge_tensor
from workbench.ops.sparsify import delta_chunks, whole_model_threshold
from workbench.paths import read_json_object

_BLOCK = 1 << 23  # elements of a linear or slerp merge at a time
_SPARE_BYTES = 1 << 20  # for the files beside the weights
_MANIFEST = "unfinished.json"
_TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.model"),
    *("vocab.json", "merges.txt", "vocab.txt", "spiece.model", "tekken.json", "chat_template.jinja"),
)
_OTHER_FILES = ("generation_config.json", "LICENSE*", "NOTICE*", "USE_POLICY*")


def export_merge(
    recipe: MergeRecipe,
    out: str | Path,
    *,
    max_shard_bytes: int = 5_000_000_000,
    vocabulary: str | None = None,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> Path:
    """Merge models from disk to disk, in exact arithmetic, without loading one.

    The folder appears under its name when it is complete. Until then the finished files lie beside it in
    `.<name>.partial`; after an interruption, of whatever kind, the same call goes on from there. The same recipe,
    parents, torch and number of threads give the same bytes, and those that `LiveMerge(recipe, exact=True)` has.

    Memory, in float32 copies of the largest tensor: `linear` a fraction of one, `slerp` three, other methods one per
    parent, the base too, and up to three; embeddings whose vocabularies are aligned one per parent more. Nothing of a
    shard's size is held.

    Args:
        recipe: What to merge. Its dtype is the format that parents are read in and the result has; None keeps theirs.
            Parents can also be folders of adapters that PEFT has saved, on the recipe's base or on their own.
        out: The new folder; it must not exist yet, its parent folders are made. Configuration, generation settings
            and tokenizer files are those of the first parent (with `vocabulary`, of the base, where there is one);
            README.md holds the recipe as JSON and for mergekit.
        max_shard_bytes: Most bytes of one weight file; a larger tensor gets a file for itself.
        vocabulary: What to do where tokenizers differ: `"union"`, `"base"`, or None for an error; see
            `align_vocabularies`.
        device: Where the arithmetic runs.
        progress: Show a bar.

    Returns:
        The absolute path of the folder; it loads with `load_model`, `from_pretrained`, and whatever reads such folders.

    Raises:
        ConfigError: An argument breaks a rule, `out` exists, or the recipe is for another number of layers.
        ModelError: A parent is missing, damaged, quantised or only there as pickle; or the disk refuses or is full.
        MergeError: The parents do not fit each other; a parent or the result holds NaN or infinity; the weights sum
            to 0 at a tensor; or `.<name>.partial` belongs to another export.

    Deviates: slerp's angle is taken of the tensors as they are stored, where an architecture that transformers fuses
    while loading (mixtures of experts) has larger ones in `LiveMerge`.
    """
    if type(max_shard_bytes) is not int or max_shard_bytes < 1:
        raise ConfigError(f"max_shard_bytes={max_shard_bytes!r}; it is a number of bytes, at least 1. Give an int.")
    if not str(out).strip():
        raise ConfigError("the folder name is empty; write a new folder's name, for example out/merged")
    target = Path(str(out).strip()).expanduser().absolute()
    if target.exists():
        raise ConfigError(f"{target} exists already and is never overwritten; choose another name or remove it first")
    job = _plan(recipe, max_shard_bytes, vocabulary, torch.device(device))
    unfinished = target.with_name(f".{target.name}.partial")
    try:
        _start(unfinished, job, [max_shard_bytes, vocabulary, str(device)])
        _write(unfinished, job, progress)
        unfinished.rename(target)
        (target / _MANIFEST).unlink()
    except WorkbenchError:
        raise
    except OSError as error:
        full = error.errno == errno.ENOSPC
        raise ModelError(
            f"cannot write {target}: {'the disk is full' if full else error}; "
            f"{'free some space there' if full else 'choose a folder that you may write to'} and call again (finished "
            f"files are kept in {unfinished})"
        ) from error
    finally:
        _tidy(unfinished)
    return target


@dataclass(frozen=True, kw_only=True)
class _Job:
    """An export, planned: everything but the arithmetic is decided."""

    recipe: MergeRecipe
    sources: dict[str, Stored]
    shards: dict[str, list[Entry]]
    positions: dict[str, float]
    aligned: Vocabulary | None
    embeddings: frozenset[str]
    device: torch.device
    lead: Stored
    card: str


def _plan(recipe: MergeRecipe, max_bytes: int, how: str | None, device: torch.device) -> _Job:
    names = [*recipe.parents, *([recipe.base] if recipe.base else [])]
    sources = {name: open_stored(name, recipe.base) for name in names}
    dtype = getattr(torch, recipe.dtype) if recipe.dtype else None
    first = sources[names[0]]
    with torch.device("meta"):
        embeddings = vocabulary_tensors(AutoModelForCausalLM.from_config(first.config, trust_remote_code=False))
    tokenizers = {name: load_tokenizer(source.folder) for name, source in sources.items()}
    table = next(name for name in first.weights.names if name in embeddings)
    sizes = {name: source.weights.shapes.get(table, (0,))[0] for name, source in sources.items()}
    check_stored(sources, dtype=dtype, free=embeddings if how else frozenset())
    aligned = align_vocabularies(tokenizers, sizes, how, base=recipe.base)
    lead = sources[recipe.base] if aligned and recipe.base else first
    shapes = {name: first.weights.shapes[name] for name in first.weights.names}
    check_depth(shapes, recipe.num_layers)
    if aligned:
        shapes |= {name: (aligned.size, *shapes[name][1:]) for name in embeddings & shapes.keys()}
    entries = [Entry(name=name, dtype=merged_dtype(first, name, dtype), shape=shape) for name, shape in shapes.items()]
    tokenizer = aligned.tokenizer if aligned else tokenizers[lead.name]
    return _Job(
        recipe=recipe,
        sources=sources,
        shards=plan_shards(entries, max_bytes),
        positions=depth_positions(shapes),
        aligned=aligned,
        embeddings=embeddings if aligned else frozenset(),
        device=device,
        lead=lead,
        card=model_card(recipe, tokenizers, tokenizer, how if aligned else None),
    )


def _start(folder: Path, job: _Job, settings: list[Any]) -> None:
    """Make the folder, or make sure that what lies there is the beginning of this very export."""
    manifest = {"recipe": json.loads(job.recipe.to_json()), "settings": settings, "parents": {}}
    for name, source in job.sources.items():
        states = {str(path.resolve()): path.stat() for path in sorted(source.files)}
        manifest["parents"][name] = [[path, state.st_size, state.st_mtime_ns] for path, state in states.items()]
    if not (folder / _MANIFEST).is_file():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        _put(folder / _MANIFEST, json.dumps(manifest))
        return
    seen = read_json_object(folder / _MANIFEST)
    differing = [key for key, value in manifest.items() if seen.get(key) != value]
    if differing:
        raise MergeError(
            f"{folder} holds an unfinished export with other {' and '.join(differing)} (its recipe: "
            f"{json.dumps(seen.get('recipe'))}). Finish that one with its own arguments, or delete the folder."
        )


def _tidy(folder: Path) -> None:
    """Take away what nobody can go on from."""
    for path in folder.glob("*.writing"):
        path.unlink(missing_ok=True)
    if not any(folder.glob("*.safetensors")):
        shutil.rmtree(folder, ignore_errors=True)


def _write(folder: Path, job: _Job, progress: bool) -> None:
    left = {file: shard for file, shard in job.shards.items() if not (folder / file).is_file()}
    sizes = {file: sum(entry.nbytes for entry in shard) for file, shard in job.shards.items()}
    needed, free = sum(sizes[file] for file in left) + _SPARE_BYTES, shutil.disk_usage(folder).free
    if needed > free:
        raise ModelError(
            f"The disk of {folder.parent} has {free / 1e9:.2f} GB free, the merged model still needs "
            f"{needed / 1e9:.2f} GB. Free some space, or choose a folder on another disk."
        )
    total = sum(sizes.values())
    with tqdm(total=total, unit="B", unit_scale=True, desc="export", disable=not progress) as bar:
        bar.update(total - sum(sizes[file] for file in left))
        thresholds = _thresholds(job) if left else None
        try:
            for file, shard in left.items():
                write_shard(folder / file, shard, partial(_counted, job, thresholds, bar))
        except MergeError:
            # Another call would end here again, so there is nothing to go on from.
            shutil.rmtree(folder, ignore_errors=True)
            raise
    _write_settings(folder, job)


def _counted(job: _Job, thresholds: Sequence[float] | None, bar: Any, entry: Entry) -> Iterator[Tensor]:
    for block in _blocks(job, thresholds, entry):
        if block.is_floating_point() and not _is_finite(block):
            raise MergeError(
                f"Tensor {entry.name!r} of the result holds NaN or infinity in {entry.dtype}. Use smaller weights, or "
                "a recipe with dtype='bfloat16' or 'float32', which reach further."
            )
        yield block
        bar.update(block.nbytes)


def _blocks(job: _Job, thresholds: Sequence[float] | None, entry: Entry) -> Iterator[Tensor]:
    recipe, position = job.recipe, job.positions[entry.name]
    if not entry.dtype.is_floating_point:
        yield _common(job, entry.name)
        return
    readers = _readers(job, entry)
    parents = [readers[name] for name in recipe.parents]
    if recipe.method in ("linear", "slerp"):
        mix = tensor_mix(recipe, entry.name, position, lambda _: cosine_similarity(*(read() for read in parents)))
        for start in range(0, entry.numel, _BLOCK):
            # Read anew for each block, so that only the pages of one block are held.
            pieces = [read(slice(start, start + _BLOCK)) for read in parents]
            yield mix_(torch.empty_like(pieces[0], dtype=entry.dtype), pieces, mix)
        return
    settings = tensor_settings(recipe, entry.name, position, thresholds)
    tensors, base = [read() for read in parents], readers[recipe.base]() if recipe.base else None
    out = torch.empty(tensors[0].shape, dtype=entry.dtype, device=job.device)
    yield merge_tensor(recipe.method, tensors, base, settings, out=out)


def _readers(job: _Job, entry: Entry) -> dict[str, Callable[..., Tensor]]:
    """Return for each parent a function that reads a tensor, or a piece of its elements."""
    stored = {name: partial(source.read, entry.name, entry.dtype) for name, source in job.sources.items()}
    aligned: dict[str, Tensor] = {}
    if job.aligned and entry.name in job.embeddings:
        aligned = dict(zip(stored, job.aligned.align(list(stored.values()))))

    def read(name: str, part: slice | None = None) -> Tensor:
        held = aligned.get(name)
        tensor = stored[name](part) if held is None else held if part is None else held.view(-1)[part]
        tensor = tensor.to(job.device)
        if not _is_finite(tensor):
            raise MergeError(
                f"Tensor {entry.name!r} of the parent {name!r} holds NaN or infinity in {entry.dtype}; merging needs "
                "finite numbers. The training diverged, or the file is damaged: use an earlier checkpoint."
            )
        return tensor

    return {name: partial(read, name) for name in stored}


def _is_finite(tensor: Tensor) -> bool:
    # A sum is the cheaper look; it can only overflow where numbers are enormous, which is then looked at closely.
    return bool(tensor.sum(dtype=torch.float32).isfinite()) or bool(tensor.isfinite().all())


def _common(job: _Job, name: str) -> Tensor:
    first, *others = job.sources.values()
    tensor = first.plain(name)
    for other in others:
        if not torch.equal(tensor, other.plain(name)):
            raise MergeError(
                f"Tensor {name!r} holds {tensor.dtype} numbers that differ between {first.name!r} and {other.name!r}; "
                "such tensors cannot be averaged. Use both models unquantised, in a floating-point format."
            )
    return tensor


def _thresholds(job: _Job) -> list[float] | None:
    """TIES as in the paper trims over the whole model: find each parent's smallest magnitude that is kept."""
    recipe = job.recipe
    if recipe.method != "ties" or recipe.semantics != "paper" or recipe.density is None:
        return None
    entries = [entry for shard in job.shards.values() for entry in shard if entry.dtype.is_floating_point]

    def chunks(parent: str) -> Iterator[Tensor]:
        for entry in entries:
            readers = _readers(job, entry)
            yield from delta_chunks(readers[parent](), readers[str(recipe.base)]())

    count = sum(entry.numel for entry in entries)
    density = recipe.settings_at("", 0.0).density or ()
    return [whole_model_threshold(partial(chunks, name), count, d) for name, d in zip(recipe.parents, density)]


def _write_settings(folder: Path, job: _Job) -> None:
    for pattern in _OTHER_FILES if job.aligned else (*_OTHER_FILES, *_TOKENIZER_FILES):
        for path in sorted(job.lead.folder.glob(pattern)):
            _put(folder / path.name, path.read_bytes())
    if job.aligned:
        job.aligned.tokenizer.save_pretrained(folder)
    _put(folder / "README.md", job.card)
    if len(job.shards) > 1:
        _put(folder / INDEX, index_text(job.shards))
    config = read_json_object(job.lead.folder / "config.json")
    written = {entry.dtype for shard in job.shards.values() for entry in shard if entry.dtype.is_floating_point}
    if len(written) == 1:
        config["torch_dtype" if "torch_dtype" in config else "dtype"] = str(written.pop()).removeprefix("torch.")
    if job.aligned:
        holder = config if "vocab_size" in config else config.get("text_config", config)
        holder["vocab_size"] = job.aligned.size
    # Without this file nothing loads the folder, so it comes last.
    _put(folder / "config.json", json.dumps(config, indent=2, ensure_ascii=False) + "\n")


def _put(path: Path, content: str | bytes) -> None:
    writing = path.with_name(f"{path.name}.writing")
    writing.write_bytes(content.encode() if isinstance(content, str) else content)
    writing.replace(path)
