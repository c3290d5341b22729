"""A linear layer with a mixture of LoRA experts beside it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers.pytorch_utils import Conv1D

from workbench.adapters.lora_moe.config import LoraMoeConfig
from workbench.adapters.lora_moe.losses import Fleeting, Note, experts_for_contrast
from workbench.adapters.lora_moe.queue import ExpertQueue
from workbench.adapters.lora_moe.router import Batch, Router
from workbench.errors import ConfigError, ModelError
from workbench.records import RouterOutput


@dataclass(frozen=True, kw_only=True, eq=False)
class _Route:
    output: RouterOutput
    gates: Tensor  # (B * T or B, E): the weight of each expert, 0 for those not chosen


class LoraMoeLayer(nn.Module, BaseTunerLayer):
    """Wraps a linear layer and adds the experts' weighted sum, grouped: no loop over experts, no wait for the device.

    All A stand in one matrix `(E * R, in)`, all B in one `(out, E * R)`. Every token passes through all A, the E * R
    numbers are multiplied with the experts' routing weights, most of which are 0, and one matrix product with all B
    adds up what is left. Wasted are the A of experts not chosen, which for ranks of LoRA costs less than sorting the
    tokens by expert.

    Args:
        base_layer: `nn.Linear` (quantised ones, too) or transformers' `Conv1D`.
        batch: What the layers of the model know of the batch.

    Raises:
        ConfigError: The layer is of another kind.
    """

    adapter_layer_names = ("lora_moe_A", "lora_moe_B", "lora_moe_router")
    other_param_names = ("lora_moe_dropout", "lora_moe_queue", "settings", "leaders")

    def __init__(self, base_layer: nn.Module, batch: Batch):
        super().__init__()
        self.base_layer = base_layer
        inner = self.get_base_layer()
        if isinstance(inner, nn.Linear):
            self.in_features, self.out_features = inner.in_features, inner.out_features
        elif isinstance(inner, Conv1D):
            self.in_features, self.out_features = inner.nx, inner.nf
        else:
            raise ConfigError(
                f"target_modules matches a {type(inner).__name__}; a mixture stands beside linear layers only "
                "(nn.Linear, Conv1D). Name linear layers in target_modules, or use 'all-linear'."
            )
        self.lora_moe_A, self.lora_moe_B = nn.ParameterDict(), nn.ParameterDict()
        self.lora_moe_router, self.lora_moe_queue = nn.ModuleDict(), nn.ModuleDict()
        self.lora_moe_dropout = nn.ModuleDict()
        self.settings: dict[str, LoraMoeConfig] = {}
        self.leaders: dict[str, LoraMoeLayer] = {}
        self.batch, self.routes, self.notes = batch, Fleeting(), Fleeting()

    def update_layer(self, name: str, config: LoraMoeConfig, leader: LoraMoeLayer | None, **kwargs: Any) -> None:
        """Add an adapter: fresh A, B = 0, and a router of its own unless a leader's decides here."""
        ranks = config.r * (config.num_experts + config.shared_expert)
        self.settings[name] = config
        self.lora_moe_A[name] = nn.Parameter(torch.empty(ranks, self.in_features))
        self.lora_moe_B[name] = nn.Parameter(torch.zeros(self.out_features, ranks))
        # The rows of A are those of an nn.Linear each, whose bound depends on the width alone.
        nn.init.kaiming_uniform_(self.lora_moe_A[name], a=math.sqrt(5))
        self.lora_moe_dropout[name] = nn.Dropout(config.lora_dropout) if config.lora_dropout else nn.Identity()
        experts = config.num_experts
        if leader is None:
            router = Router(self.in_features, experts, config.num_experts_per_tok, config.router_jitter_noise)
            self.lora_moe_router[name] = router
        else:
            self.leaders[name] = leader
        if config.uses_queue:
            self.lora_moe_queue[name] = ExpertQueue(self.out_features, experts, config.queue_size, config.queue_dim)
        self._move_adapter_to_device_of_base_layer(name)
        self.set_adapter(self.active_adapters, inference_mode=kwargs.get("inference_mode", False))

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return W x + s * sum_e g_e B_e A_e x, `(..., out)`, in the dtype of the wrapped layer's output."""
        result = self.base_layer(x, *args, **kwargs)
        again = torch._C._current_graph_task_id() != -1  # within a backward: checkpointing recomputes
        if self.disable_adapters:
            return result
        if not again:
            self.notes.clear()
        for name in self.active_adapters:
            if name in self.lora_moe_A:
                result = self._add(result, x, name, again)
        return result

    def _add(self, result: Tensor, x: Tensor, name: str, again: bool) -> Tensor:
        config, down, up = self.settings[name], self.lora_moe_A[name], self.lora_moe_B[name]
        x = self._cast_input_dtype(x, down.dtype)
        x = x if x.dim() == 3 else x.reshape(1, -1, x.shape[-1])
        route = self._route(x, name)
        hidden = linear(self.lora_moe_dropout[name](x), down)
        gates = route.gates.to(hidden.dtype)
        gates = gates.view(*x.shape[:2], -1) if len(gates) == x.shape[0] * x.shape[1] else gates[:, None]
        hidden = hidden.unflatten(-1, (-1, config.r))
        gated = hidden * gates[..., None]
        if self.training and down.requires_grad:
            note = self._note(name, route, hidden, gated)
            if not again:
                self.notes[name] = note
        return _plus(result, gated.flatten(-2), up, config.scaling)

    def _route(self, x: Tensor, name: str) -> _Route:
        """Return the route of x, `(B, T, D)`: one that stands already, or the router's answer."""
        config, leader = self.settings[name], self.leaders.get(name)
        if leader is not None:
            if name not in leader.routes:
                raise ModelError(
                    f"adapter {name!r} has router='layer', where the first target of a decoder layer decides for the "
                    "others, but another one ran before it. Use router='module' for this model."
                )
            return leader.routes[name]
        if config.routing == "sequence" and self.batch.continuing and name in self.routes:
            if len(self.routes[name].gates) != len(x):
                raise ModelError(
                    f"the prompts of {len(self.routes[name].gates)} sequences were routed and {len(x)} are continued; "
                    "with routing='sequence' a sequence keeps its prompt's route. Keep the batch as it was, or tell "
                    "which sequences stay by workbench.adapters.keep_sequences."
                )
            return self.routes[name]
        rows = x.flatten(0, 1) if config.routing == "token" else self.batch.prompt_mean(x)
        output: RouterOutput = self.lora_moe_router[name](rows)
        empty = torch.zeros_like(output.router_logits)
        gates = empty.scatter(1, output.selected_experts, output.routing_weights)
        if config.shared_expert:
            gates = torch.cat([gates, gates.new_ones(len(gates), 1)], dim=1)
        route = _Route(output=output, gates=gates)
        if config.router == "layer" or config.routing == "sequence":
            self.routes[name] = route
        return route

    def _note(self, name: str, route: _Route, hidden: Tensor, gated: Tensor) -> Note:
        """Return what the losses need of this forward; padding counts in none of them where the mask is known."""
        config, counted = self.settings[name], self.batch.rows(hidden)
        by_token = len(route.gates) == hidden.shape[0] * hidden.shape[1]
        queue = cast(ExpertQueue, self.lora_moe_queue[name]) if config.uses_queue else None
        experts: tuple[Tensor, ...] = ()
        if config.contrastive_loss_coef:
            own = config.num_experts  # a shared expert is not contrasted
            up = self.lora_moe_B[name][:, : own * config.r]
            with torch.autocast(hidden.device.type, enabled=False):
                experts = experts_for_contrast(queue, hidden[:, :, :own], gated[:, :, :own], up, counted, by_token)
        counted, decided = counted if by_token else None, name in self.lora_moe_router
        output = route.output
        return Note(config=config, output=output, decided=decided, counted=counted, queue=queue, experts=experts)

    def keep_sequences(self, rows: Tensor) -> None:
        """Keep the prompts' routes of these sequences only, in this order."""
        for name, config in self.settings.items():
            if config.routing == "sequence" and name in self.routes:
                route, output = self.routes[name], self.routes[name].output
                kept = {field: getattr(output, field)[rows] for field in output.__dataclass_fields__}
                self.routes[name] = _Route(output=RouterOutput(**kept), gates=route.gates[rows])


def _plus(result: Tensor, hidden: Tensor, up: Tensor, scale: float) -> Tensor:
    """Return result + scale * hidden up^T, in one pass over the result where the dtypes allow it."""
    if result.dtype == hidden.dtype == up.dtype:
        flat = torch.addmm(result.flatten(0, -2), hidden.flatten(0, -2), up.t(), alpha=scale)
        return flat.view(result.shape)
    return (result + (linear(hidden, up) * scale).view(result.shape)).to(result.dtype)
