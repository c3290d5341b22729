"""From a recipe to the plain numbers c_i of one tensor's sum W = sum_i c_i W_i; every executor asks here."""

from __future__ import annotations

from collections.abc import Callable

from workbench.errors import ConfigError, MergeError
from workbench.merging.recipe import MergeRecipe
from workbench.ops.merging import linear_coefficients, slerp_coefficients


def tensor_coefficients(
    recipe: MergeRecipe, name: str, position: float, cosine: Callable[[str], float]
) -> tuple[float, ...]:
    """Return one coefficient per parent for one tensor.

    Args:
        recipe: A `linear` or `slerp` recipe.
        name: The tensor's name.
        position: Its place in depth, as `depth_positions` gives it.
        cosine: Called with the name, only where the method needs it, for the cosine between the two parents' tensors.

    Raises:
        MergeError: The weights sum to 0 at this tensor.
    """
    weights = recipe.weights_at(name, position)
    try:
        if recipe.method == "linear":
            return linear_coefficients(weights, normalise=recipe.normalise is not False)
        return slerp_coefficients(linear_coefficients(weights)[1], cosine(name))
    except ConfigError as error:
        raise MergeError(f"At tensor {name!r} (depth {position:.2f}): {error}") from error
