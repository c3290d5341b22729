"""A prompt's answer at every ratio, one below the other, written all at once, with the place where answers part."""

from __future__ import annotations

import html
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import anywidget
import ipywidgets as widgets
import torch
import traitlets
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from workbench.errors import ConfigError, WorkbenchError
from workbench.generation import context_length, encode_prompt
from workbench.views.answers import NOTICE, short_names
from workbench.views.controls import STATIC
from workbench.views.forms import button, field, status_line
from workbench.views.preview import UPDATE_S
from workbench.views.recipe_table import recipe_line
from workbench.views.worker import LatestWorker, PromptView

DEFAULT_PROMPT = "What is the first-line treatment of asthma?"
FALLBACK_WAIT_S = 20.0
"""How long showing the widget waits for its answers, so that the saved notebook holds them."""

MARK = "▸"
HOW_TO_READ = (
    f"How to read this: one row for each blend, in order. {MARK} stands where an answer parts from the row above it: "
    "the faint words before it are the same in both. A row without the mark says what the row above says. All rows are "
    "greedy, so there is no seed; one prompt is one example (n = 1)."
)


class FrameList(anywidget.AnyWidget):
    """Rows of text to choose one of, with the arrow keys and Enter, or by a click.

    `frames` holds for each row its `label`, what it `shares` with the row above, whether it `parts` from it, and the
    `rest`; `chosen` is the place of the chosen row, -1 for none.
    """

    _esm = STATIC / "filmstrip.js"
    _css = (STATIC / "workbench.css").read_text(encoding="utf-8") + (STATIC / "filmstrip.css").read_text(
        encoding="utf-8"
    )
    frames = traitlets.List(traitlets.Dict()).tag(sync=True)
    caption = traitlets.Unicode().tag(sync=True)
    pickable = traitlets.Bool(False).tag(sync=True)
    chosen = traitlets.Int(-1).tag(sync=True)


class Filmstrip(PromptView, widgets.VBox):
    """The answers of all recipes of a `RatioSpectrum` to one prompt, while they are written.

    A new prompt stops the running answers and starts the next ones on a thread of the widget's own.

    Args:
        spectrum: A `RatioSpectrum`.
        tokenizer: Its parents' tokenizer; None takes the spectrum's own.
        prompt: What is asked first.
        max_new_tokens: Most tokens of each answer, at least 1.
        on_pick: Called with the recipe of a row that is chosen, e.g. `live.apply`; None leaves rows without a choice.

    Raises:
        ConfigError: There is no tokenizer, or `max_new_tokens` is below 1.
    """

    def __init__(
        self,
        spectrum: Any,
        tokenizer: Any = None,
        *,
        prompt: str = DEFAULT_PROMPT,
        max_new_tokens: int = 48,
        on_pick: Callable[[Any], Any] | None = None,
    ) -> None:
        self.spectrum, self.tokenizer = spectrum, tokenizer or spectrum.tokenizer
        if self.tokenizer is None or max_new_tokens < 1:
            raise ConfigError(
                f"tokenizer={self.tokenizer!r}, max_new_tokens={max_new_tokens}: a filmstrip needs its parents' "
                "tokenizer and at least 1 new token. Pass both."
            )
        self.max_new_tokens, self.on_pick = max_new_tokens, on_pick
        self.labels = row_labels(spectrum)
        self.answers: list[str] = [""] * len(self.labels)
        self._guard = threading.RLock()
        self._job: Job | None = None
        self._prompt = field(widgets.Textarea(value=prompt, description="Prompt", continuous_update=False, rows=2))
        self._ask = button("Ask", "Ask every blend this prompt")
        caption = f"Answers by {row_title(spectrum)}"
        self.frames = FrameList(caption=caption, pickable=on_pick is not None)
        self._status = widgets.HTML()
        head = f'<h3>One prompt, {len(self.labels)} blends</h3><p class="wb-note">{HOW_TO_READ}</p>'
        foot = widgets.HTML(f'<p class="wb-note">{NOTICE}</p>')
        super().__init__([widgets.HTML(head), self._prompt, self._ask, self.frames, self._status, foot])
        self.add_class("wb-view")
        self._worker = LatestWorker(self._work, self._failed)
        self._prompt.observe(lambda _: self.refresh(), "value")
        self._ask.on_click(lambda _: self.refresh())
        self.frames.observe(self._pick, "chosen")
        self.refresh()

    def refresh(self) -> None:
        """Ask the current prompt again, of the spectrum's recipes as they are now."""
        with self._guard:
            self.labels = row_labels(self.spectrum)
            self._job = Job(self.prompt)
            self._show(self._job, [""] * len(self.labels), done=False)
            self._submit(self._job)

    # What the thread calls.

    def _work(self, job: Any, stop: threading.Event) -> None:
        if not isinstance(job, Job):
            if self.on_pick is not None:
                self.on_pick(job)
            self._tell(f"Chosen: {recipe_line(job)}")
            return
        started = time.perf_counter()
        texts = write_rows(
            self.spectrum,
            self.tokenizer,
            job.prompt,
            max_new_tokens=self.max_new_tokens,
            stop=stop,
            show=lambda texts: self._show(job, texts, done=False),
        )
        if not stop.is_set():
            self._show(job, texts, done=True)
            self._tell(f"Ready: {len(texts)} answers in {time.perf_counter() - started:.1f} s.")

    def _show(self, job: Job, texts: list[str], *, done: bool) -> None:
        with self._guard:
            if job is self._job:
                self.answers = texts
                self.frames.frames = frames_of(self.labels, texts, done=done)
                if not done:
                    self._tell("Writing …")

    def _failed(self, error: Exception) -> None:
        kind = "" if isinstance(error, WorkbenchError) else f"{type(error).__name__}: "
        self._tell(f"{kind}{error}", error=True)

    def _tell(self, text: str, *, error: bool = False) -> None:
        self._status.value = status_line(text, error=error)

    def _pick(self, change: Any) -> None:
        if 0 <= change["new"] < len(self.spectrum.recipes):
            self._submit(self.spectrum.recipes[change["new"]], must_run=True)

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        """Add a plain table to the widget: it is what a saved, untrusted notebook shows."""
        self.wait(FALLBACK_WAIT_S)
        bundle: Any = super()._repr_mimebundle_(**kwargs)
        bundle["text/html"] = film_table(self.prompt, row_title(self.spectrum), self.frames.frames)
        return bundle


class Job:
    """One prompt to ask; two of the same text are two jobs."""

    def __init__(self, prompt: str) -> None:
        self.prompt = prompt


class _Rows(BaseStreamer, StoppingCriteria):
    """Takes the tokens of all rows from `generate`, shows their texts now and then, and ends it on `stop`."""

    def __init__(self, ends: set[int], text: Callable[[list[int]], str], stop: threading.Event, show: Any) -> None:
        self.written: list[list[int]] | None = None
        self._ended: set[int] = set()
        self._ends, self._text, self._stop, self._show, self._shown = ends, text, stop, show, 0.0

    def put(self, value: Any) -> None:
        if self.written is None:  # the prompt comes first
            self.written = [[] for _ in value]
            return
        for row, token in enumerate(value.tolist()):
            if token in self._ends:
                self._ended.add(row)
            elif row not in self._ended:
                self.written[row].append(token)
        now = time.perf_counter()
        if now - self._shown >= UPDATE_S and not self._stop.is_set():
            self._shown = now
            self._show(self.texts())

    def end(self) -> None:
        """Nothing is held back."""

    def __call__(self, input_ids: Any, *_: Any, **__: Any) -> Any:
        return torch.full((len(input_ids),), self._stop.is_set(), device=input_ids.device)

    def texts(self) -> list[str]:
        return [self._text(row) for row in self.written or []]


def write_rows(
    spectrum: Any,
    tokenizer: Any,
    prompt: str,
    *,
    max_new_tokens: int,
    stop: threading.Event,
    show: Callable[[list[str]], Any],
) -> list[str]:
    """Answer a prompt with every recipe of a spectrum, greedily, in one batch.

    Args:
        spectrum: A `RatioSpectrum`.
        tokenizer: Its tokenizer.
        prompt: What the user says.
        max_new_tokens: Most tokens for each answer.
        stop: Set it from any thread: no further token is computed.
        show: Called while the answers grow, with the texts so far.

    Returns:
        One text for each recipe.

    Raises:
        ConfigError: The prompt has no token, or more than the model's context.
    """
    ids = encode_prompt(tokenizer, prompt)
    limit = context_length(spectrum.model)
    if limit is not None and len(ids) > limit:
        raise ConfigError(f"the prompt has {len(ids)} tokens and the model's context holds {limit}; shorten the prompt")
    most = max_new_tokens if limit is None else min(max_new_tokens, limit - len(ids) + 1)
    configured = spectrum.model.generation_config.eos_token_id
    ends = {*(configured if isinstance(configured, list) else [configured]), tokenizer.eos_token_id} - {None}
    rows = _Rows(ends, lambda row: tokenizer.decode(row, skip_special_tokens=True).rstrip("\ufffd"), stop, show)
    batch = torch.tensor([ids])
    spectrum.model.generate(
        **spectrum.expand({"input_ids": batch, "attention_mask": torch.ones_like(batch)}),
        max_new_tokens=most,
        do_sample=False,
        eos_token_id=sorted(ends) or None,
        pad_token_id=min(ends) if ends else 0,
        streamer=rows,
        stopping_criteria=StoppingCriteriaList([rows]),
    )
    return rows.texts()


def parting(above: str, text: str) -> int | None:
    """Return after how many words two texts part; None where they are word for word the same."""
    pair = above.split(), text.split()
    same = next((i for i, (a, b) in enumerate(zip(*pair)) if a != b), min(map(len, pair)))
    return None if same == len(pair[0]) == len(pair[1]) else same


def frames_of(labels: Sequence[str], texts: Sequence[str], *, done: bool) -> list[dict[str, Any]]:
    """Return each row's label and its text, cut where it parts from the row above.

    Args:
        labels: One for each row.
        texts: The answers as far as they are written.
        done: All are complete; until then, an answer that has only fewer words than its neighbour does not part.
    """
    frames = []
    for i, (label, text) in enumerate(zip(labels, texts)):
        words, place = text.split(), parting(texts[i - 1], text) if i else 0
        if i and place is not None and not done and place == min(len(words), len(texts[i - 1].split())):
            place = None
        cut = len(words) if place is None else place
        parts = bool(i) and place is not None
        frames.append({"label": label, "shares": " ".join(words[:cut]), "parts": parts, "rest": " ".join(words[cut:])})
    return frames


def film_table(prompt: str, title: str, frames: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows as an HTML table that needs no widget; every text is escaped."""
    rows = "".join(
        f'<tr><th scope="row">{html.escape(frame["label"])}</th><td style="text-align: left">'
        f"{html.escape(frame['shares'])} {f'<b>{MARK}</b> ' if frame['parts'] else ''}{html.escape(frame['rest'])}"
        "</td></tr>"
        for frame in frames
    )
    return (
        f"<div><p><b>Filmstrip, as it stood when this notebook was saved.</b> {HOW_TO_READ}</p>"
        f"<p>Prompt: {html.escape(prompt)}</p><table><thead><tr><th>{html.escape(title)}</th><th>answer</th></tr>"
        f"</thead><tbody>{rows}</tbody></table><p><i>{NOTICE}</i></p></div>"
    )


def row_title(spectrum: Any) -> str:
    """Return what tells the rows apart: the share of a parent, or the recipe."""
    shares = all(ratio is not None for ratio in spectrum.ratios) and len(set(spectrum.ratios)) == len(spectrum.ratios)
    return f"share of {short_names(spectrum.recipes[0].parents)[1]}" if shares else "recipe"


def row_labels(spectrum: Any) -> list[str]:
    """Return a label for each row, in the words of `row_title`."""
    if row_title(spectrum) != "recipe":
        return [f"{ratio:.2f}" for ratio in spectrum.ratios]
    return [recipe_line(recipe) for recipe in spectrum.recipes]
