"""What if an expert were forced, or muted: the answer as it is beside the answer under the change."""

from __future__ import annotations

import html
import threading
from typing import Any

import ipywidgets as widgets

from workbench.errors import ConfigError
from workbench.generation import stream
from workbench.records import RoutingTrace
from workbench.routing.intervene import steer_routing
from workbench.views.diff import blend_html, parent_html
from workbench.views.forms import button, field, status_line
from workbench.views.worker import LatestWorker, WorkerView

READING = (
    "How to read this: both answers are the likeliest words (greedy, so there is no seed; n = 1). Bold words are said "
    "only under the change, dotted ones only without it. An expert whose loss changes nothing may still matter "
    "elsewhere: one prompt is an anecdote."
)


class WhatIf(WorkerView, widgets.VBox):
    """Ask a model once as it is and once with an expert forced or muted, on a thread of its own.

    While it answers, whatever else runs the same model sees the change, too.

    Args:
        model: A model with routers that can use a cache.
        tokenizer: Its tokenizer.
        trace: A trace of it, which says how many layers and experts there are.
        prompt: What is asked first.
        max_new_tokens: Most tokens of each answer, at least 1.

    Raises:
        ConfigError: The model is X-LoRA's, which reads everything twice and cannot use a cache.
    """

    def __init__(self, model: Any, tokenizer: Any, trace: RoutingTrace, *, prompt: str, max_new_tokens: int) -> None:
        if hasattr(model, "internal_xlora_classifier"):
            raise ConfigError("model is X-LoRA's, which has no cache, so it cannot be asked here; leave model out")
        self.model, self.tokenizer, self.max_new_tokens = model, tokenizer, max_new_tokens
        self.answers: dict[str, str] = {}
        experts = max(output.router_logits.shape[1] for output in trace.routers.values())
        layers = sorted(set(trace.layers.values()))
        self.change = field(widgets.Dropdown(options=["mute", "force"], description="Change"))
        self.expert = field(widgets.Dropdown(options=list(range(experts)), description="Expert"))
        # None would be no choice at all, and leave the field blank.
        options: list[Any] = [("all layers", "all"), *((f"layer {layer}", [layer]) for layer in layers if layer >= 0)]
        self.layers = field(widgets.Dropdown(options=options, description="Where"))
        self.prompt = field(widgets.Textarea(value=prompt, description="Prompt", continuous_update=False, rows=2))
        self.ask = button("Ask", "Ask the model with and without the change")
        self._panes, self._status = widgets.HTML(), widgets.HTML()
        row = widgets.HBox([self.change, self.expert, self.layers, self.ask])
        row.add_class("wb-row")
        note = widgets.HTML(f'<h4>What if?</h4><p class="wb-note">{READING}</p>')
        super().__init__([note, self.prompt, row, self._panes, self._status])
        self.add_class("wb-card")
        self._worker = LatestWorker(self._work, self._failed)
        self.ask.on_click(lambda _: self.run())
        self._show("Choose an expert and press Ask.")

    def run(self) -> None:
        """Ask with what is chosen; an answer under way is stopped."""
        where = None if self.layers.value == "all" else self.layers.value
        change = {self.change.value: self.expert.value, "layers": where}
        self._submit((self.prompt.value, change))

    def still(self) -> str:
        """Return prompt and answers as plain HTML."""
        rows = {"Prompt": self.prompt.value, **self.answers}
        body = "".join(f"<tr><th>{html.escape(k)}</th><td>{html.escape(v)}</td></tr>" for k, v in rows.items())
        return f"<h4>What if?</h4><table><tbody>{body}</tbody></table><p>{READING}</p>"

    def _work(self, job: tuple[str, dict[str, Any]], stop: threading.Event) -> None:
        prompt, change = job
        kind = "mute" if "mute" in change else "force"
        where = "all layers" if change["layers"] is None else f"layer {change['layers'][0]}"
        changed = f"{kind} expert {change[kind]} in {where}"
        self.answers = {}
        for name in ("as it is", changed):
            self._show(f"Writing: {name} …")
            self.answers[name] = ""
            if name == changed:
                with steer_routing(self.model, **change):
                    self._write(name, prompt, stop)
            else:
                self._write(name, prompt, stop)
            if stop.is_set():
                return
        same = self.answers["as it is"] == self.answers[changed]
        self._show("The answer stays the same." if same else "The answer changes.")

    def _write(self, name: str, prompt: str, stop: threading.Event) -> None:
        for text in stream(self.model, self.tokenizer, prompt, max_new_tokens=self.max_new_tokens, stop=stop):
            self.answers[name] = text

    def _failed(self, error: Exception) -> None:
        self._show(f"{type(error).__name__}: {error}", error=True)

    def _show(self, status: str, *, error: bool = False) -> None:
        plain, *rest = self.answers.items() or [("as it is", "")]
        changed = rest[0] if rest else None
        panes = [("as it is", parent_html(plain[1], changed[1] if changed else ""))]
        if changed:
            panes.append((changed[0], blend_html(changed[1], {"as it is": plain[1]})))
        body = "".join(
            f'<section class="wb-pane"><header>{html.escape(name)}</header><p class="wb-answer">{said}</p></section>'
            for name, said in panes
        )
        self._panes.value = f'<div class="wb-figures">{body}</div>'
        self._status.value = status_line(status, error=error)
