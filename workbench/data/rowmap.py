"""One row of a file -> the checked values of one example."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from workbench.data.files import bad_bytes
from workbench.data.report import RowProblem
from workbench.data.specs import Choice, Getter, Row

_META_RULE = "meta is a dict, or text that holds a JSON object; meta=['column', ...] keeps columns as they are"


@dataclass(frozen=True, kw_only=True)
class RowMap:
    """Turns one row of a file into the values of an example; made by `make_map`.

    Args:
        getters: Our column to the function that finds its value in a row.
        names: Our column to the name that a message uses for where the value came from.
        keep: Labels whose own column must have this value; other rows are left out.
        choice: How `answer` marks a choice, when it does.
    """

    getters: Mapping[str, Getter]
    names: Mapping[str, str]
    keep: Mapping[str, str]
    choice: Choice | None

    def wanted(self, row: Row) -> bool:
        """Say whether a row has the skill, stage and split that were asked for."""
        return all(str(row.get(label) or "") == value for label, value in self.keep.items())

    def record(self, row: Row) -> Row:
        """Return the example's values, `id` and `source` None where the file has none.

        Raises:
            RowProblem: A value is missing, empty, of the wrong type, or no choice.
        """
        record: Row = {name: self._text(name, row) for name in ("id", "source", "skill", "split", "query")}
        record |= {name: self._text(name, row) or "" for name in ("stage", "context")}
        choices = self._choices(row)
        record["choices"] = None if choices is None else list(choices.values())
        record["answer"] = self._text("answer", row) if choices is None else self._pick(choices, row)
        record["meta"] = self._meta(row)
        return record

    def options(self, row: Row) -> dict[str, str]:
        """Return the choices of a row by their key or number, empty where it has none."""
        return self._choices(row) or {}

    def _text(self, name: str, row: Row) -> str | None:
        value, place = self.getters[name](row), self.names[name]
        optional = name in ("id", "source", "context", "stage") or place == "constant"
        return _as_text(value, place, may_be_empty=optional)

    def _choices(self, row: Row) -> dict[str, str] | None:
        value, place = self.getters["choices"](row), self.names["choices"]
        if value is None or value == "":
            if self.choice is not None:
                raise RowProblem(place, "is missing, and the answer marks a choice", value)
            return None
        if isinstance(value, list | tuple):
            value = {str(i): text for i, text in enumerate(value)}
        if not isinstance(value, dict):
            reason = "is no list or dict of choices; name their columns, choices=['A', 'B'], or split it by a function"
            raise RowProblem(place, reason, value)
        options = list(value.items())
        # Files of up to five options leave the last cells empty in rows that have fewer.
        while options and (options[-1][1] is None or not str(options[-1][1]).strip()):
            options.pop()
        if len(options) < 2:
            raise RowProblem(place, "has fewer than two choices", value)
        return {str(key): _as_text(text, place) or "" for key, text in options}

    def _pick(self, choices: dict[str, str], row: Row) -> str:
        place, texts = self.names["answer"], list(choices.values())
        value = self.getters["answer"](row)
        if self.choice is None:
            answer = _as_text(value, place) or ""
            for text in texts:
                if answer.strip() == text.strip():
                    return text
            reason = "is none of the choices"
            if looks_like_mark(answer):
                reason += f"; if it marks one, write answer=Choice({place!r}, first='A'), or first=0, or first=1"
            raise RowProblem(place, reason, value)
        mark = (_as_text(value, place) or "").strip()
        if not mark.isdecimal() and (mark in choices or mark.upper() in choices):
            return choices.get(mark) or choices[mark.upper()]
        position = self.choice.position(value)
        if position is None or not 0 <= position < len(texts):
            reason = f"marks none of the {len(texts)} choices, of which the first is {self.choice.first!r}"
            raise RowProblem(place, reason, value)
        return texts[position]

    def _meta(self, row: Row) -> str:
        value, place = self.getters["meta"](row), self.names["meta"]
        try:
            value = json.loads(value) if isinstance(value, str) and value.strip() else value or {}
            # Tables hold dates, which JSON writes as text.
            text = json.dumps(value, ensure_ascii=False, allow_nan=False, default=lambda date: date.isoformat())
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise RowProblem(place, f"cannot be written as JSON ({error}); {_META_RULE}", value) from error
        if not isinstance(value, dict):
            raise RowProblem(place, f"is no object; {_META_RULE}", value)
        return _as_text(text, place) or ""


def looks_like_mark(text: str) -> bool:
    """Say whether an answer looks like the letter or number of a choice."""
    return (len(text) == 1 and text.isalnum()) or text.isdecimal()


def _as_text(value: object, place: str, *, may_be_empty: bool = False) -> str | None:
    if isinstance(value, bool) or not isinstance(value, str | int | float | None):
        hint = "e.g. lambda row: ' '.join(row['tokens'])" if isinstance(value, list) else "to say how it is written"
        raise RowProblem(place, f"is a {type(value).__name__}, not text; pass a function, {hint}", value)
    text = None if value is None or value != value else str(value)  # NaN is how tables write a missing cell
    if text is None or not text.strip():
        if may_be_empty:
            return text
        raise RowProblem(place, "is missing" if text is None else "is empty", text)
    problem = bad_bytes(text)
    if problem:
        raise RowProblem(place, problem, text)
    return text
