"""What a user writes to say where a value comes from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from workbench.errors import ConfigError

Row = dict[str, Any]
Getter = Callable[[Row], Any]


@dataclass(frozen=True)
class Constant:
    """The same text for every row.

    Args:
        text: The text; may be empty for `context`, `answer` and `stage`.
    """

    text: str

    def __post_init__(self) -> None:
        if not isinstance(self.text, str):
            raise ConfigError(f"Constant({self.text!r}) holds a {type(self.text).__name__}; it must hold text.")


@dataclass(frozen=True)
class Column:
    """A column of the file, said explicitly: needed for `skill`, `stage` and `split`, whose plain strings are words.

    Args:
        name: Name of the column.
    """

    name: str


@dataclass(frozen=True)
class Choice:
    """An answer column that says which of `choices` is right, by number or letter.

    Where `choices` comes from a dict, a mark that is one of its keys takes that entry.

    Args:
        column: Name of the column that holds the mark.
        first: The mark of the first choice: `0`, `1` or `"A"`. It is not guessed.
    """

    column: str
    first: int | str

    def __post_init__(self) -> None:
        letter = isinstance(self.first, str) and len(self.first) == 1 and self.first.isalpha()
        if not letter and self.first not in (0, 1):
            raise ConfigError(f"Choice(first={self.first!r}): the first choice is marked 0, 1 or a letter, e.g. 'A'.")

    def position(self, mark: object) -> int | None:
        """Return the 0-based position a mark stands for, or None where it is no mark of this kind; may be negative."""
        text = str(mark).strip()
        if isinstance(self.first, str):
            return ord(text.upper()) - ord(self.first.upper()) if len(text) == 1 and text.isalpha() else None
        try:
            number = float(text)  # tables with empty cells write whole numbers as 2.0
        except ValueError:
            return None
        return int(number) - self.first if number.is_integer() else None


Spec = str | Constant | Column | Callable[[Row], Any] | None
