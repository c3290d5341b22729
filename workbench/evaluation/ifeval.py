"""IFEval's 25 verifiable instructions by lm-eval's own checkers, without any download.

The meta of an example holds IFEval's own columns, `instruction_id_list` and `kwargs`.

Source: Zhou et al. (2023), arXiv 2311.07911, table 1 and section 2; `lm_eval.tasks.ifeval` of lm-evaluation-harness.
Deviates: sentences are split by nltk's Punkt without its trained list of abbreviations, which would be downloaded, so
that `e.g. this` may count as two; a letter to count may be a mark such as `#`, for which the reference draws a random
letter; langdetect draws with a fixed seed; an argument that is missing or out of range is an error, where the reference
draws one at random.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from functools import cache
from io import StringIO
from typing import Any

import pandas as pd

from workbench.errors import DataError
from workbench.evaluation.intervals import interval, ratio_interval
from workbench.evaluation.pairs import paired
from workbench.records import Example, Output, Rows


def ifeval(example: Example, output: str) -> float:
    """Prompt-level strict accuracy: 1 if the output follows every instruction as it stands, else 0.

    Raises:
        DataError: The meta holds no instructions, or one that lm-eval's checkers do not take.
    """
    return float(all(followed(example, output)))


def followed(example: Example, output: str, *, loose: bool = False) -> tuple[bool, ...]:
    """Say for each instruction in the example's meta whether the output follows it; an empty output follows none.

    Args:
        example: Its meta holds `instruction_id_list` and `kwargs`.
        output: What the model wrote.
        loose: Whether it also counts where one of the eight variants of the output follows: without its first line, its
            last line, or both, each with and without asterisks.

    Raises:
        DataError: The meta holds no instructions, or one that lm-eval's checkers do not take.
    """
    texts = [text for text in (_variants(output) if loose else [output]) if text.strip()]
    return tuple(any(map(check, texts)) for check in _checks(example))


def instruction_report(examples: Rows, outputs: Sequence[str] | Sequence[Output], *, seed: int = 0) -> pd.DataFrame:
    """Return the accuracies of IFEval with 95 % intervals, strict and loose, and those of each type of instruction.

    Args:
        examples: With IFEval's columns in their meta.
        outputs: One text for each, or the records of `Scores.outputs[task]`.
        seed: Of the bootstrap.

    Returns:
        Rows `prompt` (all instructions of a prompt followed), `instruction` (each counts by itself) and one for each
        type, all once `strict` and once `loose`. Columns: level, reading, value, low and high (0 to 1), n (prompts or
        instructions) and empty_outputs, those without text, which follow nothing. Prompts get Wilson's interval,
        instructions the bootstrap over prompts.

    Raises:
        DataError: As for `paired` and `followed`.
    """
    pairs = paired(examples, outputs)
    names = [example.details().get("instruction_id_list") or [] for example, _ in pairs]
    empty = sum(not text.strip() for _, text in pairs)
    rows = []
    for reading in ("strict", "loose"):
        marks = [followed(example, text, loose=reading == "loose") for example, text in pairs]
        whole = interval([float(all(mark)) for mark in marks], graded=False)
        rows.append(("prompt", reading, *whole, len(marks), empty))
        for level in ("instruction", *sorted({name for given in names for name in given})):
            kept = [
                [mark for mark, name in zip(*both, strict=True) if level in ("instruction", name)]
                for both in zip(marks, names, strict=True)
            ]
            parts = ratio_interval([sum(mark) for mark in kept], [len(mark) for mark in kept], seed=seed)
            rows.append((level, reading, *parts, sum(map(len, kept)), empty))
    return pd.DataFrame(rows, columns=["level", "reading", "value", "low", "high", "n", "empty_outputs"])


def _variants(output: str) -> list[str]:
    lines = output.split("\n")
    cut = ["\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1])]
    return [text for whole in (output, *cut) for text in (whole, whole.replace("*", ""))]


def _checks(example: Example) -> list[Callable[[str], bool]]:
    meta = example.details()
    names, arguments = meta.get("instruction_id_list"), meta.get("kwargs")
    if not names or not isinstance(arguments, list) or len(arguments) != len(names):
        raise DataError(
            f"example {example.id!r} has the meta {example.meta[:80]}; `ifeval` needs IFEval's columns there: "
            'load_examples(..., meta=["instruction_id_list", "kwargs"])'
        )
    try:
        return [_check(name, given or {}) for name, given in zip(names, arguments, strict=True)]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"example {example.id!r} asks for {names} with {arguments}, which lm-eval's checkers do not take "
            f"({type(error).__name__}: {error}); correct its meta, or leave it out and say so"
        ) from error


def _check(name: str, kwargs: dict[str, Any]) -> Callable[[str], bool]:
    checker = _checkers()[name](name)
    given = {key: value for key, value in kwargs.items() if value is not None}
    if set(given) != set(checker.get_instruction_args_keys()):
        raise ValueError(f"{name} takes {', '.join(checker.get_instruction_args_keys()) or 'no argument'}")
    checker.build_description(**given)
    built = checker.get_instruction_args() or {}
    odd = any(built[key] != value for key, value in given.items() if isinstance(value, int | float))
    if odd or given.get("nth_paragraph", 1) > given.get("num_paragraphs", 1):
        raise ValueError(f"a number of {name} is out of range")
    if "letter" in given:
        if len(given["letter"]) != 1:
            raise ValueError("letter must be one character")
        checker._letter = given["letter"].lower()
    if name in _COUNTS:
        return lambda text: _COUNTS[name](text, *(built[key] for key in checker.get_instruction_args_keys()))
    return lambda text: _follows(checker, text)


def _follows(checker: Any, text: str) -> bool:
    try:
        return bool(checker.check_following(text))
    except RecursionError:  # JSON nested deeper than Python reads
        return False
    except re.error as error:
        raise DataError(
            f"{checker.id} has the arguments {checker.get_instruction_args()}, and lm-eval reads words as regular "
            f"expressions ({error}); put a backslash before the marks in them"
        ) from error


@cache
def _checkers() -> dict[str, Any]:
    """Return lm-eval's classes by name; what it would download while it is imported is used by no check here."""
    import langdetect
    import nltk

    download = nltk.download
    nltk.download = lambda *_, **__: False
    try:
        with redirect_stdout(StringIO()):  # it says that it has downloaded
            from lm_eval.tasks.ifeval.instructions_registry import INSTRUCTION_DICT
    finally:
        nltk.download = download
    langdetect.DetectorFactory.seed = 0
    return INSTRUCTION_DICT


def _sentences(text: str) -> list[str]:
    from nltk.tokenize import PunktSentenceTokenizer

    return PunktSentenceTokenizer().tokenize(text)


def _enough_sentences(text: str, number: int, relation: str) -> bool:
    return (len(_sentences(text)) >= number) == (relation == "at least")


def _enough_capitals(text: str, number: int, relation: str) -> bool:
    from nltk.tokenize import NLTKWordTokenizer

    words = (word for sentence in _sentences(text) for word in NLTKWordTokenizer().tokenize(sentence))
    return (sum(word.isupper() for word in words) >= number) == (relation == "at least")


_COUNTS = {
    "length_constraints:number_sentences": _enough_sentences,
    "change_case:capital_word_frequency": _enough_capitals,
}
