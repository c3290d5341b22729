"""Finished rows in a file of JSON lines, which survives being interrupted at any moment."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workbench.errors import DataError

_START = '{"key": "'


class RowStore:
    """Rows by key, each on disk as soon as it is added.

    A row is one line, written by one call at the end of the file. A line that an interruption cut off is left aside, so
    its row counts as not there.

    Args:
        path: The file; it and its folder are made with the first row. None keeps the rows in memory alone.

    Raises:
        DataError: The file holds something else than rows.
    """

    def __init__(self, path: str | Path | None) -> None:
        self._path = None if path is None else Path(path)
        self._rows: dict[str, dict[str, Any]] = {}
        if self._path is not None and self._path.exists():
            for number, line in enumerate(self._path.read_bytes().splitlines(), start=1):
                self._read(number, line)

    def __contains__(self, key: str) -> bool:
        return key in self._rows

    def __getitem__(self, key: str) -> dict[str, Any]:
        return self._rows[key]

    def add(self, key: str, row: Mapping[str, Any], about: Mapping[str, Any]) -> None:
        """Keep a row.

        Args:
            key: What it is found by.
            row: Plain numbers and texts.
            about: What a reader of the file may want to know of it.
        """
        self._rows[key] = dict(row)
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps({"key": key, "row": dict(row), "about": dict(about)}) + "\n"
        with open(self._path, "ab+", buffering=0) as file:
            # A line that was cut off must not swallow this one.
            torn = file.tell() > 0 and file.seek(-1, os.SEEK_END) >= 0 and file.read(1) != b"\n"
            file.write((b"\n" if torn else b"") + line.encode())
            os.fsync(file.fileno())

    def _read(self, number: int, line: bytes) -> None:
        try:
            record = json.loads(line)
            self._rows[record["key"]] = record["row"]
        except (ValueError, KeyError, TypeError) as error:
            text = line.decode(errors="replace").strip()
            if text[: len(_START)] != _START[: len(text)]:
                raise DataError(
                    f"line {number} of {self._path} is {text[:60]!r}, which is no row of a sweep; give the store a "
                    "file of its own"
                ) from error
