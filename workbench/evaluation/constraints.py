"""Machine-checkable constraints on an answer: each kind is one small function of the text."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from workbench.errors import DataError


def upper_case(answer: str) -> bool:
    """Every cased letter is a capital, and there is at least one."""
    return answer.isupper()


def lower_case(answer: str) -> bool:
    """Every cased letter is small, and there is at least one."""
    return answer.islower()


def title_case(answer: str) -> bool:
    """Every word that starts with a letter starts with a capital and is not all capitals."""
    words = [word for word in re.findall(r"[^\W_][\w'-]*", answer) if word[0].isalpha()]
    return bool(words) and all(word[0].isupper() and not word[1:].isupper() for word in words)


def exact_repeat(answer: str, value: str, times: int = 1) -> bool:
    """The answer is `value`, `times` times over, with single spaces between."""
    return answer == " ".join([value] * times)


def _is_word_of(answer: str, value: str, pattern: str) -> bool:
    return re.search(pattern.format(re.escape(value)), answer, re.IGNORECASE) is not None


def ends_with(answer: str, value: str) -> bool:
    """The last words are `value`, whatever their case; nothing follows them."""
    return _is_word_of(answer, value, r"(?<!\w){}\Z")


def starts_with(answer: str, value: str) -> bool:
    """The first words are `value`, whatever their case; nothing stands before them."""
    return _is_word_of(answer, value, r"\A{}(?!\w)")


def bullets(answer: str, count: int) -> bool:
    """There are exactly `count` lines, each `"- "` and some text."""
    lines = answer.splitlines()
    return len(lines) == count and all(re.fullmatch(r"- \S.*", line) for line in lines)


def numbered(answer: str, count: int) -> bool:
    """There are exactly `count` lines, which start `"1. "`, `"2. "` and so on."""
    lines = answer.splitlines()
    return len(lines) == count and all(
        re.fullmatch(rf"{number}\. \S.*", line) for number, line in enumerate(lines, start=1)
    )


def comma_list(answer: str, count: int) -> bool:
    """One line of exactly `count` non-empty items with commas between."""
    items = answer.split(",")
    return len(items) == count and all(item.strip() for item in items) and "\n" not in answer


def yes_no(answer: str) -> bool:
    """The answer is `yes` or `no`, whatever the case, and nothing else."""
    return answer.lower() in ("yes", "no")


def forbidden(answer: str, value: str) -> bool:
    """The word or phrase `value` does not occur, whatever its case; parts of longer words do not count."""
    return not _is_word_of(answer, value, r"(?<!\w){}(?!\w)")


def json_object(answer: str, key: str) -> bool:
    """The whole answer parses as a JSON object that has `key`."""
    try:
        parsed = json.loads(answer)
    except (ValueError, RecursionError):
        return False
    return isinstance(parsed, dict) and key in parsed


def word_count(answer: str, count: int) -> bool:
    """There are exactly `count` words, split at white space."""
    return len(answer.split()) == count


def quoted(answer: str) -> bool:
    """The whole answer stands in one pair of straight double quotes."""
    return re.fullmatch(r'"[^"]*[^"\s][^"]*"', answer) is not None


def ends_with_mark(answer: str, value: str) -> bool:
    """The last characters are the mark `value` once, after some text."""
    body = answer.removesuffix(value)
    return body != answer and bool(body) and not body.endswith(("!", "?", "."))


def mentions(answer: str, value: str) -> bool:
    """`value` occurs somewhere, whatever its case."""
    return value.lower() in answer.lower()


def spelled(answer: str, value: str | None = None) -> bool:
    """The answer is single letters joined by `-`, those of `value` where it is given (case aside)."""
    letters = re.fullmatch(r"[^\W\d_](?:-[^\W\d_])+", answer) is not None
    return letters and (value is None or answer.lower() == "-".join(value.lower()))


KINDS: dict[str, Callable[..., bool]] = {
    "upper_case": upper_case,
    "lower_case": lower_case,
    "title_case": title_case,
    "exact_repeat": exact_repeat,
    "ends_with": ends_with,
    "starts_with": starts_with,
    "bullets": bullets,
    "yes_no": yes_no,
    "forbidden": forbidden,
    "json": json_object,
    "word_count": word_count,
    "quoted": quoted,
    "ends_with_mark": ends_with_mark,
    "mentions": mentions,
    "numbered": numbered,
    "comma_list": comma_list,
    "spelled": spelled,
}
"""Kind of constraint to its check `(answer, **arguments) -> bool`; the answer comes stripped."""


def check_names(checks: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the kinds that a row's checks name, in order, after testing that each can be run.

    Args:
        checks: Objects with a `kind` out of `KINDS`; every other key is an argument of that kind.

    Returns:
        The kinds, e.g. `["upper_case", "mentions"]`.

    Raises:
        DataError: A check has no known kind, or its arguments do not fit the kind.
    """
    names = []
    for check in checks:
        kind = check.get("kind")
        if kind not in KINDS:
            raise DataError(f"check {dict(check)} has kind {kind!r}; use one of: {', '.join(KINDS)}")
        signature = inspect.signature(KINDS[kind])
        try:
            signature.bind("", **_arguments(check))
        except TypeError as error:
            wanted = ", ".join(str(p) for p in list(signature.parameters.values())[1:]) or "nothing"
            raise DataError(f"check {dict(check)}: {error}; kind {kind!r} takes {wanted} besides `kind`") from error
        names.append(kind)
    return names


def passes(answer: str, checks: Sequence[Mapping[str, Any]]) -> bool:
    """Tell whether an answer meets all of its checks; white space around it is ignored.

    An empty answer never passes, and checks are tested before the answer is, so that a
    misspelt kind cannot hide behind an early failure.

    Args:
        answer: What the model wrote.
        checks: As for `check_names`; an empty list lets every non-empty answer pass.

    Raises:
        DataError: A check has no known kind, or its arguments do not fit the kind.
    """
    names = check_names(checks)
    text = answer.strip()
    return bool(text) and all(KINDS[name](text, **_arguments(check)) for name, check in zip(names, checks))


def _arguments(check: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in check.items() if key != "kind"}
