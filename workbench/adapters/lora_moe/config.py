"""The settings of a mixture of LoRA experts."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from peft import PeftConfig, PeftType

from workbench.errors import ConfigError

METHOD = "lora_moe"
PREFIX = f"{METHOD}_"


def _help(text: str) -> dict[str, str]:
    return {"help": text}


@dataclass
class LoraMoeConfig(PeftConfig):
    """Describe a mixture of LoRA experts beside the linear layers of a frozen model; a PEFT method like any other.

    y = W x + s * sum_{e in top-K} g_e B_e A_e x, where g is the softmax of the K largest logits of a linear router, and
    s = lora_alpha / r, or lora_alpha / sqrt(r) with `use_rslora`. A token activates K experts of rank r, so that the
    LoRA of equal active rank has r * K and that of equal parameters about r * num_experts.

    Every argument has its meaning in its field's help, `LoraMoeConfig.__dataclass_fields__["r"].metadata["help"]`.

    Raises:
        ConfigError: A value is out of its range, or two do not fit each other.

    Source: MixLoRA (arXiv 2404.15159), section 3, for the mixture; CoMoE (arXiv 2505.17553) for the contrast and its
    coefficient; SparseDoctor (arXiv 2509.14269), in our reading, for the queue.
    """

    r: int = field(default=8, metadata=_help("Rank of each expert, at least 1."))
    lora_alpha: float = field(default=16, metadata=_help("Scale of the update before it is divided by r, above 0."))
    lora_dropout: float = field(default=0.0, metadata=_help("Dropout on what the experts read, 0 to below 1."))
    use_rslora: bool = field(default=False, metadata=_help("Divide lora_alpha by sqrt(r) (rsLoRA), not by r."))
    num_experts: int = field(default=4, metadata=_help("Experts of each layer, of which a router chooses."))
    num_experts_per_tok: int = field(default=2, metadata=_help("Experts that a token takes, 1 to num_experts."))
    shared_expert: bool = field(default=False, metadata=_help("Add one expert that every token takes, with weight 1."))
    router: str = field(default="module", metadata=_help("One for each target 'module', or for each decoder 'layer'."))
    routing: str = field(default="token", metadata=_help("By 'token', or by 'sequence': its prompt's mean decides."))
    router_jitter_noise: float = field(default=0.0, metadata=_help("In training routers read x * uniform(1 -+ noise)."))
    router_aux_loss_coef: float = field(default=0.001, metadata=_help("Weight of the balance loss, 0 for none."))
    router_z_loss_coef: float = field(default=0.0, metadata=_help("Weight of the z-loss, 0 for none."))
    contrastive_loss_coef: float = field(default=0.01, metadata=_help("Weight of the contrastive loss, 0 for none."))
    contrastive: str = field(default="queue", metadata=_help("Against past outputs ('queue') or 'in_batch', by token."))
    temperature: float = field(default=0.07, metadata=_help("Temperature of the contrastive loss, above 0."))
    queue_size: int = field(default=256, metadata=_help("Past outputs that are kept for each expert of a layer."))
    queue_dim: int | None = field(default=128, metadata=_help("Width they are projected to; None keeps them whole."))
    target_modules: Any = field(default=None, metadata=_help("Names, an expression or 'all-linear', as in LoRA."))
    exclude_modules: Any = field(default=None, metadata=_help("Names, or a regular expression, of layers to leave."))
    layers_to_transform: Any = field(default=None, metadata=_help("Index, or indices, of the decoder layers to adapt."))
    layers_pattern: Any = field(default=None, metadata=_help("Name of the list of decoder layers, if unusual."))
    modules_to_save: list[str] | None = field(default=None, metadata=_help("Other modules to train and save whole."))
    bias: str = field(default="none", metadata=_help("Biases of the model to train: 'none', 'all', 'lora_moe_only'."))

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = getattr(PeftType, METHOD.upper())
        for name in ("target_modules", "exclude_modules"):
            if isinstance(value := getattr(self, name), list):
                setattr(self, name, set(value))
        self._check_ranges()
        self._check_pairs()

    @property
    def scaling(self) -> float:
        """The s that the experts' sum is multiplied with."""
        return self.lora_alpha / (math.sqrt(self.r) if self.use_rslora else self.r)

    @property
    def uses_queue(self) -> bool:
        """Whether layers keep queues of past outputs."""
        return self.contrastive_loss_coef > 0 and self.contrastive == "queue"

    def _check_ranges(self) -> None:
        for name, (kind, low, high) in _RANGES.items():
            value = getattr(self, name)
            if name == "queue_dim" and value is None:
                continue
            number = isinstance(value, kind) and not isinstance(value, bool) and math.isfinite(value)
            if not number or not low <= value < high:
                rule = f"a {'whole ' if kind is int else ''}number of at least {low:g}, below {high:g}"
                raise ConfigError(f"{name} is {value!r}; it must be {rule}. Choose one in that range.")
        for name, words in _WORDS.items():
            if (value := getattr(self, name)) not in words:
                raise ConfigError(f"{name} is {value!r}; it must be one of {', '.join(words)}. Choose one.")

    def _check_pairs(self) -> None:
        experts, chosen, contrast = self.num_experts, self.num_experts_per_tok, self.contrastive_loss_coef
        if chosen > experts:
            raise ConfigError(
                f"num_experts_per_tok is {chosen} and num_experts is {experts}; a token cannot take more experts than "
                "there are. Lower the first or raise the second."
            )
        if contrast > 0 and experts == 1:
            raise ConfigError(
                f"contrastive_loss_coef is {contrast} and num_experts is 1; a contrast needs a second expert. Set "
                "contrastive_loss_coef=0 or raise num_experts."
            )
        if contrast > 0 and self.contrastive == "in_batch" and not 2 <= chosen < experts:
            raise ConfigError(
                f"contrastive is 'in_batch', num_experts_per_tok is {chosen} and num_experts is {experts}; it compares "
                "the chosen experts with each other and with the rest, so at least 2 and not all must be chosen. "
                "Change num_experts_per_tok, or set contrastive='queue'."
            )
        pattern, layers, targets = self.layers_pattern, self.layers_to_transform, self.target_modules
        if pattern and layers is None:
            raise ConfigError(
                f"layers_pattern is {pattern!r} and layers_to_transform is None; a pattern only says where the indices "
                "count. Set layers_to_transform, or leave out layers_pattern."
            )
        if isinstance(targets, str) and targets != "all-linear" and layers is not None:
            raise ConfigError(
                f"target_modules is the expression {targets!r} and layers_to_transform is {layers!r}; an expression "
                "chooses the layers itself. Leave out layers_to_transform, or list names in target_modules."
            )


_ABOVE_ZERO = 1e-12
_RANGES: dict[str, tuple[Any, float, float]] = {
    **dict.fromkeys(("r", "num_experts", "num_experts_per_tok", "queue_size", "queue_dim"), (int, 1, math.inf)),
    **dict.fromkeys(("lora_alpha", "temperature"), (int | float, _ABOVE_ZERO, math.inf)),
    **dict.fromkeys(("lora_dropout", "router_jitter_noise"), (int | float, 0, 1)),
    **dict.fromkeys(
        ("router_aux_loss_coef", "router_z_loss_coef", "contrastive_loss_coef"), (int | float, 0, math.inf)
    ),
}
_WORDS = {
    "router": ("module", "layer"),
    "routing": ("token", "sequence"),
    "contrastive": ("queue", "in_batch"),
    "bias": ("none", "all", f"{PREFIX}only"),
}
