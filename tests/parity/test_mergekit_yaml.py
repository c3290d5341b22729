"""Whole models: the configuration that a recipe writes, run by mergekit, gives the model that `LiveMerge` holds."""

import pytest
import torch
import yaml
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import workbench as wb

merge = pytest.importorskip("mergekit.merge", reason="mergekit is not installed (extra `peers`)")
from mergekit.config import MergeConfiguration  # noqa: E402
from mergekit.options import MergeOptions  # noqa: E402

torch.set_num_threads(1)

FILTERS = {"self_attn": [1, 0.2], "mlp": [0.1, 0.6, 0.2], "lm_head": 0.9, "*": [0.35, 0.8]}
RECIPES = {
    "linear of three": {"weights": [1, FILTERS, [0.5, 2]], "parents": 3},
    "linear, not normalised": {"weights": [0.7, 0.6], "normalise": False},
    "slerp": {"method": "slerp", "weights": [1, 3]},
    "slerp with filters and curves": {"method": "slerp", "share": FILTERS, "num_layers": 3},
    "cast first": {"weights": [0.6, 0.4], "dtype": "bfloat16"},
    "nuslerp": {"method": "nuslerp", "weights": [1, 3]},
    "nuslerp of task vectors": {"method": "nuslerp", "weights": [FILTERS, [0.5, 2]], "base": True, "num_layers": 3},
    "nuslerp of rows": {"method": "nuslerp", "weights": [1, 3], "vectors": "last"},
    "nuslerp of columns": {"method": "nuslerp", "weights": [[1, 2], 3], "base": True, "vectors": "first"},
    "multislerp": {"method": "multislerp", "weights": [0.6, 0.5], "base": True, "normalise": False},
    "karcher": {"method": "karcher", "parents": 3},
    "task arithmetic": {"method": "task_arithmetic", "weights": [FILTERS, 0.5], "base": True, "lambda_": [1, 0.5]},
    "ties": {
        "method": "ties",
        "weights": [1, FILTERS],
        "base": True,
        "density": [[0.2, 0.8], {"mlp": 0.5, "*": 1}],
        "lambda_": 0.8,
        "num_layers": 3,
    },
    "breadcrumbs": {
        "method": "breadcrumbs",
        "weights": [1, 0.5],
        "base": True,
        "density": 0.6,
        "gamma": [0.1, [0, 0.3]],
    },
    "breadcrumbs with election": {"method": "breadcrumbs_ties", "base": True, "density": 0.6, "rescale": True},
    "model stock": {"method": "model_stock", "base": True},
    "sce": {"method": "sce", "base": True, "select_topk": 0.5},
    "nearswap": {"method": "nearswap", "base": True, "parents": 1, "t": [0.01, 0.03]},
    "arcee fusion": {"method": "arcee_fusion", "base": True, "parents": 1},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"<": 0, "a": 1}, "<")))
    made = {}
    for tied in (True, False):
        config = LlamaConfig(
            hidden_size=12,
            intermediate_size=20,
            num_hidden_layers=3,
            num_attention_heads=2,
            num_key_value_heads=1,
            vocab_size=17,
            tie_word_embeddings=tied,
        )
        for seed in range(4):
            torch.manual_seed(seed)
            folder = tmp_path_factory.mktemp(f"parent{seed}")
            LlamaForCausalLM(config).save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            made.setdefault(tied, []).append(str(folder))
    return made


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("case", RECIPES)
def test_mergekit_runs_what_the_recipe_writes(case, tied, folders, tmp_path):
    options = dict(RECIPES[case])
    parents, share = folders[tied][: options.pop("parents", 2)], options.pop("share", None)
    base = folders[tied][3] if options.pop("base", False) else None
    recipe = wb.MergeRecipe(parents=parents, base=base, **options)
    recipe = recipe if share is None else recipe.with_ratio(share)
    config = MergeConfiguration.model_validate(yaml.safe_load(recipe.to_yaml()))
    merge.run_merge(config, str(tmp_path), MergeOptions(copy_tokenizer=False, write_model_card=False, quiet=True))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto").state_dict()
    live = wb.LiveMerge(recipe, device="cpu", exact=True)
    for name, ours in live.model.state_dict().items():
        assert ours.dtype == theirs[name].dtype
        if recipe.method == "linear":
            assert torch.equal(ours, theirs[name]), name
        else:
            torch.testing.assert_close(ours, theirs[name], rtol=2e-6, atol=2e-7)
    again = wb.MergeRecipe.from_yaml(recipe.to_yaml())
    live.apply(again)
    assert all(torch.allclose(t, theirs[name], rtol=2e-6, atol=2e-7) for name, t in live.model.state_dict().items())
