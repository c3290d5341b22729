"""How answers look: one pane each, and a plain table for a reader who has no widgets."""

from __future__ import annotations

import html
import string
from collections.abc import Mapping, Sequence

from workbench.views.diff import blend_html, overlap, parent_html

LEGEND = (
    '<span class="wb-note">In the blend: plain words are what every parent says; '
    '<span class="wb-from">underlined<sup>A</sup></span> words come with the letter of the parent that says them; '
    '<strong class="wb-new">bold<sup>new</sup></strong> words are said by no parent. '
    'In a parent: <span class="wb-left-out">dotted</span> words are left out by the blend.</span>'
)

NOTICE = "These are small teaching models. Nothing they write is medical advice."


def parent_pane(letter: str, name: str, answer: str | None, blend: str) -> str:
    """Return the pane of one parent as HTML; `answer` None means that it has not started to write."""
    share = overlap(answer, blend) if answer is not None else None
    foot = "&nbsp;" if share is None else f"says {share:.0%} of the blend's words"
    body = "" if answer is None else parent_html(answer, blend)
    return _pane("wb-pane", f"{letter} · {html.escape(name)}", "waiting" if answer is None else "", body, foot)


def blend_pane(title: str, blend: str, answers: Mapping[str, str], *, writing: bool) -> str:
    """Return the blend's pane as HTML, with each word's origin once every parent has answered."""
    count = len(blend.split())
    foot = f"{count} word" if count == 1 else f"{count} words"
    return _pane(
        "wb-pane wb-pane-blend", html.escape(title), "writing" if writing else "", blend_html(blend, answers), foot
    )


def _pane(classes: str, title: str, state: str, body: str, foot: str) -> str:
    return (
        f'<section class="{classes}"><header><span>{title}</span><span class="wb-state">{state}</span></header>'
        f'<div class="wb-answer">{body}</div><footer>{foot}</footer></section>'
    )


def fallback_table(
    *, recipe: str, prompt: str, blend: str, answers: Mapping[str, str | None], scores: str = "", what: str = "Merge"
) -> str:
    """Return what a saved notebook shows where widgets do not run: recipe, prompt and answers.

    Args:
        recipe: The recipe in one line.
        prompt: What was asked.
        blend: The blend's answer.
        answers: Each parent's answer, None where it was not written yet.
        scores: A sentence on what was measured, or an empty text.
        what: Which sliders.
    """
    rows = [("Recipe", recipe), ("Prompt", prompt), ("Answer of the blend", blend)]
    rows += [(f"Answer of {name}", "(not written yet)" if text is None else text) for name, text in answers.items()]
    body = "".join(f"<tr><th>{html.escape(name)}</th><td>{html.escape(text)}</td></tr>" for name, text in rows)
    return (
        f"<div><p><b>{what} sliders, as they stood when this notebook was saved.</b> Run the cell to move them.</p>"
        f"<table><tbody>{body}</tbody></table><p>{html.escape(scores)}</p><p><i>{NOTICE}</i></p></div>"
    )


def short_names(parents: Sequence[str]) -> list[str]:
    """Return the last part of each parent's name, or the letters A, B, ... in front where two would be alike."""
    tails = [str(parent).rstrip("/").rsplit("/", 1)[-1] or str(parent) for parent in parents]
    if len(set(tails)) == len(tails):
        return tails
    return [f"{letter} {tail}" for letter, tail in zip(string.ascii_uppercase, tails)]
