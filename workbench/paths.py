"""Where the shipped data and skills lie, and how a model's JSON files are read; standard library only."""

import json
from pathlib import Path
from typing import Any

from workbench.errors import ModelError
from workbench.records import SKILLS

_SKILL = "classroom/skills/"


def data_samples_root() -> Path:
    """Return the folder of shipped data: inside the package in a wheel, beside it in a checkout.

    Raises:
        FileNotFoundError: Neither place has it.
    """
    package = Path(__file__).parent
    for root in (package / "data_samples", package.parent / "data_samples"):
        if root.is_dir():
            return root
    raise FileNotFoundError(
        f"No data_samples folder in {package} or beside it. The classroom ships with the package; "
        "install the wheel or clone the whole repository."
    )


def adapter_folder(name: str | Path) -> Path:
    """Say where an adapter's name points, without opening it.

    Args:
        name: A folder, or `classroom/skills/<skill>` for one of the twelve shipped skills of `classroom/base`.

    Raises:
        ModelError: There is no such skill, or it was not built.
    """
    if not (isinstance(name, str) and name.startswith(_SKILL)):
        return Path(name).expanduser()
    skill = name.removeprefix(_SKILL)
    if skill not in SKILLS:
        raise ModelError(f"There is no classroom skill {name!r}. The skills are {', '.join(SKILLS)}.")
    return shipped(name, data_samples_root() / "skills" / skill, "make skills")


def shipped(name: str, folder: Path, command: str) -> Path:
    """Return the folder of something that ships with the package.

    Raises:
        ModelError: It is not there; `command` builds it.
    """
    if not folder.is_dir():
        raise ModelError(
            f"{name!r} has no folder {folder}. It ships with the package; reinstall it, or run `{command}` in a "
            "checkout to build it."
        )
    return folder


def read_json_object(path: Path) -> dict[str, Any]:
    """Return the JSON object that a file of a model or adapter holds.

    Raises:
        ModelError: The file is no readable JSON, or holds something other than an object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path} is not readable JSON ({error}). Copy or download it again.") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} holds a {type(value).__name__}, not an object. Copy or download it again.")
    return value
