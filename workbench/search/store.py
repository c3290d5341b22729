"""Finished rows in an SQLite file, which survives being killed at any moment and may have several writers."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from workbench.errors import DataError

_TABLE = "CREATE TABLE IF NOT EXISTS rows (key TEXT PRIMARY KEY, row TEXT NOT NULL, about TEXT NOT NULL)"
_COLUMNS = ["key", "row", "about"]
_WAIT_S = 60.0  # for other writers, each of which holds the file for one row


class RowStore:
    """Rows by key, each on disk as soon as it is added, and each once.

    The file has one table, `rows`, whose columns `row` and `about` are JSON. A row is a transaction with a rollback
    journal (not a write-ahead log, which shared file systems do not bear): one that was being written when its process
    was killed is not there. Several processes may write the same file, and each sees what the others have added. Of two
    rows with one key the first stays, so that all of them read the same.

    Args:
        path: The file; it and its folder are made with the first row. None keeps the rows in memory alone.

    Raises:
        DataError: The file holds something else than rows, or cannot be opened. It is left as it is.
    """

    def __init__(self, path: str | Path | None) -> None:
        self._path = None if path is None else Path(path)
        self._rows: dict[str, dict[str, Any]] = {}
        if self._path is not None and self._path.exists():
            with self._opened() as file:
                found = [name for (name,) in file.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
                columns = [column[1] for column in file.execute("PRAGMA table_info(rows)")]
            # Without a table it was made by a process that was killed before its first row.
            if found and columns != _COLUMNS:
                raise self._strange(f"holds the tables {', '.join(found)}")

    def __contains__(self, key: str) -> bool:
        return self._found(key) is not None

    def __getitem__(self, key: str) -> dict[str, Any]:
        row = self._found(key)
        if row is None:
            raise KeyError(key)
        return row

    def add(self, key: str, row: Mapping[str, Any], about: Mapping[str, Any]) -> None:
        """Keep a row, unless there is one of its key.

        Args:
            key: What it is found by.
            row: Plain numbers and texts.
            about: What a reader of the file may want to know of it.

        Raises:
            DataError: The file cannot be written: another process holds it for a minute, or the disk is full.
        """
        if self._path is None:
            self._rows.setdefault(key, dict(row))
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._opened() as file, file:
            file.execute("BEGIN IMMEDIATE")
            file.execute(_TABLE)
            file.execute("INSERT OR IGNORE INTO rows VALUES (?, ?, ?)", (key, _text(row), _text(about)))

    def _found(self, key: str) -> dict[str, Any] | None:
        if self._path is None or not self._path.exists():
            return self._rows.get(key)
        with self._opened() as file:
            if not file.execute("PRAGMA table_info(rows)").fetchall():
                return None
            found = file.execute("SELECT row FROM rows WHERE key = ?", (key,)).fetchone()
        return None if found is None else json.loads(found[0])

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        """Open the file for a moment, so that any thread may and a fork takes no lock along."""
        try:
            file = sqlite3.connect(str(self._path), timeout=_WAIT_S, isolation_level=None)
            try:
                yield file
            finally:
                file.close()
        except sqlite3.DatabaseError as error:
            if error.sqlite_errorcode == sqlite3.SQLITE_NOTADB:
                with open(str(self._path), "rb") as raw:
                    start = raw.read(60).decode(errors="replace").strip()
                old = ", the JSON lines of an earlier version" if start.startswith('{"key": "') else ""
                raise self._strange(f"begins with {start!r}{old}") from error
            raise DataError(
                f"the store {self._path} cannot be read or written: {error}. See that its folder exists, that the disk "
                "has room, and that no other process holds it."
            ) from error

    def _strange(self, what: str) -> DataError:
        return DataError(f"{self._path} {what}, and is no store of rows; give the store a file of its own")


def _text(value: Mapping[str, Any]) -> str:
    return json.dumps(dict(value))
