"""The widget in which a blend of models is moved by hand, and what it answers, knows and has forgotten is seen."""

from __future__ import annotations

import html
import string
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import pandas as pd

from workbench.errors import ConfigError
from workbench.views.answers import LEGEND, NOTICE, blend_pane, fallback_table, parent_pane, short_names
from workbench.views.blend_chart import BlendChart
from workbench.views.controls import BlendWeights, CopyBox, DepthCurve
from workbench.views.preview import Preview, Request
from workbench.views.recipe_table import recipe_line, recipe_table, start_weights
from workbench.views.saving import save_model
from workbench.views.worker import LatestWorker

DEFAULT_PROMPT = "What is the first-line treatment of asthma?"
FALLBACK_WAIT_S = 10.0


class MergeSliders(widgets.VBox):
    """Sliders over the weights of a merge, with live answers of the parents and of the blend to one prompt.

    A movement makes a new recipe, stops the running preview and starts the next one on a thread of the widget's own.
    When it is at rest (`wait`), `live.model` carries the recipe that is shown.

    Args:
        live: A `LiveMerge`; its present recipe is where the sliders start.
        prompt: What the models are asked first; None takes the first of `prompts`.
        prompts: Example prompts to pick from; a mapping gives them short names.
        front: What `sweep` returned for these two parents; None leaves the charts out.
        max_new_tokens: Most tokens of each answer, at least 1.
        step: What one press of an arrow key adds to a weight, above 0 and at most 0.5.

    Raises:
        ConfigError: An argument is out of range, the recipe's weights are filters by tensor name, or `front` lacks
            the columns of a sweep.
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
        if max_new_tokens < 1 or not 0 < step <= 0.5:
            raise ConfigError(
                f"max_new_tokens={max_new_tokens}, step={step}: the first must be at least 1, the second above 0 and "
                "at most 0.5; the defaults are 48 and 0.05"
            )
        self.live, self.recipe = live, live.recipe
        self.names = short_names(self.recipe.parents)
        self.answers: dict[str | None, str] = {}
        self._writing = False
        examples = dict(prompts) if isinstance(prompts, Mapping) else {text: text for text in prompts}
        first = prompt if prompt is not None else next(iter(examples.values()), DEFAULT_PROMPT)
        self._preview = Preview(live, self._show_answer, max_new_tokens=max_new_tokens)
        self._make_controls(examples, first, step)
        self._make_panes()
        self._make_chart(front)
        self._make_tools()
        super().__init__(children=self._layout())
        self.add_class("wb-view")
        self._worker = LatestWorker(self._work, self._failed)
        self._connect()
        self._show_recipe()
        self.refresh()

    # What a notebook calls.

    def refresh(self) -> None:
        """Ask the models the current prompt again with the current recipe."""
        self._worker.submit(Request(recipe=self.recipe, prompt=self.prompt, asked_at=time.perf_counter()))

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the answers are complete; False when `timeout` seconds passed first."""
        return self._worker.wait(timeout)

    def save(self, folder: str | Path) -> None:
        """Write the blend that is shown into a new folder, on the widget's thread; the outcome stands in the widget."""
        self._saved.value = _line("Saving …")
        self._worker.submit((self.recipe, folder), must_run=True)

    def close(self) -> None:
        """Stop the thread and remove the widget; the live model keeps the recipe of the last move."""
        if getattr(self, "_worker", None) is not None and self._worker.alive:
            self._worker.close()
        super().close()

    @property
    def prompt(self) -> str:
        """What the models are asked."""
        return self._prompt.value

    @prompt.setter
    def prompt(self, text: str) -> None:
        self._prompt.value = text

    # What is built once.

    def _make_controls(self, examples: Mapping[str, str], prompt: str, step: float) -> None:
        weights, points = start_weights(self.recipe)
        self.weights = BlendWeights(self.names, weights, step=step)
        labels = self.names[1:] if len(self.names) == 2 else self.names
        self.curves = [DepthCurve(label, curve, step=step) for label, curve in zip(labels, points)]
        curved = any(isinstance(weight, tuple) for weight in self.recipe.weights)
        self._curved = widgets.Checkbox(
            value=curved, description="A curve over depth instead of one number", indent=False
        )
        methods = ["linear", "slerp"] if len(self.names) == 2 else ["linear"]
        self._method = _field(widgets.Dropdown(options=methods, value=self.recipe.method, description="Method"))
        self._prompt = _field(
            widgets.Textarea(value=prompt, description="Prompt", continuous_update=False, rows=3), grow=True
        )
        options = [("choose …", ""), *((_shorten(name), text) for name, text in examples.items())]
        self._picker = _field(widgets.Dropdown(options=options, value="", description="Example prompts"))
        self._ask = _button("Ask", "Ask all models this prompt")

    def _make_panes(self) -> None:
        self._blend_pane = widgets.HTML()
        self._parent_panes = {parent: widgets.HTML() for parent in self.recipe.parents}
        self._status = widgets.HTML()

    def _make_chart(self, front: pd.DataFrame | None) -> None:
        self.front = front
        two = len(self.names) == 2
        self.chart = None if front is None or not two else BlendChart(front, label=f"share of {self.names[1]}")
        if self.chart is not None:
            self.chart.position = self.weights.position
            self._link = widgets.jslink((self.weights, "position"), (self.chart, "position"))

    def _make_tools(self) -> None:
        self._yaml = CopyBox(caption="Copy as mergekit YAML", label="This recipe as mergekit YAML")
        self._table = widgets.HTML()
        self._folder = _field(widgets.Text(value="out/merged", description="New folder for the merged model"))
        self._save = _button("Save merged model", "Save the blend as safetensors into this folder")
        self._saved = widgets.HTML(_line(""))

    def _layout(self) -> list[widgets.Widget]:
        panes = [self._blend_pane, *self._parent_panes.values()]
        if len(self.names) == 2:
            panes[:2] = panes[1::-1]
        title = f"<h3>A blend of {html.escape(' and '.join(self.names))}</h3>"
        how = (
            '<p class="wb-note">How to read this: move the slider, or focus it and press the arrow keys. Every model '
            "gets the same prompt and writes its likeliest words (greedy, so there is no seed). One prompt is one "
            "example (n = 1): what a blend knows in general is in the scores.</p>"
        )
        self._curve_box = widgets.VBox(self.curves)
        tools = [
            widgets.VBox([self._yaml]),
            widgets.VBox([self._table]),
            widgets.VBox([self._folder, self._save, self._saved]),
        ]
        rows: list[widgets.Widget] = [
            widgets.HTML(title + how),
            _box([self.weights, _box([self._method, self._curved], "wb-row"), self._curve_box], "wb-card"),
            _box([self._prompt, self._picker, self._ask], "wb-row"),
            _box(panes, "wb-panes"),
            widgets.VBox([widgets.HTML(LEGEND), self._status]),
        ]
        if self.chart is not None:
            rows.append(_box([widgets.HTML(self._chart_text()), self.chart], "wb-card"))
        return [*rows, _box(tools, "wb-tools"), widgets.HTML(f'<p class="wb-note">{NOTICE}</p>')]

    def _chart_text(self) -> str:
        return (
            "<h4>What the blend knows, and what it has forgotten</h4>"
            '<p class="wb-note">How to read this: left, each score against the ratio, with its 95 % interval as a band; '
            "right, both scores at once, so up and to the right is better. The marker is where the slider stands.</p>"
        )

    # What happens when something is moved.

    def _connect(self) -> None:
        self.weights.observe(self._recompose, "chosen")
        for curve in self.curves:
            curve.observe(self._recompose, "chosen")
        self._curved.observe(self._recompose, "value")
        self._method.observe(self._recompose, "value")
        self._prompt.observe(lambda _: self._new_prompt(), "value")
        self._picker.observe(self._pick, "value")
        self._ask.on_click(lambda _: self.refresh())
        self._save.on_click(lambda _: self.save(self._folder.value))

    def _recompose(self, _: Any = None) -> None:
        """Make a recipe of what the controls say, and preview it; a recipe that breaks a rule is only reported."""
        try:
            self.recipe = self.recipe.replace(weights=self._read_weights(), method=self._method.value)
        except ValueError as error:
            self._failed(error)
            return
        self._show_recipe()
        self.refresh()

    def _read_weights(self) -> list[Any]:
        if not self._curved.value:
            total = sum(self.weights.chosen)
            return [round(weight / total, 6) for weight in self.weights.chosen] if total else list(self.weights.chosen)
        if len(self.curves) == 1:
            points = list(self.curves[0].chosen)
            return [[round(1 - point, 6) for point in points], points]
        return [list(curve.chosen) for curve in self.curves]

    def _pick(self, change: Any) -> None:
        if change["new"]:
            self.prompt = change["new"]

    def _new_prompt(self) -> None:
        self.answers.clear()
        self.refresh()

    # What the thread calls.

    def _work(self, job: Any, stop: Any) -> None:
        if isinstance(job, Request):
            self._writing = True
            self._status.value = _line("Writing …")
            self._preview.run(job, stop)
            if not stop.is_set():
                self._status.value = _line(_timing(self._preview.first_token_ms))
            return
        recipe, folder = job
        try:
            self.live.apply(recipe)
            with self.live.generation():
                path = save_model(self.live.model, self.live.tokenizer, folder)
            self._saved.value = _line(f"Saved to {path}")
        except Exception as error:
            self._saved.value = _line(str(error), error=True)

    def _failed(self, error: Exception) -> None:
        self._writing = False
        self._status.value = _line(f"{type(error).__name__}: {error}", error=True)

    def _show_answer(self, parent: str | None, text: str, done: bool) -> None:
        self.answers[parent] = text
        self._writing = not done if parent is None else self._writing
        self._show_panes(parent)
        if parent is None or done:
            self._show_panes(None)

    # What is shown.

    def _show_panes(self, only: str | None) -> None:
        blend = self.answers.get(None, "")
        if only is None:
            known = {parent: self.answers[parent] for parent in self.recipe.parents if parent in self.answers}
            marked = known if len(known) == len(self.names) else {}
            self._blend_pane.value = blend_pane("Blend", blend, marked, writing=self._writing)
        for letter, name, parent in zip(string.ascii_uppercase, self.names, self.recipe.parents):
            if only in (None, parent):
                self._parent_panes[parent].value = parent_pane(letter, name, self.answers.get(parent), blend)

    def _show_recipe(self) -> None:
        curved = self._curved.value
        self._curve_box.layout.display = None if curved else "none"
        self.weights.disabled = curved
        if self.chart is not None:
            self.chart.note = (
                "The charts show one ratio for all layers; a curve over depth is not on them." if curved else ""
            )
        self._yaml.text = self.recipe.to_yaml()
        self._table.value = recipe_table(self.recipe, self.names, self.live.model)

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        """Add a plain table to the widget: it is what a saved, untrusted notebook shows."""
        self.wait(FALLBACK_WAIT_S)
        bundle = super()._repr_mimebundle_(**kwargs)
        data = bundle[0] if isinstance(bundle, tuple) else bundle
        answers = {name: self.answers.get(parent) for name, parent in zip(self.names, self.recipe.parents)}
        data["text/html"] = fallback_table(
            recipe=recipe_line(self.recipe, self.names),
            prompt=self.prompt,
            blend=self.answers.get(None, ""),
            answers=answers,
        )
        return bundle


def _box(children: Sequence[widgets.Widget], *classes: str) -> widgets.Box:
    box = widgets.VBox(children)
    for name in classes:
        box.add_class(name)
    return box


def _field(widget: Any, *, grow: bool = False) -> Any:
    widget.add_class("wb-field")
    if grow:
        widget.add_class("wb-grow")
    return widget


def _button(text: str, tooltip: str) -> widgets.Button:
    button = widgets.Button(description=text, tooltip=tooltip)
    button.layout.width = "auto"
    return button


def _line(text: str, *, error: bool = False) -> str:
    role = "alert" if error else "status"
    return f'<div class="wb-status{" wb-error" if error else ""}" role="{role}">{html.escape(" ".join(text.split()))}</div>'


def _timing(first_token_ms: float | None) -> str:
    return "Ready." if first_token_ms is None else f"Ready. First new token {first_token_ms:.0f} ms after the move."


def _shorten(text: str, width: int = 60) -> str:
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 1] + "…"
