"""How the columns of a file become the columns of an example.

A plain string names a column. Text that is the same for every row is written `Constant("...")`; only a `query` that
reads like a sentence (it has a space, or ends in a mark such as `?` or `:`) may stand bare, and only when no column
has a similar name, so a mistyped column never turns into text.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from workbench.data.report import RowProblem, shorten
from workbench.data.rowmap import RowMap
from workbench.data.specs import Choice, Column, Constant, Getter, Row
from workbench.errors import ConfigError, DataError

_SENTENCE_ENDS = ("?", ".", ":", "!", "？", "。", "：", "！")
_LABELS = {"skill": None, "stage": "", "split": "train"}


def make_map(specs: Mapping[str, Any], columns: Sequence[str], source: str) -> RowMap:
    """Resolve what the user wrote for each of our columns against the columns that the file has.

    Args:
        specs: Our column to a column name, `Constant`, `Column`, function, or None for the column of the same name;
            for `choices` also a list of columns; for `answer` also a `Choice`; for `meta` also a list of columns.
        columns: Names of the file's columns.
        source: What is loaded, for messages.

    Raises:
        DataError: A column is not in the file, a needed column is not mapped, or a bare word is ambiguous.
        ConfigError: A spec has a type that its column does not take.
    """
    getters: dict[str, Getter] = {}
    names: dict[str, str] = {}
    keep: dict[str, str] = {}
    for field, spec in specs.items():
        label = field in _LABELS and isinstance(spec, str)
        if label and field in columns:
            keep[field], spec = spec, Column(field)
        elif label:
            spec = _label(field, spec, columns, source)
        getters[field], names[field] = _resolve(field, spec, columns, source)
    choice = specs["answer"] if isinstance(specs["answer"], Choice) else None
    if choice and names["choices"] == "constant":
        raise ConfigError(f"answer={choice!r} marks a choice, but no choices are mapped. Pass choices=[...] too.")
    return RowMap(getters=getters, names=names, keep=keep, choice=choice)


def _label(field: str, word: str, columns: Sequence[str], source: str) -> Constant:
    if word in columns:
        raise DataError(
            f"{field}={word!r} is also a column of {source}. Write {field}=Column({word!r}) to take it from there, "
            f"or {field}=Constant({word!r}) to give every row this word."
        )
    return Constant(word)


def _resolve(field: str, spec: Any, columns: Sequence[str], source: str) -> tuple[Getter, str]:
    if spec is None:
        return _default(field, columns, source)
    if isinstance(spec, Constant) or (spec == "" and field in ("context", "answer", "stage")):
        return _constant(field, spec if isinstance(spec, str) else spec.text)
    if isinstance(spec, Choice) and field == "answer":
        return _column(field, spec.column, columns, source), spec.column
    if field == "query" and isinstance(spec, str) and _is_bare_sentence(spec, columns):
        return _constant(field, spec)
    if isinstance(spec, str | Column):
        name = spec if isinstance(spec, str) else spec.name
        get = _column(field, name, columns, source)
        return _present(get, name) if field == "choices" else get, name
    if isinstance(spec, list | tuple) and field in ("choices", "meta"):
        parts = {name: _column(field, name, columns, source) for name in spec}
        return lambda row: {name: get(row) for name, get in parts.items()}, ", ".join(map(str, spec))
    if callable(spec):
        return _function(field, spec), f"{field} (function)"
    raise ConfigError(
        f"{field}={spec!r} is a {type(spec).__name__}. It takes a column name, Constant('text') or a function."
    )


def _default(field: str, columns: Sequence[str], source: str) -> tuple[Getter, str]:
    if field in columns:
        # Our own optional columns may be absent from single rows of a JSON Lines file.
        if field in ("query", "answer", "skill"):
            return _column(field, field, columns, source), field
        return _optional(field), field
    if field == "skill":
        raise ConfigError(f"{source} has no column 'skill'. Say what the rows teach, e.g. skill='summarisation'.")
    if field in ("query", "answer"):
        more = " For rows without an answer, such as prompts, write answer=''." if field == "answer" else ""
        raise DataError(
            f"{source} has no column {field!r}, and {field}= is not given. Name the column that holds it. "
            f"{_columns_seen(columns)}{more}"
        )
    return _constant(field, _LABELS.get(field))


def _optional(field: str) -> Getter:
    def get(row: Row) -> Any:
        value = row.get(field)
        # `source` cannot be mapped, so a column of this name that is no text must not stand in the way.
        if value is None or (field == "source" and not isinstance(value, str)):
            return _LABELS.get(field)
        return value

    return get


def _constant(field: str, text: str | None) -> tuple[Getter, str]:
    if text is not None and not text.strip() and field in ("query", "skill", "split"):
        raise ConfigError(f"{field}={text!r} is empty. Every example has a {field}.")
    return lambda row: text, "constant"


def _column(field: str, name: str, columns: Sequence[str], source: str) -> Getter:
    if not isinstance(name, str):
        raise ConfigError(f"{field} names a column by {name!r}, a {type(name).__name__}. Columns are named by text.")
    if name not in columns:
        near = _similar(name, columns)
        raise DataError(
            f"{field}={name!r} is not a column of {source}. {_columns_seen(columns)}"
            + (f" Did you mean {near!r}?" if near else "")
            + ("" if field in ("choices", "meta") else f" For the same text in every row write Constant({name!r}).")
        )

    def get(row: Row) -> Any:
        if name not in row:
            raise RowProblem(name, "is not in this row")
        return row[name]

    return get


def _present(get: Getter, name: str) -> Getter:
    def checked(row: Row) -> Any:
        value = get(row)
        if value is None:
            raise RowProblem(name, "is missing")
        return value

    return checked


def _columns_seen(columns: Sequence[str]) -> str:
    seen = f"Its columns: {', '.join(shorten(name, 40) for name in columns)}."
    if len(columns) == 1 and any(mark in columns[0] for mark in ";\t|,"):
        seen += " It seems to use another delimiter: pass e.g. delimiter=';'."
    return seen


def _function(field: str, function: Callable[[Row], Any]) -> Getter:
    def get(row: Row) -> Any:
        try:
            return function(dict(row))
        except Exception as error:
            reason = f"the function raised {type(error).__name__}: {error}"
            raise RowProblem(f"{field} (function)", reason, row) from error

    return get


def _is_bare_sentence(text: str, columns: Sequence[str]) -> bool:
    reads_so = any(mark.isspace() for mark in text.strip()) or text.strip().endswith(_SENTENCE_ENDS)
    return reads_so and text not in columns and _similar(text, columns) is None


def _similar(name: str, columns: Sequence[str]) -> str | None:
    plain = {column.lower().replace("_", " "): column for column in columns}
    near = difflib.get_close_matches(name.lower().replace("_", " "), plain, n=1, cutoff=0.75)
    return plain[near[0]] if near else None
