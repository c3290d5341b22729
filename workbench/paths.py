"""Where the shipped data lies; standard library only."""

from pathlib import Path


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
