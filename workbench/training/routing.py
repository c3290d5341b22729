"""A glance at the routers during a step that is logged: how sure they are, and how evenly experts are used."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from workbench.errors import ModelError
from workbench.routing.find import find_routers, read_output


class RoutingProbe:
    """Reads what routers return between `attach` and `detach`; a model without routers yields nothing.

    Args:
        mask: Which tokens of the next forward are real, `(B, T)`; set before it.
    """

    def __init__(self) -> None:
        self.mask: Tensor | None = None
        self._hooks: list[Any] = []
        self._seen: dict[str, list[tuple[Tensor, Tensor]]] = {}

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
        """
        if not self._seen:
            return {}
        entropy = torch.stack([entropy for seen in self._seen.values() for entropy, _ in seen]).mean()
        counts = {name: torch.stack([count for _, count in seen]).sum(0) for name, seen in self._seen.items()}
        load = {name: [round(share, 4) for share in (count / count.sum()).tolist()] for name, count in counts.items()}
        self._seen = {}
        return {"routing_entropy": float(entropy), "expert_load": load}

    def _look(self, name: str) -> Any:
        def hook(module: Any, _inputs: Any, raw: Any) -> None:
            output = read_output(module, name, raw)
            logits, chosen = output.router_logits.detach().float(), output.selected_experts
            logits, chosen = logits.reshape(-1, logits.shape[-1]), chosen.reshape(-1, chosen.shape[-1])
            if self.mask is not None and self.mask.numel() == len(logits):
                real = self.mask.reshape(-1).bool()
                logits, chosen = logits[real], chosen[real]
            logs = torch.log_softmax(logits, -1)
            entropy = -(logs.exp() * logs).sum(-1).mean() / math.log(logits.shape[-1])
            count = torch.bincount(chosen.reshape(-1), minlength=logits.shape[-1]).float()
            self._seen.setdefault(name, []).append((entropy, count))

        return hook
