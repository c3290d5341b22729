"""A recipe in words: one line, and one row for each layer."""

from __future__ import annotations

import html
import re
from typing import Any

from workbench.errors import ConfigError, WorkbenchError
from workbench.merging.recipe import OWN, SHARED
from workbench.merging.weights import Filters, depth_positions
from workbench.views.answers import short_names

_LAYER = re.compile(r"(?:^|\.)(\d+)\.")


def start_weights(recipe: Any) -> tuple[list[float], list[list[float]]]:
    """Return where the sliders and the curves start: one number for each parent, and one curve for each slider.

    Raises:
        ConfigError: A weight consists of filters by tensor name, which no slider shows.
    """
    if not all(isinstance(weight, float | tuple) for weight in recipe.weights):
        raise ConfigError(
            f"weights={recipe.weights!r} hold filters by tensor name, and the sliders move numbers and curves; start "
            "from recipe.replace(weights=[...]) with a number or a list for each parent"
        )
    lists = [list(weight) if isinstance(weight, tuple) else [float(weight)] for weight in recipe.weights]
    means = [min(1.0, max(0.0, sum(values) / len(values))) for values in lists]
    total = sum(means) or 1.0
    curves = [
        values if len(values) >= 3 else [value / total for value in [values[0], mean, values[-1]]]
        for values, mean in zip(lists, means)
    ]
    if len(lists) == 2:
        return [mean / total for mean in means], curves[1:]
    return means, curves


def yaml_text(recipe: Any, *, absolute: bool) -> str:
    """Return the recipe for mergekit, or a YAML comment that says why mergekit has no words for it.

    Args:
        recipe: A merge recipe.
        absolute: Write full paths, as mergekit needs them; without them the text is for reading.
    """
    try:
        return recipe.to_yaml(absolute=absolute)
    except WorkbenchError as error:
        return f"# {error}"


def recipe_line(recipe: Any) -> str:
    """Return the recipe in one line, as `ties: instruct 0.60, clinical 0.40, density 0.5`."""
    names = short_names(recipe.parents)
    if any(isinstance(weight, Filters) for weight in recipe.weights):
        names = ["weights by kind of module"]
    elif recipe.rule.weighted:
        names = [f"{name} {_text(weight)}" for name, weight in zip(names, recipe.weights)]
    into = f" into {short_names([recipe.base])[0]}" if recipe.rule.most == 1 else ""
    told = {name: getattr(recipe, name) for name in (*OWN, *SHARED)}
    settings = [f", {name.rstrip('_')} {_text(value, 'g')}" for name, value in told.items() if value is not None]
    return f"{recipe.method}: {', '.join(names)}{into}{''.join(settings)}"


def layer_shares(recipe: Any, model: Any) -> list[tuple[str, list[float]]]:
    """Return each part of the model from input to output with every parent's share of it, which add up to 1.

    Args:
        recipe: A merge recipe.
        model: The model whose tensor names are read.
    """
    rows: dict[str, list[float]] = {}
    for name, position in depth_positions([name for name, _ in model.named_parameters()]).items():
        layer = _LAYER.search(name)
        part = f"layer {int(layer[1]) + 1}" if layer else "embeddings, final norm, head"
        if part not in rows:
            weights = recipe.weights_at(name, position)
            total = sum(weights)
            rows[part] = [weight / total if total else 0.0 for weight in weights]
    return list(rows.items())


def recipe_table(recipe: Any, model: Any) -> str:
    """Return the shares of every layer as an HTML table, or a line where the method reads no weights."""
    if not recipe.rule.weighted:
        return f'<p class="wb-note">{recipe.method} reads no weights: the models themselves decide the shares.</p>'
    head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in short_names(recipe.parents))
    body = "".join(
        f'<tr><th scope="row">{part}</th>{"".join(f"<td>{share:.2f}</td>" for share in shares)}</tr>'
        for part, shares in layer_shares(recipe, model)
    )
    return (
        f'<div class="wb-scroll"><table class="wb-table"><thead><tr><th scope="col">part</th>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _text(value: Any, style: str = ".2f") -> str:
    if isinstance(value, Filters):
        return "by kind of module"
    if not isinstance(value, tuple):
        return format(value, style)
    alike = style == "g" and len(set(value)) == 1
    return _text(value[0], style) if alike else f"[{', '.join(_text(part, style) for part in value)}]"
