"""The badge: for every method it names tool, version and largest difference, which here is one of rounding."""

import sys

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import workbench as wb
from workbench.errors import ConfigError
from workbench.merging import parity
from workbench.merging.parity import recipe_parity
from workbench.merging.recipe import METHODS, options_of

torch.set_num_threads(1)


def llama(seed):
    torch.manual_seed(seed)
    sizes = {"hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 2, "vocab_size": 17}
    return LlamaForCausalLM(LlamaConfig(num_attention_heads=2, num_key_value_heads=1, **sizes))


def recipe(method, **changes):
    options = options_of(method)
    fields = {"density": 0.5, "base": "base", "t": 0.02, "lambda_": 0.8}
    count = min(METHODS[method].most or 2, 2)
    weights = [0.6, 0.5][:count] if METHODS[method].weighted and method != "karcher" else None
    fields = {name: value for name, value in fields.items() if name in options} | changes
    return wb.MergeRecipe(parents=["a", "b"][:count], method=method, weights=weights, **fields)


def badge(asked):
    return recipe_parity(asked, models=[llama(seed) for seed in range(len(asked.parents))], base=llama(9))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_against_mergekit(method):
    pytest.importorskip("mergekit.merge_methods", reason="mergekit is not installed (extra `peers`)")
    found = badge(recipe(method))
    assert found.largest <= 1e-6
    assert found.tensors == 21
    assert str(found).startswith(f"{method} against mergekit {found.version}: largest difference ")
    assert ("compared at density 1" in str(found)) == (METHODS[method].trim in ("random", "della"))


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "dare_linear", "dare_ties"])
def test_the_semantics_of_peft_against_peft(method):
    found = badge(recipe(method, semantics="peft"))
    assert found.largest <= 1e-6
    assert str(found).startswith(f"{method} against peft ")


def test_a_difference_is_told_with_its_place(monkeypatch):
    pytest.importorskip("mergekit.merge_methods", reason="mergekit is not installed (extra `peers`)")
    true = parity.merge_tensor

    def wrong(method, tensors, base, settings):
        result = true(method, tensors, base, settings)
        return result + 0.25 if settings.name == "model.norm.weight" else result

    monkeypatch.setattr(parity, "merge_tensor", wrong)
    found = str(badge(recipe("ties")))
    assert "largest difference 0.25 (in model.norm.weight, whose largest entry is 1) in 21 tensors" in found


def test_what_cannot_be_compared(monkeypatch):
    with pytest.raises(ConfigError, match=r"semantics='paper'; no tool merges just as the papers say"):
        badge(recipe("ties", semantics="paper"))
    with pytest.raises(ConfigError, match=r"semantics='peft' with ties; PEFT has .* one density for all"):
        badge(recipe("ties", semantics="peft", density=[0.5, 0.4]))
    monkeypatch.setitem(sys.modules, "mergekit.merge_methods", None)
    with pytest.raises(ConfigError, match=r"mergekit is not installed .* Install the extra: pip install"):
        badge(recipe("linear"))
