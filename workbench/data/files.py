"""Read rows out of files, each with its true place and, where it cannot be read, the reason."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from datasets import Dataset

from workbench.data.report import shorten
from workbench.errors import ConfigError, DataError

FORMATS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}
_WRAPPERS = ("data", "examples", "records", "rows")


@dataclass(frozen=True, kw_only=True)
class RawRow:
    """One row as the file has it: either `values` or the `problem` that kept them from being read."""

    file: str
    row: int
    line: int | None = None
    values: dict[str, Any] | None = None
    problem: str = ""
    seen: str = ""


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """How to read files of text.

    Args:
        format: One of the values of `FORMATS`; None goes by the file's ending.
        header: Whether row 1 of a CSV or TSV names the columns; None means yes unless `columns` names them.
        columns: Names for the columns of a CSV or TSV.
        delimiter: Character between cells; None means a comma for CSV and a tab for TSV.
        quote: Quote character, or None where quotes are ordinary text.
        encoding: Encoding of text files; a byte order mark is skipped in UTF-8.
    """

    format: str | None = None
    header: bool | None = None
    columns: tuple[str, ...] | None = None
    delimiter: str | None = None
    quote: str | None = '"'
    encoding: str = "utf-8"

    def __post_init__(self) -> None:
        if self.format is not None and self.format not in FORMATS.values():
            raise ConfigError(
                f"format={self.format!r} is unknown. Use one of {', '.join(sorted({*FORMATS.values()}))}."
            )
        for name, mark in (("delimiter", self.delimiter), ("quote", self.quote)):
            if mark is not None and len(mark) != 1:
                raise ConfigError(f"{name}={mark!r} must be one character, e.g. ';'.")
        try:
            "".encode(self.encoding)
        except LookupError as error:
            raise ConfigError(
                f"encoding={self.encoding!r} is unknown. Use e.g. 'utf-8', 'latin-1', 'gb18030'."
            ) from error


def read_rows(path: Path, label: str, options: ReadOptions) -> list[RawRow]:
    """Read every row of one file.

    Args:
        path: The file.
        label: How messages and the `source` column call it.
        options: How to read it.

    Returns:
        Rows in file order; blank lines are no rows.

    Raises:
        DataError: The file is missing, empty, of unknown format, or unreadable as a whole.
    """
    kind = options.format or FORMATS.get(path.suffix.lower())
    if kind is None:
        raise DataError(
            f"{label} ends in {path.suffix!r}, which names no known format. Known endings: {', '.join(FORMATS)}. "
            "Save the table as CSV, or pass format='csv' if it is one under another name."
        )
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"{label} cannot be read ({error.strerror}). Check the permissions of {path}.") from error
    if not raw.strip():
        raise DataError(f"{label} is empty ({len(raw)} bytes). A data file holds at least one row; check the path.")
    if kind == "parquet":
        return _read_parquet(path, label)
    text = _decode(raw, label, options.encoding)
    if kind in ("csv", "tsv"):
        rows = list(_read_table(text, label, options, "\t" if kind == "tsv" else ","))
    else:
        rows = list(_read_json_lines(text, label)) if kind == "jsonl" else _read_json(text, label)
    if not rows:
        hint = " If row 1 is data and no header, pass header=False." if kind in ("csv", "tsv") else ""
        raise DataError(f"{label} has no rows. A data file holds at least one.{hint}")
    return rows


def _decode(raw: bytes, label: str, encoding: str) -> str:
    if encoding.lower().replace("_", "-") in ("utf-8", "utf8"):
        if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise DataError(f"{label} is not UTF-8: it begins with the mark of UTF-16. Pass encoding='utf-16'.")
        encoding = "utf-8-sig"
    try:
        # Bad bytes survive as lone surrogates, so that they are reported with their row.
        return raw.decode(encoding, errors="surrogateescape")
    except UnicodeError as error:
        raise DataError(
            f"{label} cannot be read as {encoding} ({error}). Pass the encoding it was saved in."
        ) from error


def bad_bytes(text: str) -> str:
    """Describe the first byte that the encoding could not read, or return an empty string."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        what = f"byte 0x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else "a broken Unicode escape"
        return f"holds {what}, which is not UTF-8; save the file as UTF-8, or pass encoding='latin-1', 'gb18030' ..."
    return ""


def _json_row(text: str, **place: Any) -> RawRow:
    problem = bad_bytes(text)
    if problem:
        return RawRow(problem=problem, seen=shorten(text), **place)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        return RawRow(problem=f"is not readable JSON ({error})", seen=shorten(text), **place)
    return _object_row(value, **place)


def _object_row(value: object, **place: Any) -> RawRow:
    if isinstance(value, dict):
        return RawRow(values=value, **place)
    return RawRow(problem=f"is a JSON {type(value).__name__}; a row is an object", seen=shorten(value), **place)


def _read_json_lines(text: str, label: str) -> Iterator[RawRow]:
    # Not splitlines(): it also breaks at U+2028 and U+0085, which JSON strings may hold.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield _json_row(line, file=label, row=number, line=number)


def _read_json(text: str, label: str) -> list[RawRow]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        lines = [line for line in text.split("\n") if line.strip()][:2]
        if any(_json_row(line, file=label, row=0).values is not None for line in lines):
            return list(_read_json_lines(text, label))
        raise DataError(f"{label} is not readable JSON ({error}). Mend the file, or load an intact copy.") from error
    if isinstance(value, dict):
        value = _unwrap(value, label)
    if not isinstance(value, list):
        raise DataError(f"{label} holds a JSON {type(value).__name__}. It must hold a list or an object of records.")
    return [_object_row(item, file=label, row=number) for number, item in enumerate(value, start=1)]


def _unwrap(value: dict[str, Any], label: str) -> list[Any]:
    wrapped = [key for key in _WRAPPERS if isinstance(value.get(key), list)]
    if len(wrapped) == 1:
        return value[wrapped[0]]
    if not all(isinstance(item, dict) for item in value.values()):
        raise DataError(
            f"{label} holds one JSON object with the keys {shorten(list(value))}. It must be a list of records, an "
            f"object of records by id, or have the list under one of {', '.join(_WRAPPERS)}; for one record a line "
            "pass format='jsonl'."
        )
    return [{"id": key, **item} for key, item in value.items()]


def _read_table(text: str, label: str, options: ReadOptions, delimiter: str) -> Iterator[RawRow]:
    records = _table_records(text, options, options.delimiter or delimiter)
    names = list(options.columns or ())
    if options.header or (options.header is None and not names):
        _, _, first, problem = next(records)
        if problem:
            raise DataError(f"{label}: the header {problem}.")
        names = names or [cell.strip() or f"column{i}" for i, cell in enumerate(first, start=1)]
    _check_names(names, label)
    for row, line, cells, problem in records:
        names = names or [f"column{i}" for i in range(1, len(cells) + 1)]
        problem = problem or bad_bytes("".join(cells))
        if not problem and len(cells) != len(names):
            problem = f"has {len(cells)} cells where {len(names)} columns are named ({shorten(names)})"
        values = None if problem else dict(zip(names, cells))
        seen = shorten(cells or None) if problem else ""
        yield RawRow(file=label, row=row, line=line, values=values, problem=problem, seen=seen)


def _check_names(names: list[str], label: str) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(
            f"{label} has more than one column called {shorten(twice)}. Names must differ: pass columns=[...] and "
            "header=True to rename them, or header=False if row 1 is data."
        )


def _table_records(text: str, options: ReadOptions, delimiter: str) -> Iterator[tuple[int, int, list[str], str]]:
    quoting = csv.QUOTE_MINIMAL if options.quote else csv.QUOTE_NONE
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=delimiter, quotechar=options.quote or '"', quoting=quoting, strict=True
    )
    row = 0
    while True:
        line, limit = reader.line_num + 1, csv.field_size_limit(sys.maxsize)
        try:
            cells, problem = next(reader), ""
        except StopIteration:
            return
        except csv.Error as error:
            cells = []
            problem = f"is not readable ({error}); if quotes are ordinary text in this file, pass quote=None"
        finally:
            csv.field_size_limit(limit)
        row += 1
        if cells or problem:
            yield row, line, cells, problem


def _read_parquet(path: Path, label: str) -> list[RawRow]:
    try:
        with TemporaryDirectory() as cache:
            table = Dataset.from_parquet(str(path), cache_dir=cache, keep_in_memory=True)
            return dataset_rows(table, label)
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{label} is not a readable Parquet file ({type(error).__name__}: {error}).") from error


def dataset_rows(table: Any, label: str) -> list[RawRow]:
    """Number the rows of a `datasets.Dataset` from 1.

    Raises:
        DataError: The dataset has no rows.
    """
    if not len(table):
        raise DataError(f"{label} has no rows. A data file holds at least one.")
    return [RawRow(file=label, row=number, values=row) for number, row in enumerate(table, start=1)]
