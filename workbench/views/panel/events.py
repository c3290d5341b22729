"""What happens when somebody asks, stops, moves a slider, chooses or votes; every pane streams from one generator."""

from __future__ import annotations

import asyncio
import html
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import gradio as gr

from workbench.errors import WorkbenchError
from workbench.generation import Answer, Request, Scheduler
from workbench.merging.recipe import MergeRecipe
from workbench.views.panel.limits import Limits, RateLimit
from workbench.views.panel.panes import Written
from workbench.views.panel.results import as_html, standings
from workbench.views.panel.session import LETTERS, Session
from workbench.views.panel.votes import VoteStore

PACE = 1 / 12
"""Seconds between two pictures of growing answers: faster than a person reads, slow enough for a browser."""

MOVES = 10
"""A slider that is dragged asks often, and for one short answer at a time: so many moves weigh one question."""

CROWD = 0.01
"""Further seconds for each person who is answered at the same time, so that drawing leaves the models their time."""


@dataclass(kw_only=True)
class Form:
    """What the controls say at the moment of an event."""

    prompt: str
    view: str
    chat: bool
    models: list[str]
    length: int
    temperature: float
    seed: int
    mark: str
    shares: dict[str, float]


class Events:
    """Answer the events of all tabs.

    Args:
        scheduler: Writes the answers.
        recipes: The recipe of each variant whose ratio can be moved.
        tokenizer: Of all variants.
        limits: What one person may ask.
        store: Where votes go.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        recipes: Mapping[str, MergeRecipe],
        tokenizer: Any,
        *,
        limits: Limits,
        store: VoteStore,
    ) -> None:
        self.scheduler, self.recipes, self.tokenizer = scheduler, dict(recipes), tokenizer
        self.limits, self.store = limits, store
        self.rate, self.moves = RateLimit(limits.asks_per_minute), RateLimit(MOVES * limits.asks_per_minute)
        self.running: dict[str, dict[str, Answer]] = {}
        self.ui = SimpleNamespace()

    async def ask(self, request: gr.Request, *given: Any) -> AsyncIterator[dict]:
        """Answer a new prompt with all chosen variants."""
        session, form = self._read(given)

        def begin() -> list[str]:
            prompt = self.limits.prompt(form.prompt)
            kind = {"blind": form.view == "blind", "chat": form.chat, "turns": self.limits.turns}
            session.begin(prompt, form.models, self._settings(form), **kind)
            return session.order

        async for update in self._stream(request, session, form, begin, self.rate):
            yield update

    async def again(self, request: gr.Request, *given: Any) -> AsyncIterator[dict]:
        """Answer the same prompt anew, with the next seed."""
        session, form = self._read(given)

        def begin() -> list[str]:
            form.seed += 1
            session.settings = self._settings(form)
            session.renew(session.order)
            return session.order

        if session.round:
            async for update in self._stream(request, session, form, begin, self.rate):
                yield {**update, self.ui.seed: form.seed}

    async def move(self, request: gr.Request, *given: Any) -> AsyncIterator[dict]:
        """Answer the prompt again with the variants whose share was moved, and with them only."""
        session, form = self._read(given)
        if self.ui.picture is not None:
            yield {self.ui.picture: self.ui.draw(next(iter(form.shares.values())))}
        # The others' answers go on to their end; only then is one of them asked again.
        while str(request.session_hash) in self.running:
            await asyncio.sleep(PACE)
        moved = [
            name
            for name, share in form.shares.items()
            if name in session.order and session.answers[name].share != share and not session.blind
        ]

        def begin() -> list[str]:
            session.renew(moved)
            return moved

        if moved:
            async for update in self._stream(request, session, form, begin, self.moves):
                yield update

    def stop(self, request: gr.Request) -> None:
        """Stop this tab's answers; the generator that shows them then ends by itself."""
        for answer in self.running.get(str(request.session_hash), {}).values():
            answer.stop()

    def vote(self, choice: str, session: Session, blind_only: bool) -> dict:
        """Write a vote to the disk, then say thank you and show the names."""
        try:
            vote = session.vote(choice)
            self.store.append(vote)
        except WorkbenchError as error:
            return {self.ui.status: said(str(error), bad=True)}
        session.voted = True
        names = ", ".join(f"{letter} was {name}" for letter, name in zip(LETTERS, session.order))
        return {
            **self._panes(session),
            **self._buttons(session, writing=False),
            self.ui.status: said(f"Thank you, your vote is kept. {names if session.blind else ''}"),
            self.ui.results: self.results(blind_only),
        }

    def results(self, blind_only: bool) -> str:
        """Return the standings so far as HTML."""
        return as_html(standings([vote for vote in self.store.read() if vote.blind or not blind_only]))

    async def mark(self, mark: str, session: Session) -> dict:
        """Mark something else in the answers that are there."""
        session.mark, session.bits = mark, {}
        trouble = await self._judge(session)
        return {**self._panes(session), self.ui.status: said(trouble or asked(session), bad=bool(trouble))}

    def _read(self, given: Sequence[Any]) -> tuple[Session, Form]:
        session, prompt, view, chat, models, length, temperature, seed, mark, *shares = given
        session.tokenizer, session.mark = self.tokenizer, mark
        form = Form(
            prompt=prompt,
            view=view,
            chat=bool(chat),
            models=[name for name in self.scheduler.variants if name in models],
            length=min(max(int(length), 1), self.limits.answer_tokens),
            temperature=float(temperature),
            seed=int(seed or 0),
            mark=mark,
            shares=dict(zip(self.recipes, map(float, shares))),
        )
        return session, form

    def _settings(self, form: Form) -> dict[str, Any]:
        return {"max_new_tokens": form.length, "temperature": form.temperature, "seed": form.seed}

    async def _stream(
        self, request: gr.Request, session: Session, form: Form, begin: Callable[[], list[str]], rate: RateLimit
    ) -> AsyncIterator[dict]:
        """Show a round from its first token to its last; whoever closes the tab stops it."""
        tab = str(request.session_hash)
        self.stop(request)
        try:
            rate.ask(request.username or tab)
            names = begin()
            live = {name: self._submit(session, form, name) for name in names}
        except WorkbenchError as error:
            yield {self.ui.status: said(str(error), bad=True)}
            return
        self.running[tab] = live
        round_ = session.round
        try:
            yield {**self._panes(session), **self._buttons(session, writing=True), self.ui.status: said("Writing …")}
            shown: dict[Any, Any] = {}
            while not all(answer.wait(0) for answer in live.values()):
                await asyncio.sleep(max(PACE, CROWD * len(self.running)))
                if session.round != round_:
                    return
                session.answers |= {name: self._written(answer, form) for name, answer in live.items()}
                fresh = self._panes(session)
                yield {pane: text for pane, text in fresh.items() if shown.get(pane) != text}
                shown = fresh
        finally:
            for answer in live.values():
                answer.stop()
            if self.running.get(tab) is live:
                del self.running[tab]
        session.answers |= {name: self._written(answer, form) for name, answer in live.items()}
        trouble = await self._judge(session)
        yield {
            **self._panes(session),
            **self._buttons(session, writing=False),
            self.ui.status: said(trouble or asked(session), bad=bool(trouble)),
        }

    def _submit(self, session: Session, form: Form, name: str) -> Answer:
        settings = session.settings
        recipe = self.recipes[name].with_ratio(form.shares[name]) if name in self.recipes else None
        return self.scheduler.submit(Request(name, session.messages(name), recipe=recipe, **settings))

    def _written(self, answer: Answer, form: Form) -> Written:
        asked, name = answer.request, answer.request.variant
        return Written(
            text=answer.text,
            state=answer.state,
            place=answer.place,
            error=answer.error,
            tokens=len(answer.token_ids) or len(answer.text.split()),
            first_token_s=answer.first_token_s,
            seconds=answer.seconds,
            seed=asked.seed,
            recipe=asked.recipe.to_json() if asked.recipe else "",
            share=form.shares.get(name),
            token_ids=answer.token_ids,
            routing=answer.routing,
        )

    async def _judge(self, session: Session) -> str:
        """Measure how surprising each answer is to the chosen variant, in its present blend; return what failed."""
        judge = session.mark.removeprefix("surprise: ")
        if judge == session.mark or judge not in self.scheduler.variants or not session.ended:
            return ""
        stored = session.answers[judge].recipe if judge in session.order else ""
        recipe = MergeRecipe.from_json(stored) if stored else None
        for name in session.answered():
            request = Request(judge, session.messages(name), recipe=recipe)
            if ids := session.answers[name].token_ids:
                try:
                    bits = await asyncio.to_thread(self.scheduler.surprise, request, ids)
                except WorkbenchError as error:
                    return str(error)
                session.bits[name] = bits.tolist()
        return ""

    def _panes(self, session: Session) -> dict[Any, Any]:
        """Return every pane as it should look now; those of variants that were not asked vanish."""
        shown = len(session.order)
        return {
            pane: gr.update(value=session.pane(i) if i < shown else "", visible=i < shown)
            for i, pane in enumerate(self.ui.panes)
        }

    def _buttons(self, session: Session, *, writing: bool) -> dict[Any, Any]:
        """Nothing can be asked while answers are written, and only what is finished can be voted on."""
        answered = session.answered()
        open_ = not writing and not session.voted and len(answered) > 1
        better = "is better" if len(session.order) == 2 else "is best"
        votes = {
            button: gr.update(
                value=f"{letter} {better}",
                visible=i < len(session.order) > 1,
                interactive=open_ and i < len(session.order) and session.order[i] in answered,
            )
            for i, (letter, button) in enumerate(zip(LETTERS, self.ui.best))
        }
        several: dict[str, Any] = {"visible": len(session.order) > 1, "interactive": open_}
        return votes | {
            self.ui.tie: gr.update(**several),
            self.ui.bad: gr.update(value="Both bad" if len(session.order) == 2 else "All bad", **several),
            self.ui.send: gr.update(interactive=not writing),
            self.ui.stop: gr.update(interactive=writing),
            self.ui.again: gr.update(interactive=not writing),
        }


def asked(session: Session) -> str:
    """Return what to do with the answers that are there."""
    if not session.ended or session.voted or len(session.answered()) < 2:
        return "Done."
    return "Which answer is best? Choose below." if len(session.order) > 2 else "Which answer is better? Choose below."


def said(text: str, *, bad: bool = False) -> str:
    """Return a line for the person in front of the panel."""
    return f"<p class='wb-status{' wb-failed' * bad}' role='{'alert' if bad else 'status'}'>{html.escape(text)}</p>"
