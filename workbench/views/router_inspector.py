"""The widget that looks into routers: the text, token by token, and what many tokens say together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import ipywidgets as widgets

from workbench.errors import ConfigError
from workbench.records import RoutingTrace
from workbench.routing.specialise import specialisation, word_classes
from workbench.views import router_pictures as pictures
from workbench.views.answers import NOTICE
from workbench.views.router_drawing import Panel
from workbench.views.router_text import RouterText, token_texts
from workbench.views.router_what_if import WhatIf

HOW_TO_READ = (
    "How to read this: the small number behind a token is the expert with the highest weight at the chosen router, and "
    "colours repeat the number. Move the sliders for another router or step; click a token, or focus the text and use "
    "the arrow keys, and the table shows its experts in every layer. Underlined tokens were written by the model."
)
HOW_TO_READ_OTHER = " Where the other checkpoint takes another expert, an arrow and a dashed frame say so."


class RouterInspector(widgets.VBox):
    """Look at a routing trace: tokens in the colours of their experts, load, specialisation, pairs, flow, and what if.

    The pictures of one router follow the slider above the text. Every figure is of the trace as it was given.

    Args:
        trace: What `capture_routing` recorded.
        tokenizer: The model's tokenizer.
        labels: What experts may specialise in, such as skill or organ system: one for each token or for each document;
            None takes a coarse part of speech.
        label_name: What the labels are, in the singular.
        other: A trace of the same tokens by another checkpoint of the same run.
        names: What to call the two checkpoints.
        model: The model, for *what if*; None leaves that out.
        prompt: What it is asked first.
        max_new_tokens: Most tokens of each of its answers, at least 1.
        seed: Of all shuffles and resamples.

    Raises:
        ConfigError: The trace is empty, the labels do not fit it, `other` is of other tokens or has other routers,
            `max_new_tokens` is below 1, or the model cannot use a cache.
    """

    def __init__(
        self,
        trace: RoutingTrace,
        tokenizer: Any,
        *,
        labels: Sequence[Any] | None = None,
        label_name: str = "label",
        other: RoutingTrace | None = None,
        names: tuple[str, str] = ("this checkpoint", "the other checkpoint"),
        model: Any = None,
        prompt: str = "What is the first-line treatment of asthma?",
        max_new_tokens: int = 32,
        seed: int = 0,
    ) -> None:
        if max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens={max_new_tokens} must be at least 1; the default is 32")
        self.trace, self.seed = trace, seed
        self._names = list(trace.routers)
        load = pictures.load_panel(trace, seed=seed)
        self._kinds = word_classes(token_texts(trace, tokenizer))
        self._labels = self._kinds if labels is None else labels
        self._what = "part of speech" if labels is None else label_name
        self._found = specialisation(trace, self._labels, seed=seed) if len(set(map(str, self._labels))) > 1 else {}
        self.panels: list[Panel] = [load]
        if other is not None:
            self.panels.append(pictures.agreement_panel(trace, other, names, seed=seed))
        if self._found:
            self.panels.append(pictures.information_panel(self._found, pictures.router_labels(trace), self._what))
        self.text = RouterText(trace, tokenizer, other=other)
        documents = int(trace.tokens["document"].max()) + 1
        self.document = widgets.Dropdown(options=range(documents), description="Document")
        self.document.add_class("wb-field")
        self.document.layout.display = "" if documents > 1 else "none"
        self.what_if = model and WhatIf(model, tokenizer, trace, prompt=prompt, max_new_tokens=max_new_tokens)
        note = HOW_TO_READ + (HOW_TO_READ_OTHER if other is not None else "")
        size = f"{len(trace):,} tokens of {documents} document{'s' if documents > 1 else ''}; seed {seed}."
        notes = "".join(f'<p class="wb-note">{line}</p>' for line in (note, f"n = {size}"))
        head = widgets.HTML(f"<h3>Where the tokens go</h3>{notes}")
        self._own = widgets.HTML()
        cards = [widgets.VBox([self.document, self.text]), *(widgets.HTML(p.live()) for p in self.panels), self._own]
        for card in cards:
            card.add_class("wb-card")
        foot = widgets.HTML(f'<p class="wb-note">{NOTICE}</p>')
        super().__init__([head, *cards, *([self.what_if] if self.what_if else []), foot])
        self.add_class("wb-view")
        self.text.observe(lambda _: self._follow(), "router")
        self.document.observe(lambda change: self.text.show(change["new"]), "value")
        self._follow()

    @property
    def router(self) -> str:
        """Name of the router that is shown."""
        return self._names[min(max(self.text.router, 0), len(self._names) - 1)]

    def own_panels(self) -> list[Panel]:
        """Return the pictures of the router that is shown."""
        name, label = self.router, pictures.router_labels(self.trace)[self.router]
        found = [pictures.specialisation_panel(self._found[name], label, self._what)] if self._found else []
        one = replace(self.trace, routers={name: self.trace.routers[name]})
        if len(set(self._kinds)) > 1:
            found.append(pictures.flow_panel(one, name, label, self._kinds, "kind of token", seed=self.seed))
        return [*found, pictures.coactivation_panel(one, name, label, seed=self.seed)]

    def close(self) -> None:
        """Stop the thread of *what if* and remove the widget."""
        if getattr(self, "what_if", None):
            self.what_if.close()
        super().close()

    def _follow(self) -> None:
        self._own.value = "".join(panel.live() for panel in self.own_panels())

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        """Add text, pictures and tables to the widget: they are what a saved, untrusted notebook shows."""
        bundle: Any = super()._repr_mimebundle_(**kwargs)
        still = "".join(panel.still() for panel in (*self.panels, *self.own_panels()))
        asked = self.what_if.still() if self.what_if else ""
        bundle["text/html"] = (
            "<div><p><b>Router inspector, as it stood when this notebook was saved.</b> Run the cell to move it.</p>"
            f"<p>{HOW_TO_READ}</p>{self.text.still()}{still}{asked}<p><i>{NOTICE}</i></p></div>"
        )
        return bundle
