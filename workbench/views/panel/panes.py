"""How one answer looks: its name, its text with what is special in it, and a foot with its figures; all escaped."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from typing import Any

import numpy as np

from workbench.records import RoutingTrace
from workbench.routing.stats import first_expert
from workbench.views.router_drawing import tint
from workbench.views.router_pictures import router_labels
from workbench.views.router_text import token_texts

STATES = {"waiting": "waiting", "writing": "writing …", "done": "", "stopped": "stopped", "failed": "failed"}
"""What the head of a pane says in each state of an answer."""


@dataclass(frozen=True, kw_only=True)
class Written:
    """An answer as it stood at one moment.

    Args:
        text: What is written so far.
        state: As in `generation.Answer`.
        place: In the queue, 1 for the next; 0 for one that is being written.
        error: Why it failed.
        tokens: Tokens so far.
        first_token_s: Seconds from the question to the first token.
        seconds: Seconds from the question to the end, or to now.
        seed: Of its noise.
        recipe: The merge behind it as JSON text, or an empty text.
        share: The second parent's share in that merge, where it is one number.
        token_ids: The tokens, where they are known.
        routing: What the routers of a mixture decided.
    """

    text: str = ""
    state: str = "waiting"
    place: int = 0
    error: str = ""
    tokens: int = 0
    first_token_s: float | None = None
    seconds: float = 0.0
    seed: int = 0
    recipe: str = ""
    share: float | None = None
    token_ids: tuple[int, ...] = ()
    routing: RoutingTrace | None = field(default=None, repr=False, compare=False)

    @property
    def ended(self) -> bool:
        """Whether nothing more will come."""
        return self.state in ("done", "stopped", "failed")


def pane_html(letter: str, name: str | None, answer: Written | None, *, body: str, before: str = "") -> str:
    """Return one pane.

    Args:
        letter: A, B, ...: what votes call it.
        name: The variant's name, None while it is hidden.
        answer: The answer, None before anything was asked.
        body: The answer's text as HTML.
        before: Earlier turns of the conversation as HTML.
    """
    title = f"<span class='wb-letter'>{letter}</span> {html.escape(name) if name is not None else 'name hidden'}"
    if answer is None:
        return _pane(title, "", before, "", "&nbsp;")
    state = STATES[answer.state] + (f", place {answer.place} in the queue" if answer.place else "")
    if answer.state == "failed":
        why = html.escape(answer.error) if name is not None else "The reason is shown after the vote."
        body += f"<p class='wb-failed' role='alert'>This model could not answer. {why}</p>"
    return _pane(title, state, before, body, _foot(answer, name is not None))


def _pane(title: str, state: str, before: str, body: str, foot: str) -> str:
    return (
        f"<section class='wb-pane'><header><span>{title}</span><span class='wb-state'>{state}</span></header>"
        f"{before}<div class='wb-answer'>{body}</div><footer>{foot}</footer></section>"
    )


def _foot(answer: Written, named: bool) -> str:
    """Speed and recipe would give a hidden name away."""
    unit = "token" if answer.token_ids else "word"
    parts = [f"{answer.tokens} {unit}{'s' * (answer.tokens != 1)}"]
    if named and answer.first_token_s is not None:
        writing = answer.seconds - answer.first_token_s
        parts += [f"{(answer.tokens - 1) / writing:.0f} tokens/s"] if answer.tokens > 1 and writing > 0 else []
        parts += [f"first after {answer.first_token_s:.2f} s"]
    parts += [f"seed {answer.seed}"]
    parts += [f"share {answer.share:.2f}"] if named and answer.share is not None else []
    return " · ".join(parts)


def plain(text: str) -> str:
    """Return a text as HTML that shows every character of it."""
    return html.escape(text)


def differing(text: str, others: Sequence[str]) -> str:
    """Return a text as HTML with a mark below the words that no other text says there, and `≠` where they part.

    Args:
        text: Any text; blanks and line breaks stay.
        others: The texts to compare with; none marks nothing. With several there is no one place where they part.
    """
    pieces = re.findall(r"\S+|\s+", text)
    places = [i for i, piece in enumerate(pieces) if not piece.isspace()]
    words = [pieces[i] for i in places]
    if not others:
        return html.escape(text)
    said = set().union(*(_said(words, other.split()) for other in others))
    out = [html.escape(piece) for piece in pieces]
    for n, i in enumerate(places):
        if n not in said:
            out[i] = f"<span class='wb-own'>{out[i]}</span>"
    other = others[0].split()
    if len(others) == 1 and words != other:
        parting = _common(words, other)
        at = places[parting] if parting < len(places) else len(out)
        out.insert(at, "<b class='wb-parting' title='here the answers part'>≠</b>")
    return "".join(out)


def _said(words: Sequence[str], other: Sequence[str]) -> set[int]:
    """Unlike `shared_words`, this heeds the letter case, which an instruction may have asked for."""
    blocks = SequenceMatcher(None, words, other, autojunk=False).get_matching_blocks()
    return {block.a + i for block in blocks for i in range(block.size)}


def _common(first: Sequence[str], second: Sequence[str]) -> int:
    """Return how many words two texts begin with alike."""
    length = min(len(first), len(second))
    return next((i for i in range(length) if first[i] != second[i]), length)


def surprising(ids: Sequence[int], bits: Sequence[float], tokenizer: Any) -> str:
    """Return an answer as HTML in which a token is the darker, the less it was expected; 6 bits and more underlined.

    Args:
        ids: The answer's tokens.
        bits: -log2 of each token's probability.
        tokenizer: Turns them into text.
    """
    texts = [tokenizer.decode(list(ids[:n]), skip_special_tokens=True) for n in range(len(ids) + 1)]
    texts = [text.rstrip("\ufffd").lstrip() for text in texts]
    spans = []
    for before, after, surprise in zip(texts, texts[1:], bits):
        strong = " wb-strong" if surprise >= 6 else ""
        share = min(surprise / 8, 1.0)
        spans.append(
            f"<span class='wb-bits{strong}' style='--wb-share:{70 * share:.0f}%' title='{surprise:.1f} bits'>"
            f"{html.escape(after[len(before) :])}</span>"
        )
    mean = sum(bits) / max(len(bits), 1)
    return f"{''.join(spans)}<p class='wb-note'>{mean:.1f} bits a token; darker is less expected</p>"


def turns_html(turns: Sequence[tuple[str, str]]) -> str:
    """Return the earlier turns of a conversation: what was asked, and what this model answered."""
    rows = (
        f"<p class='wb-asked'>{html.escape(asked)}</p><p class='wb-said'>{html.escape(said)}</p>"
        for asked, said in turns
    )
    return f"<div class='wb-turns'>{''.join(rows)}</div>" if turns else ""


def routing_html(trace: RoutingTrace, tokenizer: Any) -> str:
    """Return a mixture's decisions: the load of its experts as bars, and each token with its first expert.

    Args:
        trace: Of one answer.
        tokenizer: Turns token ids into text.
    """
    if not len(trace):
        return ""
    labels, parts = router_labels(trace), []
    texts = token_texts(trace, tokenizer)
    for name, output in trace.routers.items():
        first = first_expert(output)
        load = np.bincount(first, minlength=output.router_logits.shape[1]) / max(len(first), 1)
        bars = "".join(
            f"<i style='flex-grow:{share:.3f};background:{tint(e)}' title='expert {e}: {share:.0%}'>{e}</i>"
            for e, share in enumerate(load)
            if share
        )
        spans = "".join(
            f"<span style='background:{tint(int(e))}'>{html.escape(text)}<sub>{e}</sub></span>"
            for text, e in zip(texts, first)
        )
        parts.append(
            f"<details><summary>{html.escape(labels[name])} <span class='wb-load'>{bars}</span></summary>"
            f"<p class='wb-tokens'>{spans}</p></details>"
        )
    head = "Routing: the share of tokens whose first expert is 0, 1, ...; open a layer for its tokens"
    return f"<details class='wb-routing'><summary>{head}</summary>{''.join(parts)}</details>"
