"""Ready-made pieces of a view's form: fields, buttons, boxes and the line that says how things stand."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import ipywidgets as widgets


def box(children: Sequence[widgets.Widget], *classes: str) -> widgets.Box:
    """Return the widgets one below the other, with the classes of the style sheet."""
    whole = widgets.VBox(children)
    for name in classes:
        whole.add_class(name)
    return whole


def field(widget: Any, *, grow: bool = False) -> Any:
    """Return a text field or a list, dressed; with `grow` it takes the width that is left."""
    widget.add_class("wb-field")
    if grow:
        widget.add_class("wb-grow")
    return widget


def button(text: str, tooltip: str) -> widgets.Button:
    """Return a button, dressed."""
    made = widgets.Button(description=text, tooltip=tooltip)
    made.add_class("wb-button")
    return made


def status_line(text: str, *, error: bool = False) -> str:
    """Return a line of HTML that a screen reader says aloud; the text is escaped."""
    shown = html.escape(" ".join(text.split()))
    return f'<div class="wb-status{" wb-error" if error else ""}" role="{"alert" if error else "status"}">{shown}</div>'
