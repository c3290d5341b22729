"""Write a merged model into a folder, whole or not at all."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from workbench.errors import ConfigError, ModelError


def save_model(model: Any, tokenizer: Any, folder: str | Path) -> Path:
    """Save a model and its tokenizer as safetensors into a new folder.

    Everything is written beside the target under a temporary name, which is renamed at the end.

    Args:
        model: A transformers model.
        tokenizer: Its tokenizer.
        folder: Where to; it must not exist yet, its parent folders are made.

    Returns:
        The absolute path of the new folder; it loads with `load_model` and `from_pretrained`.

    Raises:
        ConfigError: The name is empty, or something is there already.
        ModelError: The disk refuses.
    """
    if not str(folder).strip():
        raise ConfigError("the folder name is empty; write a new folder's name, for example out/merged")
    target = Path(str(folder).strip()).expanduser().absolute()
    if target.exists():
        raise ConfigError(f"{target} exists already and is never overwritten; choose another name or remove it first")
    partial = target.with_name(f".{target.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        model.save_pretrained(partial, safe_serialization=True)
        tokenizer.save_pretrained(partial)
        partial.rename(target)
    except OSError as error:
        raise ModelError(f"cannot write {target}: {error}; choose a folder that you may write to") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target
