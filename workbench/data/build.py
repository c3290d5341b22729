"""Rows in, examples and bad rows out, with a check that the answers' marks are counted from the right end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from workbench.data.files import RawRow
from workbench.data.mapping import make_map
from workbench.data.report import BadRow, RowProblem, shorten
from workbench.data.rowmap import RowMap
from workbench.data.specs import Choice
from workbench.errors import DataError
from workbench.records import EXAMPLE_COLUMNS


class Builder:
    """Gathers examples and bad rows file by file.

    Args:
        specs: What the user wrote for each of our columns.
        several: Whether more than one file comes, so that explicit ids need the file's name before them.
        limit: Number of examples after which to stop, or None.
    """

    def __init__(self, specs: dict[str, Any], several: bool, limit: int | None):
        self.specs, self.several, self.limit = specs, several, limit
        self.prefix_ids = several and specs["id"] is not None
        self.records: dict[str, list[Any]] = {name: [] for name in EXAMPLE_COLUMNS}
        self.ids: set[str] = set()
        self.bad: list[BadRow] = []
        self.left_out: Counter[str] = Counter()

    def add_file(self, label: str, rows: list[RawRow]) -> None:
        """Turn the rows of one file into examples or bad rows.

        Raises:
            DataError: The mapping does not fit the file.
            ConfigError: The mapping contradicts itself.
        """
        columns = list(dict.fromkeys(name for raw in rows for name in raw.values or ()))
        row_map = make_map(self.specs, columns, label) if columns else None
        bad, kept = len(self.bad), len(self.ids)
        for raw in rows:
            if self.limit is not None and len(self.ids) >= self.limit:
                break
            try:
                self._add_row(raw, row_map)
            except RowProblem as problem:
                self.bad.append(_bad_row(raw, problem))
        if row_map and len(self.bad) > bad:
            _check_marks(label, rows, row_map, self.bad[bad:], len(self.ids) - kept)

    def _add_row(self, raw: RawRow, row_map: RowMap | None) -> None:
        if raw.values is None or row_map is None:
            raise RowProblem("", raw.problem or "holds no columns")
        if not row_map.wanted(raw.values):
            self.left_out.update(f"{name}={raw.values.get(name)!r}" for name in row_map.keep)
            return
        record, place = row_map.record(raw.values), f"{raw.file}:{raw.row}"
        if self.prefix_ids:
            record["id"] = f"{raw.file}:{record['id']}"
        record["id"], record["source"] = record["id"] or place, record["source"] or place
        if record["id"] in self.ids:
            reason = "repeats an earlier id; name a column or function without repeats"
            if self.several and not self.prefix_ids:
                reason += ", or write id='id', which puts the file's name before it"
            raise RowProblem(row_map.names["id"], reason, record["id"])
        self.ids.add(record["id"])
        for name, values in self.records.items():
            values.append(record[name])


def _bad_row(raw: RawRow, problem: RowProblem) -> BadRow:
    return BadRow(
        file=raw.file, row=raw.row, line=raw.line, column=problem.column, reason=problem.reason,
        value=raw.seen or shorten(problem.value),
    )  # fmt: skip


def _check_marks(label: str, rows: list[RawRow], row_map: RowMap, bad: list[BadRow], kept: int) -> None:
    """Refuse a mapping under which the rows that seem good would carry a wrong answer."""
    place, choice = row_map.names["answer"], row_map.choice
    failed = [row for row in bad if row.column == place]
    if choice is None:
        marks = sum("if it marks one" in row.reason for row in failed)
        if 2 * marks > kept + len(bad):
            raise DataError(
                f"{label}: in {marks} of {kept + len(bad)} rows {place!r} is no choice but looks like the number or "
                f"letter of one. Write answer=Choice({place!r}, first='A'), or first=0, or first=1. First: {failed[0]}"
            )
    elif isinstance(choice.first, int) and failed:
        spots = list(_marked(rows, row_map, choice))
        low, high = any(p == 0 for p, _ in spots), any(p == n - 1 for p, n in spots)
        under, over = any(p == -1 for p, _ in spots), any(p == n for p, n in spots)
        shift = int(over and not low) - int(under and not high)
        if shift:
            raise DataError(
                f"{label}: {place!r} does not seem to count from {choice.first}, since {len(failed)} rows mark no "
                f"choice that is there and none marks the {'first' if shift > 0 else 'last'}. "
                f"Write Choice({place!r}, first={choice.first + shift}). First: {failed[0]}"
            )


def _marked(rows: list[RawRow], row_map: RowMap, choice: Choice) -> Iterator[tuple[int, int]]:
    for raw in rows:
        try:
            options = row_map.options(raw.values or {})
            position = choice.position(row_map.getters["answer"](raw.values or {}))
        except RowProblem:
            continue
        if options and position is not None:
            yield position, len(options)
