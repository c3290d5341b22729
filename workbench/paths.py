"""Where the shipped data lies, and how a model's JSON files are read; standard library only."""

import json
from pathlib import Path
from typing import Any

from workbench.errors import ModelError


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
