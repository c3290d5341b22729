"""IFEval's verifiable instructions, checked without any download.

The meta of an example holds IFEval's own columns, `instruction_id_list` and `kwargs`. A value is prompt-level strict
accuracy: 1 if the answer follows every instruction as it stands.

Source: Zhou et al. (2023), arXiv 2311.07911, table 1 and section 2. Deviates, since the reference needs a download or
a language detector for it: sentences end at `.`, `!` or `?` before white space (reference: a trained splitter); words
in capitals are runs of letters and digits; 'in English' is not tested beside upper and lower case;
`language:response_language` is refused. A letter to count may also be a mark such as `#` (reference: a random letter).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from workbench.errors import DataError
from workbench.records import Example


def ifeval(example: Example, output: str) -> float:
    """1 if the output follows every IFEval instruction in the example's meta, else 0; an empty one follows none.

    Raises:
        DataError: The meta holds no instructions, or one that cannot be checked here (see `unchecked`).
    """
    meta = example.details()
    names, arguments = meta.get("instruction_id_list"), meta.get("kwargs")
    if not names or not isinstance(arguments, list) or len(arguments) != len(names):
        raise DataError(
            f"example {example.id!r} has the meta {example.meta[:80]}; `ifeval` needs IFEval's columns there: "
            'load_examples(..., meta=["instruction_id_list", "kwargs"])'
        )
    missing = unchecked(example)
    if missing:
        raise DataError(
            f"example {example.id!r} asks for {', '.join(missing)}, which needs a language detector and cannot be "
            "checked here; leave out the examples for which `unchecked` names something, and say how many"
        )
    given = [{key: value for key, value in (kwargs or {}).items() if value is not None} for kwargs in arguments]
    follows = (INSTRUCTIONS[name](output, **kwargs) for name, kwargs in zip(names, given, strict=True))
    return float(bool(output.strip()) and all(follows))


def unchecked(example: Example) -> list[str]:
    """Return the instructions of an example that `ifeval` cannot check."""
    return [name for name in example.details().get("instruction_id_list", []) if name not in INSTRUCTIONS]


def _holds(count: int, relation: str, threshold: float) -> bool:
    if relation not in ("at least", "less than"):
        raise DataError(f"an IFEval relation is {relation!r}; it must be 'at least' or 'less than'")
    return count >= threshold if relation == "at least" else count < threshold


def _keywords(text: str, keywords: list[str]) -> bool:
    return all(keyword.lower() in text.lower() for keyword in keywords)


def _frequency(text: str, keyword: str, relation: str, frequency: int) -> bool:
    return _holds(text.lower().count(keyword.lower()), relation, frequency)


def _forbidden(text: str, forbidden_words: list[str]) -> bool:
    return not any(re.search(rf"\b{re.escape(word)}\b", text, re.IGNORECASE) for word in forbidden_words)


def _letters(text: str, letter: str, let_relation: str, let_frequency: int) -> bool:
    return _holds(text.lower().count(letter.lower()), let_relation, let_frequency)


def _words(text: str, relation: str, num_words: int) -> bool:
    return _holds(len(re.findall(r"\w+", text)), relation, num_words)


def _sentences(text: str, relation: str, num_sentences: int) -> bool:
    parts = re.split(r"(?<=[.!?])[\"')\]]*\s+", text.strip())
    return _holds(sum(any(c.isalnum() for c in part) for part in parts), relation, num_sentences)


def _capitals(text: str, capital_relation: str, capital_frequency: int) -> bool:
    words = re.findall(r"[^\W_]+(?:[-'’][^\W_]+)*", text)
    return _holds(sum(word.isupper() for word in words), capital_relation, capital_frequency)


def _divided(text: str, divider: str) -> list[str] | None:
    """Parts between dividers; None if one in the middle is empty. At either end an empty part is no part."""
    parts = [part.strip() for part in re.split(divider, text)]
    return None if not all(parts[1:-1]) else [part for part in parts if part]


def _paragraphs(text: str, num_paragraphs: int) -> bool:
    return len(_divided(text, r"\*\*\*") or []) == num_paragraphs


def _two_responses(text: str) -> bool:
    parts = _divided(text, r"\*{6}") or []
    return len(parts) == 2 and parts[0] != parts[1]


def _first_word(text: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    parts = [part.strip() for part in text.split("\n\n") if part.strip()]
    if len(parts) != num_paragraphs or nth_paragraph > len(parts):
        return False
    opening = re.match(r"[\"']*([^\s.,?!'\"]*)", parts[nth_paragraph - 1])
    return opening is not None and opening[1].lower() == first_word.lower()


def _highlights(text: str, num_highlights: int) -> bool:
    single = [part for part in re.findall(r"\*[^\n*]*\*", text) if part.strip("* ")]
    double = [part for part in re.findall(r"\*\*[^\n*]*\*\*", text) if part.strip("* ")]
    return len(single) + len(double) >= num_highlights


def _sections(text: str, section_spliter: str, num_sections: int) -> bool:
    return len(re.findall(rf"{re.escape(section_spliter)}\s?\d", text)) >= num_sections


def _bullets(text: str, num_bullets: int) -> bool:
    return len(re.findall(r"^\s*(?:\*[^*\n]|-)", text, re.MULTILINE)) == num_bullets


def _postscript(text: str, postscript_marker: str) -> bool:
    letters = postscript_marker.rstrip(".").split(".")
    return re.search(r"\.\s?".join(map(re.escape, letters)), text, re.IGNORECASE) is not None


def _title(text: str) -> bool:
    return any(title.strip("<> ") for title in re.findall(r"<<[^\n]+>>", text))


def _json(text: str) -> bool:
    inner = re.sub(r"^```(?:json)?|```$", "", text.strip(), flags=re.IGNORECASE)
    try:
        json.loads(inner)
    except (ValueError, RecursionError):
        return False
    return True


_OPTIONS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")

INSTRUCTIONS: dict[str, Callable[..., Any]] = {
    "change_case:capital_word_frequency": _capitals,
    "change_case:english_capital": lambda text: text.isupper(),
    "change_case:english_lowercase": lambda text: text.islower(),
    "combination:repeat_prompt": lambda text, prompt_to_repeat: (
        text.strip().lower().startswith(prompt_to_repeat.strip().lower())
    ),
    "combination:two_responses": _two_responses,
    "detectable_content:number_placeholders": lambda text, num_placeholders: (
        len(re.findall(r"\[.*?\]", text)) >= num_placeholders
    ),
    "detectable_content:postscript": _postscript,
    "detectable_format:constrained_response": lambda text: any(option in text for option in _OPTIONS),
    "detectable_format:json_format": _json,
    "detectable_format:multiple_sections": _sections,
    "detectable_format:number_bullet_lists": _bullets,
    "detectable_format:number_highlighted_sections": _highlights,
    "detectable_format:title": _title,
    "keywords:existence": _keywords,
    "keywords:forbidden_words": _forbidden,
    "keywords:frequency": _frequency,
    "keywords:letter_frequency": _letters,
    "length_constraints:nth_paragraph_first_word": _first_word,
    "length_constraints:number_paragraphs": _paragraphs,
    "length_constraints:number_sentences": _sentences,
    "length_constraints:number_words": _words,
    "punctuation:no_comma": lambda text: "," not in text,
    "startend:end_checker": lambda text, end_phrase: (
        text.strip().strip('"').lower().endswith(end_phrase.strip().lower())
    ),
    "startend:quotation": lambda text: len(text.strip()) > 1 and text.strip()[0] == text.strip()[-1] == '"',
}
"""IFEval's name of an instruction to its check `(text, **kwargs) -> bool`."""
