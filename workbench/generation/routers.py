"""Routers in a batch that rows join and leave: what they hold for it, and what they decided for one answer.

Rooms that need PEFT, which is slow to import, are opened when a model is given that may have routers.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch

from workbench.errors import ModelError
from workbench.records import RouterOutput, RoutingTrace


def keep_routes(model: torch.nn.Module, rows: torch.Tensor) -> None:
    """Tell a model's routers, where it may have some of ours, which rows of a batch go on; see `keep_sequences`."""
    # It can have such routers only where they were imported; PEFT is slow to import for all others.
    if adapters := sys.modules.get("workbench.adapters"):
        adapters.keep_sequences(model, rows)


def has_routers(model: Any) -> bool:
    """Return whether there is something to capture in a model."""
    from workbench.routing.find import find_routers

    try:
        return bool(find_routers(model))
    except ModelError:
        return False


def capture(model: Any) -> AbstractContextManager[RoutingTrace]:
    """Record what the routers decide within the block."""
    from workbench.routing.capture import capture_routing

    return capture_routing(model)


def sequence_routes(model: Any) -> Any:
    """Return a place for what routers of whole sequences hold for one batch."""
    from workbench.adapters.mixed import SequenceRoutes

    return SequenceRoutes(model)


def routing_of(passes: Sequence[tuple[RoutingTrace, int]], prompt: int, written: Sequence[int]) -> RoutingTrace | None:
    """Return the trace of one answer, as if it had been alone: its document, row and first step are 0.

    A pass in which the routers rested, because they had decided for the whole sequence, repeats the last decision.

    Args:
        passes: For each forward pass its trace and the row's place in the batch; the first one reads the prompt.
        prompt: Tokens of the prompt.
        written: Tokens of the answer; each pass but the first reads the next of them.

    Returns:
        None where no router was asked.
    """
    parts: list[RoutingTrace] = []
    for step, (trace, place) in enumerate(passes):
        if len(trace):
            parts.append(_part(trace, trace.tokens["row"] == place, step))
        elif parts:
            resting = _part(parts[-1], slice(-1, None), step)
            resting.tokens["token_id"][:], resting.tokens["position"][:] = written[step - 1], prompt + step - 1
            parts.append(resting)
    if not parts:
        return None
    routers = {}
    for router, output in parts[0].routers.items():
        both = {name: torch.cat([getattr(part.routers[router], name) for part in parts]) for name in vars(output)}
        routers[router] = RouterOutput(**both)
    tokens = {name: torch.cat([part.tokens[name] for part in parts]) for name in parts[0].tokens}
    return RoutingTrace(tokens=tokens, routers=routers, layers=parts[0].layers, dropped={"passes": 0})


def _part(trace: RoutingTrace, keep: Any, step: int) -> RoutingTrace:
    tokens = {name: column[keep].clone() for name, column in trace.tokens.items()}
    for name, value in (("row", 0), ("document", 0), ("step", step)):
        tokens[name][:] = value
    routers = {
        name: RouterOutput(**{part: value[keep] for part, value in vars(output).items()})
        for name, output in trace.routers.items()
    }
    return RoutingTrace(tokens=tokens, routers=routers, layers=trace.layers)
