"""Mark, word by word, what a blend says that its parents say too, and what only one of them says."""

from __future__ import annotations

import html
import string
from collections.abc import Mapping
from difflib import SequenceMatcher


def shared_words(first: list[str], second: list[str]) -> tuple[set[int], set[int]]:
    """Return the positions of the words that two texts have in common, in order.

    Args:
        first: Words of one text.
        second: Words of the other text.

    Returns:
        Positions in `first` and positions in `second` of a common subsequence, letter case ignored.
    """
    matcher = SequenceMatcher(None, [w.lower() for w in first], [w.lower() for w in second], autojunk=False)
    blocks = matcher.get_matching_blocks()
    return (
        {block.a + i for block in blocks for i in range(block.size)},
        {block.b + i for block in blocks for i in range(block.size)},
    )


def blend_html(blend: str, answers: Mapping[str, str]) -> str:
    """Return the blend's answer as HTML in which each word shows where it comes from.

    A word that every parent says is plain. A word that some parents say is underlined and followed by their letters
    (A for the first parent, B for the second, ...). A word that no parent says in that place is bold, with "new".

    Args:
        blend: The blend's answer; any text, it is escaped.
        answers: Each parent's answer to the same prompt, in the parents' order; none at all marks nothing.
    """
    words = blend.split()
    letters = dict(zip(answers, string.ascii_uppercase))
    said = {name: shared_words(words, text.split())[0] for name, text in answers.items()}
    if not said:
        return html.escape(" ".join(words))
    origins = [tuple(letters[name] for name, hits in said.items() if i in hits) for i in range(len(words))]
    return " ".join(_run_html(run, origin, len(said)) for origin, run in _runs(words, origins))


def parent_html(answer: str, blend: str) -> str:
    """Return a parent's answer as HTML, with a dotted underline below the words that the blend does not say."""
    words = answer.split()
    if not blend.split():
        return html.escape(" ".join(words))
    kept = shared_words(words, blend.split())[0]
    runs = _runs(words, [(i in kept,) for i in range(len(words))])
    parts = [(html.escape(" ".join(run)), flags[0]) for flags, run in runs]
    return " ".join(text if same else f'<span class="wb-left-out">{text}</span>' for text, same in parts)


def overlap(answer: str, blend: str) -> float | None:
    """Return the share of the blend's words that this answer says too, 0 to 1; None when the blend is empty."""
    words = blend.split()
    return len(shared_words(words, answer.split())[0]) / len(words) if words else None


def _runs(words: list[str], keys: list[tuple]) -> list[tuple[tuple, list[str]]]:
    """Group neighbouring words of one key, so that one mark covers them all."""
    runs: list[tuple[tuple, list[str]]] = []
    for word, key in zip(words, keys):
        if runs and runs[-1][0] == key:
            runs[-1][1].append(word)
        else:
            runs.append((key, [word]))
    return runs


def _run_html(run: list[str], origin: tuple[str, ...], parents: int) -> str:
    text = html.escape(" ".join(run))
    if len(origin) == parents:
        return text
    if origin:
        return f'<span class="wb-from">{text}<sup>{"".join(origin)}</sup></span>'
    return f'<strong class="wb-new">{text}<sup>new</sup></strong>'
