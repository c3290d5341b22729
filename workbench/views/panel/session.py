"""What one person's browser tab holds: the round on the screen, and the conversation before it."""

from __future__ import annotations

import random
import string
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from workbench.errors import ConfigError
from workbench.views.panel.panes import Written, differing, pane_html, plain, routing_html, surprising, turns_html
from workbench.views.panel.votes import Pane, Vote, answer_hash

LETTERS = string.ascii_uppercase
MARKS = ("differences", "nothing")
"""What can be marked in the answers, besides `surprise: NAME`."""


@dataclass(kw_only=True)
class Session:
    """One tab's round; the panel changes it in place.

    Args:
        tokenizer: Of all variants.
        round: Names the answers on the screen; empty before the first question, new with every new answer.
        prompt: What was asked.
        order: The variants in the panes, from left to right.
        blind: Whether their names are hidden until the vote.
        voted: Whether this round has its vote.
        settings: `max_new_tokens`, `temperature` and `seed`.
        answers: By variant.
        turns: Earlier prompts with every variant's answer.
        mark: What is marked in the answers: one of `MARKS`, or `surprise: NAME`.
        bits: By variant, the surprise of its tokens under the chosen judge.
    """

    tokenizer: Any = None
    round: str = ""
    prompt: str = ""
    order: list[str] = field(default_factory=list)
    blind: bool = False
    voted: bool = False
    settings: dict[str, Any] = field(default_factory=dict)
    answers: dict[str, Written] = field(default_factory=dict)
    turns: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    mark: str = MARKS[0]
    bits: dict[str, list[float]] = field(default_factory=dict)

    def begin(
        self, prompt: str, names: Sequence[str], settings: dict[str, Any], *, blind: bool, chat: bool, turns: int
    ) -> None:
        """Start a round; in a conversation the one before it becomes history.

        Args:
            prompt: What is asked.
            names: Variants to ask; a blind round draws two of them and shuffles them.
            settings: As in the class.
            blind: Whether their names are hidden.
            chat: Whether the answers so far are kept as history.
            turns: Most turns of a conversation.

        Raises:
            ConfigError: Too few variants are chosen, or the conversation is too long.
        """
        if len(names) < 1 + blind:
            raise ConfigError(f"{len(names)} models are chosen; take at least {1 + blind} in the settings.")
        goes_on = chat and bool(self.round) and blind == self.blind and (blind or list(names) == self.order)
        if goes_on and len(self.turns) + 1 >= turns:
            raise ConfigError(f"This conversation has {turns} turns, the most allowed here. Begin a new one.")
        if goes_on:
            said = {name: answer.text for name, answer in self.answers.items()}
            self.turns = [*self.turns, (self.prompt, said)]
        else:
            self.turns = []
            self.order = random.SystemRandom().sample(list(names), 2) if blind else list(names)
        self.prompt, self.blind, self.settings = prompt, blind, settings
        self.renew(self.order)

    def renew(self, names: Sequence[str]) -> None:
        """Forget some answers of the round, which are asked for again."""
        self.round, self.voted = uuid4().hex, False
        kept = {name: answer for name, answer in self.answers.items() if name in self.order}
        self.answers = kept | {name: Written(seed=self.settings.get("seed", 0)) for name in names}
        self.bits = {}

    def messages(self, name: str) -> list[dict[str, str]]:
        """Return the conversation as one variant knows it: with its own answers."""
        chat = []
        for asked, said in self.turns:
            chat += [{"role": "user", "content": asked}, {"role": "assistant", "content": said.get(name, "")}]
        return [*chat, {"role": "user", "content": self.prompt}]

    @property
    def ended(self) -> bool:
        """Whether there is a round, and all its answers are there."""
        return bool(self.order) and all(self.answers[name].ended for name in self.order)

    @property
    def named(self) -> bool:
        """Whether names may be shown."""
        return not self.blind or self.voted

    def answered(self) -> list[str]:
        """Return the variants that did not fail."""
        return [name for name in self.order if self.answers[name].state != "failed"]

    def pane(self, i: int) -> str:
        """Return the i-th pane as HTML."""
        name = self.order[i]
        before = turns_html([(asked, said.get(name, "")) for asked, said in self.turns])
        return pane_html(
            LETTERS[i], name if self.named else None, self.answers[name], body=self._body(name), before=before
        )

    def _body(self, name: str) -> str:
        answer, answered = self.answers[name], self.answered()
        if name in self.bits and answer.token_ids:
            body = surprising(answer.token_ids, self.bits[name], self.tokenizer)
        elif self.mark == MARKS[0] and self.ended and name in answered:
            # The first answer is compared with all others, every other one with the first.
            others = answered[1:] if name == answered[0] else answered[:1]
            body = differing(answer.text.lstrip(), [self.answers[other].text for other in others])
        else:
            body = plain(answer.text.lstrip())
        routing = answer.routing if self.named else None
        return body + (routing_html(routing, self.tokenizer) if routing is not None else "")

    def vote(self, choice: str) -> Vote:
        """Return the vote for a letter, for `tie` or for `bad`.

        Raises:
            ConfigError: There is nothing to vote on, or the round has its vote.
        """
        answered = self.answered() if self.ended else []
        if self.voted or len(answered) < 2:
            why = "this round has its vote" if self.voted else f"{len(answered)} answers are there"
            raise ConfigError(f"A vote compares two or more finished answers once, and {why}. Ask again.")
        winner = self.order[LETTERS.index(choice)] if choice in LETTERS[: len(self.order)] else ""
        panes = [(name, self.answers[name]) for name in answered]
        return Vote(
            round=self.round,
            verdict="best" if winner else choice,
            winner=winner,
            blind=self.blind,
            prompt="\n".join([*(asked for asked, _ in self.turns), self.prompt]),
            settings={**self.settings, "turn": len(self.turns) + 1},
            panes=tuple(
                Pane(variant=name, recipe=a.recipe, answer=answer_hash(a.text), tokens=a.tokens) for name, a in panes
            ),
        )
