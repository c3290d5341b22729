"""The folder that `export_merge` writes against the one that mergekit's `run_merge` writes, tensor by tensor."""

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AddedToken, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import workbench as wb

merge = pytest.importorskip("mergekit.merge", reason="mergekit is not installed (extra `peers`)")
from mergekit.config import MergeConfiguration  # noqa: E402
from mergekit.options import MergeOptions  # noqa: E402

torch.set_num_threads(1)

WORDS = ["<u>", "heart", "lung", "liver"]
ADDED = {0: ["<chat>"], 1: ["<note>", "<chat>"], 2: ["<chat>", "<note>", "<plan>"]}
FILTERS = {"self_attn": [1, 0.2], "mlp": [0.1, 0.6, 0.2], "lm_head": 0.9, "*": [0.35, 0.8]}
RECIPES = {
    "linear": {"weights": [0.6, FILTERS]},
    "linear of three": {"weights": [1, 2, [0.5, 3]], "parents": 3},
    "linear, not normalised": {"weights": [0.7, 0.6], "normalise": False},
    "linear, cast first": {"weights": [0.7, 0.6], "dtype": "float16"},
    "slerp": {"method": "slerp", "weights": [1, 3]},
    "slerp with filters and curves": {"method": "slerp", "share": FILTERS, "num_layers": 3},
}


def save(folder, seed, dtype, *, vocab=17, tied=False, added=()):
    """A tiny checkpoint; with `added` its tokenizer has tokens of its own."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 3, "num_attention_heads": 2}
    config = LlamaConfig(**sizes, num_key_value_heads=1, vocab_size=vocab, tie_word_embeddings=tied)
    LlamaForCausalLM(config).to(dtype).save_pretrained(folder)
    words = Tokenizer(WordLevel({word: place for place, word in enumerate(WORDS)}, "<u>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<u>")
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in added])
    tokenizer.save_pretrained(folder)
    return str(folder)


def theirs(recipe, folder, **extra):
    config = MergeConfiguration.model_validate(yaml.safe_load(recipe.to_yaml()) | extra)
    merge.run_merge(config, str(folder), MergeOptions(write_model_card=False, quiet=True))
    return read(folder)


def read(folder):
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def apart(ours, other):
    """Largest difference, in steps of the format at the size of the larger number."""
    eps = torch.finfo(ours.dtype).eps
    a, b = ours.double(), other.double()
    size = torch.exp2(torch.floor(torch.log2(torch.maximum(a.abs(), b.abs()).clamp_min(1e-30)))) * eps
    return ((a - b).abs() / size).max().item()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("case", RECIPES)
def test_whole_models(case, dtype, tied, tmp_path):
    options = dict(RECIPES[case])
    count, share = options.pop("parents", 2), options.pop("share", None)
    folders = [save(tmp_path / str(seed), seed, dtype, tied=tied) for seed in range(count)]
    recipe = wb.MergeRecipe(parents=folders, **options)
    recipe = recipe if share is None else recipe.with_ratio(share)
    ours = read(wb.export_merge(recipe, tmp_path / "ours", max_shard_bytes=3000, progress=False))
    other = theirs(recipe, tmp_path / "theirs")
    assert ours.keys() == other.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == other[name].dtype
        if recipe.method == "linear":
            assert torch.equal(tensor, other[name]), name
        else:
            # Near 0, where two terms cancel, a step is one of the larger term.
            assert apart(tensor, other[name]) <= 1 or torch.allclose(tensor, other[name], rtol=0, atol=1e-4), name


@pytest.mark.parametrize("how", ["union", "base"])
@pytest.mark.parametrize("method", ["linear", "slerp"])
def test_vocabularies(method, how, tmp_path):
    count = 3 if method == "linear" else 2
    folders = [
        save(tmp_path / str(seed), seed, torch.float32, vocab=len(WORDS) + len(ADDED[seed]) + seed, added=ADDED[seed])
        for seed in range(count)
    ]
    recipe = wb.MergeRecipe(parents=folders, method=method, weights=[1, 2, 3][:count])
    out = wb.export_merge(recipe, tmp_path / "ours", vocabulary=how, progress=False)
    # Without a base_model mergekit's "base" is whichever model its set of them gives first.
    extra = {"base_model": folders[0]} if how == "base" else {}
    ours, other = read(out), theirs(recipe, tmp_path / "theirs", tokenizer={"source": how}, **extra)
    ids, their_ids = (AutoTokenizer.from_pretrained(tmp_path / name).get_vocab() for name in ("ours", "theirs"))
    assert ids.keys() == their_ids.keys()
    assert len(ids) == (5 if how == "base" else 6 + (method == "linear"))
    for name, tensor in ours.items():
        expected = other[name]
        if len(tensor) == len(ids):
            order = torch.tensor([their_ids[token] for token in sorted(ids, key=lambda token: ids[token])])
            expected = expected[order]
        torch.testing.assert_close(tensor, expected, rtol=0, atol=1e-7)
