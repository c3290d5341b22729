"""A linear layer with a bank of frozen skills beside it."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.functional import linear
from transformers.pytorch_utils import Conv1D

from workbench.adapters.lora_moe.losses import Fleeting
from workbench.adapters.lora_moe.router import Batch
from workbench.adapters.skill_router.bank import BankLayer
from workbench.adapters.skill_router.config import SkillRouterConfig
from workbench.adapters.skill_router.router import InputGate, SkillWeights
from workbench.deltas import Delta
from workbench.deltas.terms import Factors
from workbench.deltas.weights import Weights
from workbench.errors import ConfigError, ModelError
from workbench.ops.processes import alone


class SkillRouterLayer(nn.Module, BaseTunerLayer):
    """Wraps a linear layer and adds the skills' weighted sum with one pair of matrix products.

    All skills' A stand in one matrix `(R, in)`, all B in one `(out, R)`; between them each of the R numbers is
    multiplied with the weight of its skill. Both matrices are buffers: saved with the adapter, never trained.

    Args:
        base_layer: `nn.Linear` (quantised ones, too) or transformers' `Conv1D`.
        batch: What the layers of the model know of the batch.
    """

    adapter_layer_names = ("skill_router_gate",)
    other_param_names = ("skill_router_A", "skill_router_B", "skill_router_owner", "settings", "leaders")

    def __init__(self, base_layer: nn.Module, batch: Batch):
        super().__init__()
        self.base_layer = base_layer
        self.batch, self.routes, self.prompts, self.used = batch, Fleeting(), Fleeting(), Fleeting()
        self.skill_router_A: Any = BufferDict(persistent=True)
        self.skill_router_B: Any = BufferDict(persistent=True)
        self.skill_router_owner: Any = BufferDict(persistent=False)
        self.skill_router_gate: Any = nn.ModuleDict()
        self.settings: dict[str, SkillRouterConfig] = {}
        self.leaders: dict[str, SkillRouterLayer] = {}
        self.merged_adapters: list[str] = []
        self.pristine: Tensor | None = None

    def update_layer(self, name: str, config: SkillRouterConfig, bank: BankLayer, leader: SkillRouterLayer) -> None:
        """Add an adapter: its bank, and what weighs the skills unless a leader's does it here."""
        self.settings[name], self.leaders[name] = config, leader
        self.put_bank(name, bank)
        if leader is self:
            softmax = config.constraint == "softmax"
            gate = SkillWeights(config.start(), softmax)
            if config.gate == "input":
                gate = InputGate(bank.A.shape[1], config.start(), softmax)
            self.skill_router_gate[name] = gate if gate.weight.is_meta else gate.to(self.skill_router_A[name].device)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def put_bank(self, name: str, bank: BankLayer) -> None:
        """Set an adapter's matrices, on the wrapped layer's device."""
        inner: Any = self.get_base_layer()
        device = inner.weight.device
        self.skill_router_A[name], self.skill_router_B[name] = bank.A.to(device), bank.B.to(device)
        owner = torch.arange(len(bank.ranks)).repeat_interleave(torch.tensor(bank.ranks))
        self.skill_router_owner[name] = owner.to(device)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return W x + sum_s w_s Delta_s x, `(..., out)`, in the dtype of the wrapped layer's output."""
        if self.disable_adapters and self.merged:
            self.unmerge()
        result = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters or self.merged:
            return result
        if torch._C._current_graph_task_id() == -1:  # not within a backward, where checkpointing recomputes
            self.prompts.clear()
        for name in self.active_adapters:
            if name in self.skill_router_A:
                result = self._add(result, x, name)
        return result

    def _add(self, result: Tensor, x: Tensor, name: str) -> Tensor:
        down, up = self.skill_router_A[name], self.skill_router_B[name]
        x = self._cast_input_dtype(x, down.dtype)
        hidden = linear(x, down)
        if self.settings[name].gate == "input":
            weights = self._spread(self._route(x, name), name).to(hidden.dtype)
            # Written out, since where pruning left no rank in any skill -1 would stand for anything.
            rows = hidden.shape[:-1].numel() // len(weights)
            hidden = (hidden.reshape(len(weights), rows, hidden.shape[-1]) * weights[:, None]).view(hidden.shape)
        else:
            hidden = hidden * self.by_rank(name).to(hidden.dtype)
        if result.dtype == hidden.dtype == up.dtype:
            return torch.addmm(result.flatten(0, -2), hidden.flatten(0, -2), up.t()).view(result.shape)
        return (result + linear(hidden, up)).to(result.dtype)

    def by_rank(self, name: str) -> Tensor:
        """Return, of a static router, the weight of each of the R ranks: that of its skill, `(R,)`."""
        return self._spread(self.leaders[name].weights(name), name)

    def weights(self, name: str) -> Tensor:
        """Return, of a static router that is held here, the weight of each skill, `(S,)`.

        In shards of FSDP the weights are at hand during this layer's own forward only, which keeps them for the others,
        apart for training and for what is asked in between.
        """
        gate, key = self.skill_router_gate[name], (name, self.training)
        if not isinstance(gate.weight, DTensor):
            weights = gate()
            if not alone():
                self.used[key] = weights.clone()
            return weights
        if key not in self.used:
            raise ModelError(
                f"the weights of adapter {name!r} are in shards of FSDP and the layer that holds them has not run; run "
                "the model first, with the whole of its layers."
            )
        return self.used[key]

    def _spread(self, weights: Tensor, name: str) -> Tensor:
        """Return weights of skills `(..., S)` as those of their ranks, `(..., R)`."""
        owner = self.skill_router_owner[name]
        return weights.to(owner.device)[..., owner]

    def _route(self, x: Tensor, name: str) -> Tensor:
        """Return the weights `(B, S)` of each sequence: those that stand already, or the gate's answer to x."""
        leader = self.leaders[name]
        if leader is not self:
            if name not in leader.routes:
                raise ModelError(
                    f"the gate of adapter {name!r} reads what the first layer with skills is given, but another layer "
                    "ran before it. Use gate='static' for this model."
                )
            return leader.routes[name]
        if self.batch.continuing and name in self.routes:
            if len(self.routes[name]) != len(x):
                raise ModelError(
                    f"the gate read the prompts of {len(self.routes[name])} sequences and {len(x)} are continued; a "
                    "sequence keeps its prompt's weights. Keep the batch as it was, or tell which sequences stay by "
                    "workbench.adapters.keep_sequences."
                )
            return self.routes[name]
        means = self.batch.prompt_mean(x if x.dim() == 3 else x.reshape(1, -1, x.shape[-1]))
        output = self.skill_router_gate[name](means)
        weights = torch.zeros_like(output.router_logits).scatter(1, output.selected_experts, output.routing_weights)
        self.routes[name] = weights
        if self.training and torch._C._current_graph_task_id() == -1:
            self.prompts[name] = weights
        return weights

    def keep_sequences(self, rows: Tensor) -> None:
        """Keep the weights of these sequences only, in this order."""
        for name, weights in self.routes.items():
            self.routes[name] = weights[rows]

    def penalties(self) -> list[Tensor]:
        """Return l1_coef * mean |w| of each active adapter that learns its weights here, in training."""
        found = []
        for name, gate in self.skill_router_gate.items():
            learns = self.training and not self.disable_adapters and name in self.active_adapters
            if not learns or gate.softmax or not gate.weight.requires_grad or not self.settings[name].l1_coef:
                continue
            weights = self.weights(name) if isinstance(gate, SkillWeights) else self.prompts.get(name)
            if weights is not None:
                found.append(self.settings[name].l1_coef * weights.abs().mean())
        return found

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Write base + sum_s w_s Delta_s into the wrapped layer, rounded once; the pristine weight is kept.

        Raises:
            ConfigError: The weights follow the input.
            ModelError: The layer's weight is quantised.
            MergeError: The result is not finite.
        """
        names = [name for name in check_adapters_to_merge(self, adapter_names) if name in self.skill_router_A]
        if not names:
            return
        if any(self.settings[name].gate == "input" for name in names):
            raise ConfigError(
                "skills behind a gate cannot be merged into weights: what they add depends on the prompt. Keep the "
                "adapter beside the model (save_pretrained), or take it off with unload()."
            )
        inner: Any = self.get_base_layer()
        before = inner.weight.detach().clone() if self.pristine is None else self.pristine
        merged, terms = [*self.merged_adapters, *names], []
        for name in merged:
            up, down = self.skill_router_B[name] * self.by_rank(name), self.skill_router_A[name]
            up, down = (down.T, up.T) if isinstance(inner, Conv1D) else (up, down)
            terms.append(Factors(left=up, right=down))
        shapes, nothing = {"weight": tuple(before.shape)}, frozenset[str]()
        base = Weights(
            label="the model", origin=inner, shapes=shapes, tied={}, transposed=nothing, fetch=lambda _: before
        )
        inner.weight.copy_(Delta(label="the skills", base=base, terms={"weight": tuple(terms)}).merged("weight"))
        self.pristine, self.merged_adapters = before, merged

    @torch.no_grad()
    def unmerge(self) -> None:
        """Bring the wrapped layer's weight back, bit for bit."""
        if self.pristine is not None:
            inner: Any = self.get_base_layer()
            inner.weight.copy_(self.pristine)
        self.pristine, self.merged_adapters = None, []
