"""A glance at the routers during a step that is logged: how sure they are, and how evenly experts are used."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from workbench.errors import ModelError
from workbench.ops.processes import average
from workbench.routing.find import find_routers, read_output


class RoutingProbe:
    """Reads what routers return between `attach` and `detach`; a model without routers yields nothing.

    Args:
        mask: Which tokens of the next forward are real, `(B, T)`; set before it. While it is None, as after a batch's
            own forward, no forward is read: an extra loss may ask the model again, and checkpointing does.
    """

    def __init__(self) -> None:
        self.mask: Tensor | None = None
        self._hooks: list[Any] = []
        self._seen: dict[str, list[Tensor]] = {}

    def attach(self, model: torch.nn.Module) -> None:
        """Put hooks on the routers."""
        self._seen = {}
        try:
            routers = find_routers(model)
        except ModelError:
            return
        self._hooks = [router.register_forward_hook(self._look(names[0])) for router, names in routers.items()]

    def detach(self) -> None:
        """Take the hooks off."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def read(self) -> dict[str, Any]:
        """Return `routing_entropy`, the mean over tokens and routers as a share of log E, and `expert_load`.

        The load is each expert's share of the choices of a router, one list for each router by its name; even is 1 / E.
        Both are over the tokens of all processes, each of which must call this.
        """
        if not self._seen:
            return {}
        seen = {name: average(torch.stack(parts).sum(0)) for name, parts in self._seen.items()}
        entropy = torch.stack([part[0] / part[1] for part in seen.values()]).mean()
        load = {
            name: [round(share, 4) for share in (part[2:] / part[2:].sum()).tolist()] for name, part in seen.items()
        }
        self._seen = {}
        return {"routing_entropy": float(entropy), "expert_load": load}

    def _look(self, name: str) -> Any:
        def hook(module: Any, _inputs: Any, raw: Any) -> None:
            if self.mask is None:
                return
            output = read_output(module, name, raw)
            logits, chosen = output.router_logits.detach().float(), output.selected_experts
            logits, chosen = logits.reshape(-1, logits.shape[-1]), chosen.reshape(-1, chosen.shape[-1])
            if self.mask.numel() == len(logits):
                real = self.mask.reshape(-1).bool()
                logits, chosen = logits[real], chosen[real]
            logs = torch.log_softmax(logits, -1)
            entropy = -(logs.exp() * logs).sum() / math.log(logits.shape[-1])
            count = torch.bincount(chosen.reshape(-1), minlength=logits.shape[-1])
            self._seen.setdefault(name, []).append(torch.cat([entropy[None], entropy.new_tensor([len(logits)]), count]))

        return hook
