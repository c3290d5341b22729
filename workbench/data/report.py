"""What was wrong with which row: bad rows are listed, never dropped in silence."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields

import pandas as pd


class RowProblem(Exception):
    """A value of one row cannot be used; caught where the row's place is known."""

    def __init__(self, column: str, reason: str, value: object = None):
        super().__init__(reason)
        self.column, self.reason, self.value = column, reason, value


@dataclass(frozen=True, kw_only=True)
class BadRow:
    """One row that cannot become an example.

    Args:
        file: File name, or the path below the folder that was loaded, or the hub id and split.
        row: Row number as a reader counts: the line of a JSON Lines file; the row of a CSV or TSV as a spreadsheet
            shows it, with the header as row 1; the record of a JSON file, Parquet file or hub dataset, from 1.
        line: Line of the file where the row begins, where that can be known.
        column: Column of the file, or our column for a function; empty when the whole row is unreadable.
        reason: What is wrong and, where it helps, the remedy.
        value: The value seen, cut to 60 characters.
    """

    file: str
    row: int
    line: int | None
    column: str
    reason: str
    value: str

    def __str__(self) -> str:
        line = f" (line {self.line})" if self.line not in (None, self.row) else ""
        column = f", column {self.column!r}" if self.column else ""
        value = f"; seen: {self.value}" if self.value else ""
        return f"{self.file}, row {self.row}{line}{column}: {self.reason}{value}"


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """What became of every row and file that `load_examples` met.

    Args:
        source: What was loaded.
        kept: Number of examples in the dataset.
        filtered: Number of rows left out because `skill`, `stage` or `split` asked for other values.
        bad: The rows that could not become examples, in file order.
        ignored: Files of a folder whose ending names no data format.
    """

    source: str
    kept: int
    filtered: int = 0
    bad: tuple[BadRow, ...] = ()
    ignored: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.bad)

    def __str__(self) -> str:
        lines = [
            f"{self.source}: {self.kept} examples, {len(self.bad)} bad rows, {self.filtered} rows filtered out",
            *(f"  {row}" for row in self.bad),
        ]
        if self.ignored:
            lines.append(f"  ignored files: {', '.join(self.ignored)}")
        return "\n".join(lines)

    def to_frame(self) -> pd.DataFrame:
        """Return the bad rows as a table, one row each: file, row, line, column, reason, value."""
        return pd.DataFrame(
            [asdict(row) for row in self.bad], columns=pd.Index([f.name for f in fields(BadRow)])
        ).astype({"line": "Int64"})

    def complaint(self, first: int = 5) -> str:
        """Say in a few lines which rows are bad, for an error message.

        Args:
            first: How many of them to show.
        """
        total = self.kept + len(self.bad)
        lines = [f"{self.source}: {len(self.bad)} of {total} rows cannot become examples.", *map(str, self.bad[:first])]
        if len(self.bad) > first:
            lines.append(f"... and {len(self.bad) - first} more.")
        return "\n  ".join(lines)


def shorten(value: object, width: int = 60) -> str:
    """Write a value in one short line; None, which says that there is nothing to show, becomes empty."""
    if value is None:
        return ""
    text = repr(value[:width] if isinstance(value, str) else value)
    return text if len(text) <= width else text[: width - 3] + "..."
