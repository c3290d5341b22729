"""The tuner: puts mixtures of LoRA experts beside the layers of a model that a configuration names."""

from __future__ import annotations

import re

from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import nn

from workbench.adapters._register import check_name
from workbench.adapters.lora_moe.config import METHOD, PREFIX, LoraMoeConfig
from workbench.adapters.lora_moe.layer import LoraMoeLayer
from workbench.adapters.lora_moe.router import Batch
from workbench.errors import ConfigError


class LoraMoeModel(BaseTuner):
    """What `get_peft_model` wraps a model into for a `LoraMoeConfig`; the model's methods are reached through it.

    Raises:
        ConfigError: An adapter's name is part of the method's own, a target is no linear layer, or a merge is asked
            for: what a mixture adds depends on the token, so that no weight holds it.
    """

    prefix = PREFIX
    tuner_layer_cls = LoraMoeLayer
    target_module_mapping = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

    def _prepare_model(self, peft_config: PeftConfig, model: nn.Module) -> None:
        assert isinstance(peft_config, LoraMoeConfig)
        layers = (module for module in model.modules() if isinstance(module, LoraMoeLayer))
        first = next(layers, None)
        self._batch = first.batch if first is not None else Batch()
        if first is None:
            model.register_forward_pre_hook(self._batch, with_kwargs=True)
        self._batch.by_sequence |= peft_config.routing == "sequence"
        self._leaders: dict[str, LoraMoeLayer] = {}

    def _create_and_replace(
        self,
        peft_config: PeftConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        assert isinstance(peft_config, LoraMoeConfig)
        check_name(adapter_name, METHOD)
        layer = target if isinstance(target, LoraMoeLayer) else LoraMoeLayer(target, self._batch)
        leader = None
        place = re.match(r"(.*?\.\d+)\.", current_key)
        if peft_config.router == "layer" and place:
            leader = self._leaders.setdefault(place[1], layer)
        layer.update_layer(
            adapter_name, peft_config, None if leader is layer else leader, inference_mode=peft_config.inference_mode
        )
        if layer is not target:
            if adapter_name not in self.active_adapters:
                layer.requires_grad_(False)
            self._replace_module(parent, target_name, layer, target)

    def _check_merge_allowed(self) -> None:
        raise ConfigError(
            "a mixture of LoRA experts cannot be merged into weights: what it adds depends on the token. Keep the "
            "adapter beside the model (save_pretrained), or take it off with unload()."
        )
