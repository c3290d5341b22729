"""What a source stands for: classroom files, a file, the files of a folder, or a hub dataset."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

import datasets

from workbench.data.files import FORMATS, RawRow, dataset_rows
from workbench.data.report import shorten
from workbench.errors import DataError
from workbench.paths import data_samples_root

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def find_files(source: str | Path) -> tuple[dict[str, Path], list[str]]:
    """Say which files a source stands for.

    Args:
        source: As in `load_examples`.

    Returns:
        The data files by the name that messages use, none for a hub id, and the names of a folder's other files.

    Raises:
        DataError: There is nothing of this name, or nothing in it that can be read.
    """
    text = str(source)
    if isinstance(source, str) and text.split("/")[0] == "classroom":
        return _classroom_files(text), []
    path = Path(source).expanduser()
    if path.is_file():
        return {path.name: path}, []
    if path.is_dir():
        return _folder_files(path)
    # "runs/rows" with an existing "runs" is a mistyped file, and nobody wants that sent over the network.
    hub = isinstance(source, str) and _HUB_ID.fullmatch(text) and path.suffix.lower() not in FORMATS
    if hub and not path.parent.is_dir():
        return {}, []
    near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*")], n=1)
    raise DataError(
        f"No data at {text!r}: there is no such file or folder{f'; did you mean {near[0]!r}?' if near else '.'} "
        "Pass a file, a folder, a hub id of the form 'org/name', or 'classroom'."
    )


def _classroom_files(name: str) -> dict[str, Path]:
    folder = data_samples_root() / "examples"
    files = {path.stem: path for path in sorted(folder.glob("*.jsonl"))}
    if not files:
        raise DataError(f"{folder} holds no examples. Reinstall the package, or run `make classroom` in a checkout.")
    if name == "classroom":
        return {path.name: path for path in files.values()}
    short = name.removeprefix("classroom/")
    if short not in files:
        raise DataError(f"There are no classroom examples {name!r}. The classroom has: {', '.join(files)}.")
    return {files[short].name: files[short]}


def _folder_files(folder: Path) -> tuple[dict[str, Path], list[str]]:
    places = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file()]
    # ".ipynb_checkpoints", ".git" and "__MACOSX" repeat or describe files; they hold no data of their own.
    seen = [place for place in places if not any(part.startswith((".", "__")) for part in place.parts)]
    files = {place.as_posix(): folder / place for place in seen if place.suffix.lower() in FORMATS}
    ignored = [place.as_posix() for place in seen if place.as_posix() not in files]
    if not files:
        raise DataError(
            f"The folder {str(folder)!r} holds no data file ({shorten(ignored)}). Known endings: {', '.join(FORMATS)}."
        )
    return files, ignored


def read_hub(name: str, config: str | None, split: str) -> list[RawRow]:
    """Open one split of a hub dataset, from the hub or its cache.

    Raises:
        DataError: It cannot be opened, or has no rows.
    """
    try:
        table = datasets.load_dataset(name, config, split=split)
    except Exception as error:  # the hub client raises many kinds, some of them bare
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else ""
        raise DataError(
            f"{name!r} is no file or folder here, and cannot be opened as a hub dataset with split={split!r}, "
            f"config={config!r} ({type(error).__name__}: {reason}). Check the path, the network, split= and config=; "
            "for a private or gated dataset log in with `hf auth login`."
        ) from error
    return dataset_rows(table, f"{name}/{split}")
