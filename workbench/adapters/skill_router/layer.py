"""A linear layer with a bank of frozen skills beside it."""

from __future__ import annotations

from typing import Any, cast

import torch
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers.pytorch_utils import Conv1D

from workbench.adapters.skill_router.bank import BankLayer
from workbench.adapters.skill_router.config import SkillRouterConfig
from workbench.adapters.skill_router.router import SkillWeights
from workbench.deltas.terms import Factors, total, wide
from workbench.errors import MergeError


class SkillRouterLayer(nn.Module, BaseTunerLayer):
    """Wraps a linear layer and adds the skills' weighted sum with one pair of matrix products.

    All skills' A stand in one matrix `(R, in)`, all B in one `(out, R)`; between them each of the R numbers is
    multiplied with the weight of its skill. Both matrices are buffers: saved with the adapter, never trained.

    Args:
        base_layer: `nn.Linear` (quantised ones, too) or transformers' `Conv1D`.
    """

    adapter_layer_names = ("skill_router_gate",)
    other_param_names = ("skill_router_A", "skill_router_B", "settings", "leaders", "owners")

    def __init__(self, base_layer: nn.Module):
        super().__init__()
        self.base_layer = base_layer
        self.skill_router_A, self.skill_router_B = BufferDict(persistent=True), BufferDict(persistent=True)
        self.skill_router_gate = nn.ModuleDict()
        self.settings: dict[str, SkillRouterConfig] = {}
        self.leaders: dict[str, SkillRouterLayer] = {}
        self.owners: dict[str, Tensor] = {}
        self.merged_adapters: list[str] = []
        self.pristine: Tensor | None = None

    def update_layer(self, name: str, config: SkillRouterConfig, bank: BankLayer, leader: SkillRouterLayer) -> None:
        """Add an adapter: its bank, and what weighs the skills unless a leader's does it here."""
        self.settings[name], self.leaders[name] = config, leader
        self.put_bank(name, bank)
        if leader is self:
            self.skill_router_gate[name] = SkillWeights(config.start(), config.constraint == "softmax")
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def put_bank(self, name: str, bank: BankLayer) -> None:
        """Set an adapter's matrices, on the wrapped layer's device."""
        device = self.get_base_layer().weight.device
        self.skill_router_A[name], self.skill_router_B[name] = bank.A.to(device), bank.B.to(device)
        skills = torch.arange(len(bank.ranks)).repeat_interleave(torch.tensor(bank.ranks))
        self.owners[name] = skills.to(device)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return W x + sum_s w_s Delta_s x, `(..., out)`, in the dtype of the wrapped layer's output."""
        if self.disable_adapters and self.merged:
            self.unmerge()
        result = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters or self.merged:
            return result
        for name in self.active_adapters:
            if name in self.skill_router_A:
                result = self._add(result, x, name)
        return result

    def _add(self, result: Tensor, x: Tensor, name: str) -> Tensor:
        down, up = self.skill_router_A[name], self.skill_router_B[name]
        hidden = linear(self._cast_input_dtype(x, down.dtype), down)
        hidden = hidden * self.by_rank(name).to(hidden.dtype)
        if result.dtype == hidden.dtype == up.dtype:
            return torch.addmm(result.flatten(0, -2), hidden.flatten(0, -2), up.t()).view(result.shape)
        return (result + linear(hidden, up)).to(result.dtype)

    def by_rank(self, name: str) -> Tensor:
        """Return the weight of each of the R ranks, that of its skill, `(R,)`."""
        gate = cast(SkillWeights, self.leaders[name].skill_router_gate[name])
        weights, owners = gate(), self.owners[name]
        if owners.device != self.skill_router_A[name].device:
            with torch.inference_mode(False):  # it outlives the forward that moves it
                owners = self.owners[name] = owners.to(self.skill_router_A[name].device)
        return weights.to(owners.device)[owners]

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Write base + sum_s w_s Delta_s into the wrapped layer, rounded once; the pristine weight is kept."""
        names = [name for name in check_adapters_to_merge(self, adapter_names) if name in self.skill_router_A]
        if not names:
            return
        weight = self.get_base_layer().weight
        if not weight.is_floating_point():
            raise MergeError(
                f"the layer's weight holds {weight.dtype} numbers; skills are merged into floating-point weights. Load "
                "the model unquantised, e.g. in bfloat16, to merge."
            )
        before = weight.detach().clone() if self.pristine is None else self.pristine
        merged = [*self.merged_adapters, *names]
        terms = [
            Factors(left=self.skill_router_B[name] * self.by_rank(name), right=self.skill_router_A[name])
            for name in merged
        ]
        update = total(terms, weight.device)
        result = (wide(before) + (update.T if isinstance(self.get_base_layer(), Conv1D) else update)).to(weight.dtype)
        if not torch.isfinite(result).all():
            raise MergeError(
                f"the weight with its skills holds NaN or infinity in {weight.dtype}; it must be finite. Lower the "
                "skills' weights."
            )
        weight.copy_(result)
        self.pristine, self.merged_adapters = before, merged

    @torch.no_grad()
    def unmerge(self) -> None:
        """Bring the wrapped layer's weight back, bit for bit."""
        if self.pristine is not None:
            self.get_base_layer().weight.copy_(self.pristine)
        self.pristine, self.merged_adapters = None, []
