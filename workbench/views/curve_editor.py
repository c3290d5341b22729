"""Draw a merge's weights over depth, for the whole model or for each kind of module, and see every tensor's share."""

from __future__ import annotations

import html
import re
import threading
from collections.abc import Iterable, Sequence
from typing import Any

import anywidget
import ipywidgets as widgets
import traitlets

from workbench.errors import ConfigError, WorkbenchError
from workbench.merging.parents import weight_tensors
from workbench.merging.recipe import MergeRecipe
from workbench.merging.weights import Filters, depth_positions, stack_depths, thaw_weight
from workbench.models import load_model
from workbench.ops.merging import linear_mix
from workbench.views.answers import short_names
from workbench.views.controls import STATIC
from workbench.views.forms import field, status_line
from workbench.views.recipe_table import yaml_text
from workbench.views.worker import LatestWorker, WorkerView

GROUPS = {
    "norms": ("norm", "ln_"),
    "attention": ("attn", "attention"),
    "MLP": ("mlp", "feed_forward", "moe"),
    "embeddings": ("embed", "lm_head", "wte", "wpe"),
}
"""The kinds of module, and the parts of tensor names that tell them; the first match counts, so norms come first."""

_LAYER = re.compile(r"(?:^|\.)(\d+)\.")

WHOLE = "whole model"
REST = "all other tensors"
HOW_TO_READ = (
    "How to read this: each curve is a weight from the first layer (left) to the last; drag across it, or focus one of "
    "its points and press up and down (left and right go to the next). The table below shows what every tensor is made "
    "of: the fuller the cell, the more of this parent. What lies outside the layers reads a curve's first point."
)


class CurveCanvas(anywidget.AnyWidget):
    """Curves over depth, of which the selected one is drawn with the pointer or the keyboard.

    `curves` follows the pointer, `chosen` a movement that has come to rest.
    """

    _esm = STATIC / "curve_editor.js"
    _css = "".join((STATIC / name).read_text(encoding="utf-8") for name in ("workbench.css", "curve_editor.css"))
    labels = traitlets.List(traitlets.Unicode()).tag(sync=True)
    curves = traitlets.List(traitlets.List(traitlets.Float())).tag(sync=True)
    chosen = traitlets.List(traitlets.List(traitlets.Float())).tag(sync=True)
    selected = traitlets.Int(0).tag(sync=True)
    caption = traitlets.Unicode().tag(sync=True)
    step = traitlets.Float(0.05).tag(sync=True)

    def move(self, curves: Sequence[Sequence[float]]) -> None:
        """Set the curves from Python, as if they had been drawn and released."""
        with self.hold_sync():
            self.curves = self.chosen = [[float(value) for value in curve] for curve in curves]


class CurveEditor(WorkerView, widgets.VBox):
    """Curves over depth, the coefficient of every tensor, and the recipe as mergekit YAML: each moves the others.

    Every change makes a new recipe with other `weights` (or, from YAML, another recipe of the same parents).

    Args:
        recipe: What to start with; None takes that of `live`.
        live: A `LiveMerge` that follows every change, on a thread of the widget's own.
        model: One of the parents, for its tensors' names, where there is no `live`; None loads the first.
        points: Points of each curve, 2 to 16; None takes one for each layer, up to 8.

    Raises:
        ConfigError: There is neither a recipe nor a `live`, or `points` is out of range.
        ModelError: The first parent cannot be loaded.
    """

    def __init__(self, recipe: Any = None, *, live: Any = None, model: Any = None, points: int | None = None) -> None:
        recipe = recipe if recipe is not None else getattr(live, "recipe", None)
        if recipe is None or (points is not None and not 2 <= points <= 16):
            raise ConfigError(
                f"recipe={recipe!r}, points={points}: an editor needs a recipe or a LiveMerge, and 2 to 16 points a "
                "curve. Pass CurveEditor(recipe) or CurveEditor(live=live)."
            )
        self.recipe, self.live = recipe, live
        self.model = live.model if live is not None else model or load_model(recipe.parents[0])[0]
        self.tensors = weight_tensors(self.model)
        self.groups = groups_of(self.tensors)
        self._points = points or min(max(*stack_depths(self.tensors).values(), 2), 8)
        self._guard = threading.RLock()
        names = short_names(recipe.parents)
        self.parent = field(
            widgets.Dropdown(options=[(name, i) for i, name in enumerate(names)], description="Weight of")
        )
        self.parent.value = len(names) - 1
        self.by_group = widgets.Checkbox(description="A curve for each kind of module", indent=False)
        self.by_group.value = _has_filters(recipe)
        self.canvas = CurveCanvas()
        self.heat, self._status = widgets.HTML(), widgets.HTML()
        label = "This recipe as mergekit YAML"
        self.yaml = field(widgets.Textarea(description=label, continuous_update=False, rows=12))
        head = widgets.HTML(f'<h3>Weights over depth</h3><p class="wb-note">{HOW_TO_READ}</p>')
        controls = widgets.HBox([self.parent, self.by_group])
        super().__init__([head, controls, self.canvas, self._status, self.heat, self.yaml])
        self.add_class("wb-view")
        self._worker = LatestWorker(self._follow, self._failed)
        self._quiet = False
        self._show()
        self.canvas.observe(self._drawn, "chosen")
        self.by_group.observe(self._drawn_anew, "value")
        self.parent.observe(lambda _: self._show(), "value")
        self.yaml.observe(self._typed, "value")

    def _follow(self, recipe: Any, _: threading.Event) -> None:
        if self.live is not None:
            self.live.apply(recipe)

    # What happens when something is moved.

    @property
    def _parent(self) -> int:
        return int(self.parent.value or 0)

    def _drawn(self, _: Any = None) -> None:
        """Make a recipe of the curves."""
        if self._quiet:
            return
        curves = [[round(value, 4) for value in curve] for curve in self.canvas.chosen]
        weight = _weight(self.groups, curves) if self.by_group.value else _plain(curves[0])
        with self._guard:
            try:
                if _is_share(self.recipe):
                    self._take(self.recipe.with_ratio(weight if self._parent == 1 else _one_minus(weight)))
                else:
                    weights = [thaw_weight(old) for old in self.recipe.weights]
                    weights[self._parent] = weight
                    self._take(self.recipe.replace(weights=weights))
            except WorkbenchError as error:
                self._failed(error)

    def _drawn_anew(self, _: Any) -> None:
        """Start the curves of the other kind where the present ones are read at each point."""
        if not self._quiet:
            self._show_curves()
            self._drawn()

    def _typed(self, change: Any) -> None:
        """Take a recipe from YAML, or say what is wrong with it and leave everything as it is."""
        if self._quiet:
            return
        try:
            recipe = MergeRecipe.from_yaml(change["new"])
            if recipe.parents != self.recipe.parents:
                raise ConfigError(
                    f"The YAML has the models {list(recipe.parents)}, the editor is open for "
                    f"{list(self.recipe.parents)}. Keep the models and their order."
                )
            with self._guard:
                self._quiet = True
                self.by_group.value = _has_filters(recipe)
                self._quiet = False
                self._take(recipe)
        except WorkbenchError as error:
            self._failed(error)

    def _take(self, recipe: Any) -> None:
        before, self.recipe = self.recipe, recipe
        try:
            self._show()
        except WorkbenchError:
            self.recipe = before
            raise
        self._submit(recipe)

    def _failed(self, error: Exception) -> None:
        self._status.value = status_line(str(error), error=True)

    # What is shown.

    def _show(self) -> None:
        heat = self._heat()
        self._show_curves()
        self._quiet = True
        self.heat.value = heat
        self.yaml.value = yaml_text(self.recipe, absolute=False)
        self._quiet = False
        self._status.value = status_line(f"{self.recipe.method} recipe, in order")

    def _show_curves(self) -> None:
        """Read the recipe's weight of the chosen parent at every point."""
        parent, share = self._parent, _is_share(self.recipe)
        names = list(self.groups) if self.by_group.value else [WHOLE]
        # One tensor of a kind stands for it; filters of finer grain are kept until a curve is moved.
        inside = next(reversed([group[1] for group in self.groups.values() if _LAYER.search(group[1])]))
        examples = [self.groups[name][1] if name in self.groups else inside for name in names]
        curves = []
        for name, tensor in zip(names, examples):
            count = 1 if name == "embeddings" else self._points
            weights = [self.recipe.weights_at(tensor, i / max(count - 1, 1)) for i in range(count)]
            curves.append([w[parent] / (sum(w) or 1.0) if share else w[parent] for w in weights])
        self._quiet = True
        self.canvas.labels = names
        self.canvas.selected = min(self.canvas.selected, len(names) - 1)
        self.canvas.caption = f"{'Share' if share else 'Weight'} of {self.parent.label}"
        if self.canvas.chosen != curves:
            self.canvas.move(curves)
        self._quiet = False

    def _heat(self) -> str:
        kind, numbers = effective(self.recipe, self.tensors, self.live)
        caption = f"{kind} of {self.parent.label} in every tensor"
        return heat_map({name: values[self._parent] for name, values in numbers.items()}, self.tensors, caption)

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        """Add the table and the YAML to the widget: they are what a saved, untrusted notebook shows."""
        bundle: Any = super()._repr_mimebundle_(**kwargs)
        bundle["text/html"] = (
            f"<div><p>{HOW_TO_READ}</p>{self.heat.value}<pre>{html.escape(self.yaml.value)}</pre></div>"
        )
        return bundle


def groups_of(names: Iterable[str]) -> dict[str, tuple[list[str], str]]:
    """Return the kinds of module that a model has: the filters that tell each, and its first tensor's name."""
    names, found = list(names), {}
    left = names
    for group, parts in GROUPS.items():
        used = [part for part in parts if any(part in name for name in left)]
        if used:
            found[group] = (used, next(name for name in left if any(part in name for part in used)))
            left = [name for name in left if not any(part in name for part in used)]
    return found | ({REST: ([], left[0])} if left else {})


def _weight(groups: dict[str, tuple[list[str], str]], curves: Sequence[list[float]]) -> dict[str, Any]:
    filters = {part: _plain(curve) for (parts, _), curve in zip(groups.values(), curves) for part in parts}
    return filters | {"*": _plain(curves[-1])}


def _plain(curve: list[float]) -> Any:
    return curve[0] if len(set(curve)) == 1 else curve


def _one_minus(weight: Any) -> Any:
    if isinstance(weight, dict):
        return {name: _one_minus(value) for name, value in weight.items()}
    return [round(1 - value, 15) for value in weight] if isinstance(weight, list) else round(1 - weight, 15)


def _is_share(recipe: Any) -> bool:
    """Whether the weights of two parents are two names for one number."""
    fits = recipe.method in ("linear", "slerp", "nuslerp") and recipe.normalise is not False
    return fits and len(recipe.parents) == 2


def _has_filters(recipe: Any) -> bool:
    return any(isinstance(weight, Filters) for weight in recipe.weights)


def effective(recipe: Any, names: Iterable[str], live: Any = None) -> tuple[str, dict[str, tuple[float, ...]]]:
    """Return what each tensor is made of, and what these numbers are called.

    Args:
        recipe: A merge recipe.
        names: All tensor names of a parent.
        live: A `LiveMerge` of the recipe's parents; with it, angles between the parents count.

    Returns:
        `"Coefficient"` for the c_i of W = sum_i c_i W_i; `"Share"` of the weights, or `"Weight"`, where the parents are
        not at hand or the method merges entry by entry; and one number per parent for each tensor.

    Raises:
        MergeError: The weights sum to 0 at a tensor.
    """
    if live is not None and not recipe.entrywise:
        return "Coefficient", live.coefficients(recipe)
    weights = {name: recipe.weights_at(name, place) for name, place in depth_positions(names).items()}
    if not _is_share(recipe):
        return "Weight", weights
    return "Share", {name: linear_mix(numbers).coefficients for name, numbers in weights.items()}


def heat_map(values: dict[str, float], names: dict[str, list[str]], caption: str) -> str:
    """Return an HTML table, one row for each layer and one column for each kind of tensor.

    Args:
        values: Tensor name to the number shown; from 0 to 1 the cell fills.
        names: First name to all names of a tensor; what a tied tensor reads stands beside it.
        caption: What the numbers are.
    """
    rows: dict[str, dict[str, str]] = {}
    kinds: dict[str, None] = {}
    outside = []
    for name, value in values.items():
        layer, kind = _LAYER.search(name), re.sub(r"\.weight$", "", name)
        if layer:
            kind = ".".join(kind[layer.end() :].split(".")[-2:]) if kind.endswith("bias") else kind.split(".")[-1]
            rows.setdefault(f"layer {int(layer[1]) + 1}", {})[kind] = _cell(value)
            kinds[kind] = None
        else:
            tied = "".join(f", read by {html.escape(other)} too" for other in names.get(name, [])[1:])
            outside.append(f'<tr><th scope="row">{html.escape(kind)}{tied}</th>{_cell(value)}</tr>')
    head = "".join(f'<th scope="col">{html.escape(kind)}</th>' for kind in kinds)
    body = "".join(
        f'<tr><th scope="row">{row}</th>{"".join(cells.get(kind, "<td></td>") for kind in kinds)}</tr>'
        for row, cells in rows.items()
    )
    table = '<table class="wb-table" style="border-collapse: collapse">'
    return (
        f'<div class="wb-scroll" style="overflow: auto">{table}<caption>{html.escape(caption)}</caption><thead><tr>'
        f'<th scope="col">layer</th>{head}</tr></thead><tbody>{body}</tbody></table>{table}'
        f"<tbody>{''.join(outside)}</tbody></table></div>"
    )


def _cell(value: float) -> str:
    alpha = round(min(max(value, 0.0), 1.0) * 0.6, 3)
    return f'<td style="background: rgba(43, 123, 186, {alpha}); text-align: right">{value:.2f}</td>'
