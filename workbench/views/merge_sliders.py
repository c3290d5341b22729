"""The widget in which a blend of models is moved by hand, and what it answers, knows and has forgotten is seen."""

from __future__ import annotations

import html
import threading
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import pandas as pd

from workbench.errors import ConfigError, WorkbenchError
from workbench.merging.recipe import METHODS, options_of
from workbench.views.answers import NOTICE, fallback_table, short_names
from workbench.views.blend_chart import BlendChart, nearest_scores
from workbench.views.controls import BlendWeights, CopyBox, DepthCurve
from workbench.views.forms import box, button, field, status_line
from workbench.views.front import about_line, check_parents, curves, method_of
from workbench.views.merge_settings import MergeSettings
from workbench.views.panes import AnswerPanes
from workbench.views.preview import Preview, Request
from workbench.views.recipe_table import recipe_line, recipe_table, start_weights, yaml_text
from workbench.views.saving import save_model
from workbench.views.worker import LatestWorker, PromptView

DEFAULT_PROMPT = "What is the first-line treatment of asthma?"
FALLBACK_WAIT_S = 10.0
"""How long showing the widget waits for its first answers, so that the saved notebook holds them."""

HOW_TO_READ = (
    "How to read this: move the slider, or focus it and press the arrow keys. Every model gets the same prompt and "
    "writes its likeliest words (greedy, so there is no seed). One prompt is one example (n = 1): what a blend knows "
    "in general is in scores over many."
)
HOW_TO_READ_CHART = (
    "How to read this: left, each score against the ratio; right, both scores at once, so up and to the right is "
    "better. The marker is where the slider stands."
)


class MergeSliders(PromptView, widgets.VBox):
    """Sliders over the weights of a merge, with live answers of the parents and of the blend to one prompt.

    A movement makes a new recipe, stops the running preview and starts the next one on a thread of the widget's own.
    When it is at rest (`wait`), `live.model` carries the recipe that is shown.

    Args:
        live: A `LiveMerge` with a tokenizer; its present recipe is where the sliders start.
        prompt: What the models are asked first; None takes the first of `prompts`.
        prompts: Example prompts to pick from; a mapping gives them short names.
        front: What `sweep` returned for these two parents; None leaves the charts out.
        max_new_tokens: Most tokens of each answer, at least 1.
        step: What one press of an arrow key adds to a weight, above 0 and at most 0.5.

    Raises:
        ConfigError: An argument is out of range, there is one parent alone, the recipe's weights are filters by
            tensor name, or `front` lacks the columns of a sweep or is one of other parents.
    """

    def __init__(
        self,
        live: Any,
        *,
        prompt: str | None = None,
        prompts: Sequence[str] | Mapping[str, str] = (),
        front: pd.DataFrame | None = None,
        max_new_tokens: int = 48,
        step: float = 0.05,
    ) -> None:
        _check(live.recipe, max_new_tokens, step)
        self.live, self.recipe, self.front = live, live.recipe, front
        self.names = short_names(live.parents)
        self._guard = threading.RLock()
        self._request: Request | None = None
        self._error = ""
        examples = dict(prompts) if isinstance(prompts, Mapping) else {text: text for text in prompts}
        self._make_controls(examples, step)
        self._prompt.value = prompt if prompt is not None else next(iter(examples.values()), DEFAULT_PROMPT)
        self._make_chart()
        self._make_tools()
        self.panes = AnswerPanes(live.parents, self.names)
        self._status = widgets.HTML(status_line("Starting …"))
        super().__init__(children=self._layout())
        self.add_class("wb-view")
        self._preview = Preview(live, self._show_answer, max_new_tokens=max_new_tokens)
        self._worker = LatestWorker(self._work, self._failed)
        self._connect()
        self._show_recipe()
        self.refresh()

    # What a notebook calls.

    @property
    def answers(self) -> dict[str, str]:
        """The answers as far as they are written, by the parents' names and `blend`."""
        return {"blend" if parent is None else str(parent): text for parent, text in self.panes.answers.items()}

    @property
    def first_token_ms(self) -> float | None:
        """Milliseconds from the last movement to the blend's first new token; None before it."""
        return self._preview.first_token_ms

    def refresh(self) -> None:
        """Ask the models the current prompt again with the current recipe."""
        with self._guard:
            self._request = Request(recipe=self.recipe, prompt=self.prompt, asked_at=time.perf_counter())
            self._submit(self._request)

    def save(self, folder: str | Path) -> None:
        """Write the blend that is shown into a new folder, on the widget's thread; the outcome stands in the widget."""
        self._saved.value = status_line("Saving …")
        self._submit((self.recipe, folder), must_run=True)

    # What is built once.

    def _make_controls(self, examples: Mapping[str, str], step: float) -> None:
        weights, points = start_weights(self.recipe)
        self.weights = BlendWeights(self.names, weights, step=step)
        two = len(self.names) == 2
        labels = [f"Share of {self.names[1]}"] if two else [f"Weight of {name}" for name in self.names]
        self.curves = [DepthCurve(label, curve, step=step) for label, curve in zip(labels, points)]
        curved = any(not isinstance(weight, float) for weight in self.recipe.weights)
        self.curved = widgets.Checkbox(value=curved, description="A curve over depth", indent=False)
        self.settings = MergeSettings(self.recipe)
        methods = [method for method in METHODS if method == self.recipe.method or self._allows(method)]
        self.method = field(widgets.Dropdown(options=methods, value=self.recipe.method, description="Method"))
        self._prompt = field(widgets.Textarea(description="Prompt", continuous_update=False, rows=3), grow=True)
        options = [("choose …", ""), *((_shorten(name), text) for name, text in examples.items())]
        self._picker = field(widgets.Dropdown(options=options, value="", description="Example prompts"))
        self._ask = button("Ask", "Ask all models this prompt")

    def _make_chart(self) -> None:
        self.chart = None
        if self.front is None:
            return
        if len(self.names) != 2:
            raise ConfigError(f"front belongs to two parents, and there are {len(self.names)}; leave front out")
        check_parents(self.front, self.live.parents)
        self._measured = method_of(self.front) or self.recipe.method
        self.chart = BlendChart(self.front, label=self._label)
        self.chart.position = self.weights.position
        # The link lives in the browser, so the marker moves even while the kernel is busy.
        self._link = widgets.jslink((self.weights, "position"), (self.chart, "position"))

    def _make_tools(self) -> None:
        label = "This recipe as mergekit YAML"
        full = partial(self._yaml_text, absolute=True)
        self._yaml = CopyBox(full, caption="Copy as mergekit YAML", label=label)
        self._table = widgets.HTML()
        self._folder = field(widgets.Text(value="out/merged", description="A new folder for it"))
        self._save = button("Save merged model", "Save the blend as safetensors into this folder")
        self._saved = widgets.HTML(status_line(""))

    def _layout(self) -> list[widgets.Widget]:
        title = f"<h3>A blend of {html.escape(' and '.join([', '.join(self.names[:-1]), self.names[-1]]))}</h3>"
        self._curve_box = box(self.curves, "wb-curves")
        settings = box([box([self.method, self.curved], "wb-row"), self.settings])
        asking = [self._prompt, box([self._picker, self._ask], "wb-side")]
        rows: list[widgets.Widget] = [
            widgets.HTML(f'{title}<p class="wb-note">{HOW_TO_READ}</p>'),
            box([self.weights, settings, self._curve_box], "wb-card"),
            box(asking, "wb-row", "wb-asking"),
            self.panes,
            self._status,
        ]
        if self.chart is not None and self.front is not None:
            about = html.escape(about_line(self.front, curves(self.front)))
            head = f'<h4>What the blend knows, and what it has forgotten</h4><p class="wb-note">{HOW_TO_READ_CHART}</p>'
            foot = widgets.HTML(f'<p class="wb-note">{about[:1].upper()}{about[1:]}.</p>')
            rows.append(box([widgets.HTML(head), self.chart, foot], "wb-card"))
        tools = [
            box([widgets.HTML("<h4>The recipe for mergekit</h4>"), self._yaml]),
            box([widgets.HTML("<h4>The recipe, layer by layer</h4>"), self._table]),
            box([widgets.HTML("<h4>Keep the blend</h4>"), self._folder, self._save, self._saved]),
        ]
        return [*rows, box(tools, "wb-tools"), widgets.HTML(f'<p class="wb-note">{NOTICE}</p>')]

    def _connect(self) -> None:
        for part in (self.weights, *self.curves, *self.settings.sliders.values()):
            part.observe(self._recompose, "chosen")
        self.curved.observe(self._toggle_curve, "value")
        self.method.observe(self._recompose, "value")
        self._prompt.observe(self._new_prompt, "value")
        self._picker.observe(self._pick, "value")
        self._ask.on_click(lambda _: self.refresh())
        self._save.on_click(lambda _: self.save(self._folder.value))

    # What happens when something is moved: short, and on whatever thread the event comes.

    def _recompose(self, change: Any = None) -> None:
        """Make a recipe of what the controls say, and preview it; a recipe that breaks a rule is only reported."""
        with self._guard:
            try:
                self.recipe = self._read_recipe(None if change is None else change["owner"])
            except WorkbenchError as error:
                self._failed(error)
                return
            self._status.value = status_line("Writing …")
            self._show_recipe()
            self.refresh()

    def _read_recipe(self, moved: Any) -> Any:
        method = self.method.value
        weights = {"weights": self._read_weights()} if METHODS[method].weighted else {}
        return self._under(method, moved, **weights)

    def _under(self, method: str, moved: Any = None, **changes: Any) -> Any:
        """The recipe under a method; one for a single parent puts the second of two into the first."""
        first, *others = self.live.parents
        if METHODS[method].most == 1 and len(others) == 1:
            changes |= {"parents": others, "base": first}
        else:
            changes |= {"parents": self.live.parents} | (
                {"base": self.live.base} if "base" in options_of(method) else {}
            )
        return self.recipe.with_method(method, **self.settings.read(self.recipe, method, moved), **changes)

    def _allows(self, method: str) -> bool:
        try:
            self._under(method)
        except ConfigError:
            return False
        return True

    def _read_weights(self) -> list[Any]:
        if not self.curved.value:
            total = sum(self.weights.chosen)
            return [round(weight / total, 6) for weight in self.weights.chosen] if total else list(self.weights.chosen)
        if len(self.curves) == 1:
            points = list(self.curves[0].chosen)
            return [[round(1 - point, 6) for point in points], points]
        return [list(curve.chosen) for curve in self.curves]

    def _toggle_curve(self, change: Any) -> None:
        """Start a curve that nobody has bent yet where the slider stands."""
        levels = self.weights.chosen[1:] if len(self.curves) == 1 else self.weights.chosen
        if change["new"] and all(len(set(curve.chosen)) == 1 for curve in self.curves):
            for curve, level in zip(self.curves, levels):
                curve.unobserve(self._recompose, "chosen")
                curve.move([level] * len(curve.chosen))
                curve.observe(self._recompose, "chosen")
        self._recompose()

    def _pick(self, change: Any) -> None:
        if change["new"]:
            self.prompt = change["new"]

    def _new_prompt(self, _: Any) -> None:
        with self._guard:
            self._request = None
            self.panes.clear()
            self.refresh()

    # What the thread calls.

    def _work(self, job: Any, stop: threading.Event) -> None:
        if not isinstance(job, Request):
            self._write_model(*job)
            return
        self._status.value = status_line("Writing …")
        finished = self._preview.run(job, stop)
        with self._guard:
            if job is self._request and finished:
                self._error = ""
                self._status.value = status_line(
                    f"Ready. First new token {self.first_token_ms or 0:.0f} ms after the move."
                )
            elif job is self._request and not stop.is_set():
                self._status.value = status_line(
                    "Stopped: other code moved these weights. Press Ask to go on from here."
                )

    def _write_model(self, recipe: Any, folder: str | Path) -> None:
        try:
            held, self.live.exact = self.live.exact, True
            try:
                self.live.apply(recipe)
            finally:
                self.live.exact = held
            with self.live.generation(preview=False):
                save_model(self.live.model, self.live.tokenizer, folder)
            self._saved.value = status_line(f"Saved to {folder}")
        except Exception as error:
            self._saved.value = status_line(str(error), error=True)

    def _failed(self, error: Exception) -> None:
        with self._guard:
            self._error = f"{type(error).__name__}: {error}"
            self._status.value = status_line(self._error, error=True)

    def _show_answer(self, request: Request, parent: str | None, text: str, done: bool) -> None:
        with self._guard:
            if request is self._request:
                self.panes.show(parent, text, done)

    # What is shown.

    @property
    def _label(self) -> str:
        return f"share of {self.names[1]}"

    def _yaml_text(self, *, absolute: bool) -> str:
        return yaml_text(self.recipe, absolute=absolute)

    def _show_recipe(self) -> None:
        method = self.method.value
        weighted = METHODS[method].weighted
        curved = self.curved.value and weighted
        self._curve_box.layout.display = "" if curved else "none"
        self.weights.disabled = curved or not weighted
        self.settings.show(method)
        self._yaml.text = self._yaml_text(absolute=False)
        self._table.value = recipe_table(self.recipe, self.live.model)
        if self.chart is None:
            return
        if curved:
            self.chart.note = "The charts show one ratio for all layers, so a curve over depth has no place on them."
        elif self.method.value != self._measured:
            self.chart.note = f"These scores were measured for {self._measured} merges; choose it to see the marker."
        else:
            self.chart.note = ""

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        """Add a plain table to the widget: it is what a saved, untrusted notebook shows."""
        self.wait(FALLBACK_WAIT_S)
        bundle: Any = super()._repr_mimebundle_(**kwargs)
        scores = "" if self.front is None else nearest_scores(self.front, self.weights.position, label=self._label)
        bundle["text/html"] = fallback_table(
            recipe=recipe_line(self.recipe),
            prompt=self.prompt,
            blend=self._error or self.panes.answers.get(None, ""),
            answers={name: self.panes.answers.get(parent) for name, parent in zip(self.names, self.live.parents)},
            scores=scores,
        )
        return bundle


def _check(recipe: Any, max_new_tokens: int, step: float) -> None:
    if max_new_tokens < 1 or not 0 < step <= 0.5:
        raise ConfigError(
            f"max_new_tokens={max_new_tokens}, step={step}: the first must be at least 1, the second above 0 and "
            "at most 0.5; the defaults are 48 and 0.05"
        )
    if len(recipe.parents) < 2:
        raise ConfigError(f"the recipe has the one parent {recipe.parents[0]!r}; a blend needs two or more, so add one")


def _shorten(text: str, width: int = 60) -> str:
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 1] + "…"
