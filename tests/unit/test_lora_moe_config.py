"""What a LoraMoeConfig refuses: values out of range, and pairs that do not fit, each told with both values."""

import pytest

from workbench.adapters import LoraMoeConfig
from workbench.errors import ConfigError


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("r", 0, "whole number of at least 1"),
        ("num_experts", True, "whole number"),
        ("num_experts_per_tok", 1.5, "whole number"),
        ("queue_size", 0, "at least 1"),
        ("queue_dim", 0, "at least 1"),
        ("lora_alpha", 0, "number of at least"),
        ("lora_dropout", 1.0, "at least 0, below 1"),
        ("router_jitter_noise", -0.1, "at least 0, below 1"),
        ("router_aux_loss_coef", -1, "at least 0"),
        ("router_z_loss_coef", float("nan"), "at least 0"),
        ("contrastive_loss_coef", "0.1", "at least 0"),
        ("temperature", 0.0, "number of at least"),
        ("router", "shared", "module, layer"),
        ("routing", "word", "token, sequence"),
        ("contrastive", "memory", "queue, in_batch"),
        ("bias", "lora_only", "none, all, lora_moe_only"),
    ],
)
def test_a_value_out_of_range_is_told(name, value, rule):
    with pytest.raises(ConfigError, match=rf"(?s)^{name} is {value!r}; .*{rule}.*Choose one"):
        LoraMoeConfig(**{name: value})


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"num_experts": 2, "num_experts_per_tok": 3}, "num_experts_per_tok is 3 and num_experts is 2"),
        ({"num_experts": 1, "num_experts_per_tok": 1}, "contrastive_loss_coef is 0.01 and num_experts is 1"),
        ({"contrastive": "in_batch", "num_experts_per_tok": 4}, "'in_batch', num_experts_per_tok is 4 and num_experts"),
        ({"contrastive": "in_batch", "num_experts_per_tok": 1}, "'in_batch', num_experts_per_tok is 1 and num_experts"),
        ({"layers_pattern": "layers"}, "layers_pattern is 'layers' and layers_to_transform is None"),
        ({"target_modules": ".*q", "layers_to_transform": 0}, "expression '.*q' and layers_to_transform is 0"),
    ],
)
def test_a_pair_that_does_not_fit_is_told_with_both_values(settings, told):
    with pytest.raises(ConfigError) as raised:
        LoraMoeConfig(**settings)
    assert told in str(raised.value)


def test_peft_may_catch_it_as_a_value_error_and_every_option_has_help():
    with pytest.raises(ValueError, match="r is 0"):
        LoraMoeConfig(r=0)
    own = set(LoraMoeConfig.__annotations__)
    assert all(LoraMoeConfig.__dataclass_fields__[name].metadata["help"] for name in own)


def test_the_scale_of_lora_and_of_rslora():
    assert LoraMoeConfig(r=4, lora_alpha=8).scaling == 2
    assert LoraMoeConfig(r=4, lora_alpha=8, use_rslora=True).scaling == 4
