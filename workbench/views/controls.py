"""The small parts of a view: weight sliders, a curve over depth, a text to copy, and the style sheet of them all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import anywidget
import traitlets

STATIC = Path(__file__).parent / "static"


class StyleSheet(anywidget.AnyWidget):
    """Shows nothing, and brings the style sheet to a view that has no other part which does."""

    _esm = "export default {}"
    _css = STATIC / "workbench.css"

    def __init__(self) -> None:
        super().__init__(layout={"display": "none"})


class BlendWeights(anywidget.AnyWidget):
    """One slider between two parents, or one weight for each of several.

    `weights` follows the pointer, `chosen` a movement that has come to rest: show on the first, compute on the second.

    Args:
        parents: Names to show, at least two.
        weights: One number from 0 to 1 for each parent; shown divided by their sum.
        step: What one press of an arrow key adds.
    """

    _esm = STATIC / "blend_weights.js"
    _css = STATIC / "workbench.css"
    parents = traitlets.List(traitlets.Unicode()).tag(sync=True)
    weights = traitlets.List(traitlets.Float()).tag(sync=True)
    chosen = traitlets.List(traitlets.Float()).tag(sync=True)
    position = traitlets.Float(0.0).tag(sync=True)
    step = traitlets.Float(0.05).tag(sync=True)
    disabled = traitlets.Bool(False).tag(sync=True)

    def __init__(self, parents: Sequence[str], weights: Sequence[float], *, step: float = 0.05, **kwargs: Any) -> None:
        weights = [float(weight) for weight in weights]
        position = share_of_second(weights)
        super().__init__(parents=list(parents), weights=weights, chosen=weights, position=position, step=step, **kwargs)

    def move(self, weights: Sequence[float]) -> None:
        """Set the sliders from Python, as if they had been moved there and released."""
        with self.hold_sync():
            self.weights = [float(weight) for weight in weights]
            self.position = share_of_second(self.weights)
            self.chosen = self.weights


class Setting(anywidget.AnyWidget):
    """A labelled slider for one number of a merge, such as the density.

    `value` follows the pointer, `chosen` a movement that has come to rest.

    Args:
        label: What is set; also its accessible name.
        value: From 0 to `most`.
        most: The right end.
        step: What one press of an arrow key adds.
    """

    _esm = STATIC / "setting.js"
    _css = STATIC / "workbench.css"
    label = traitlets.Unicode().tag(sync=True)
    value = traitlets.Float().tag(sync=True)
    chosen = traitlets.Float().tag(sync=True)
    most = traitlets.Float(1.0).tag(sync=True)
    step = traitlets.Float(0.05).tag(sync=True)

    def __init__(self, label: str, value: float, *, most: float = 1.0, step: float = 0.05, **kwargs: Any) -> None:
        value = min(max(float(value), 0.0), most)
        super().__init__(label=label, value=value, chosen=value, most=most, step=step, **kwargs)

    def move(self, value: float) -> None:
        """Set the slider from Python, as if it had been moved there and released."""
        with self.hold_sync():
            self.value = float(value)
            self.chosen = self.value


class DepthCurve(anywidget.AnyWidget):
    """A parent's weight over the depth of the model, as three to six points that are dragged or moved by arrow keys.

    Args:
        label: What is drawn, e.g. `Share of clinical`.
        points: Values from 0 to 1 at equal distances from the first layer to the last.
        step: What one press of an arrow key adds.
    """

    _esm = STATIC / "depth_curve.js"
    _css = STATIC / "workbench.css"
    label = traitlets.Unicode().tag(sync=True)
    points = traitlets.List(traitlets.Float(), minlen=2).tag(sync=True)
    chosen = traitlets.List(traitlets.Float(), minlen=2).tag(sync=True)
    step = traitlets.Float(0.05).tag(sync=True)

    def __init__(self, label: str, points: Sequence[float], *, step: float = 0.05, **kwargs: Any) -> None:
        points = [float(point) for point in points]
        super().__init__(label=label, points=points, chosen=points, step=step, **kwargs)

    def move(self, points: Sequence[float]) -> None:
        """Set the points from Python, as if they had been dragged there and released."""
        with self.hold_sync():
            self.points = [float(point) for point in points]
            self.chosen = self.points


class CopyBox(anywidget.AnyWidget):
    """A read-only text with a button that copies it, or a longer form of it that no saved notebook should hold.

    Args:
        full: Called when the button is pressed, for what is copied; None copies `text`.
        text: What is shown.
        caption: Text of the button.
        label: Accessible name of the text.
    """

    _esm = STATIC / "copy_box.js"
    _css = STATIC / "workbench.css"
    text = traitlets.Unicode().tag(sync=True)
    caption = traitlets.Unicode("Copy").tag(sync=True)
    label = traitlets.Unicode("Text to copy").tag(sync=True)

    def __init__(self, full: Callable[[], str] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._full = full or (lambda: self.text)
        self.on_msg(self._answer)

    def _answer(self, _: Any, message: Any, __: Any) -> None:
        if isinstance(message, dict) and message.get("kind") == "copy":
            self.send({"kind": "copy", "text": self._full()})


def share_of_second(weights: Sequence[float]) -> float:
    """Return the second weight divided by the sum of all, or 0 where the sum is 0."""
    return weights[1] / sum(weights) if sum(weights) else 0.0
