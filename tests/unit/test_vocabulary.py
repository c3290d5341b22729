"""Vocabularies: rows by token, by hand; unions that keep ids and are reached by text; clear refusals."""

import json
from types import SimpleNamespace

import pytest
import torch
from pico_language import EOS, byte_tokenizer, pico
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AddedToken, PreTrainedTokenizerFast

import workbench as wb
from workbench.errors import MergeError, ModelError
from workbench.merging.vocabulary import align_models, align_vocabularies, union_tokenizer, vocabulary_tensors

torch.set_num_threads(1)


def words(*tokens):
    """Stands in for a tokenizer where only its vocabulary is asked for."""
    return SimpleNamespace(get_vocab=lambda: {token: place for place, token in enumerate(tokens)})


def align(rows, how="base", base=None, **tokenizers):
    """Align tensors of one column; a row is written as its number."""
    tensors = {name: torch.tensor(values, dtype=torch.float32).view(-1, 1) for name, values in rows.items()}
    vocabulary = align_vocabularies(tokenizers, {name: len(t) for name, t in tensors.items()}, how, base=base)
    aligned = vocabulary.align([lambda t=t: t for t in tensors.values()])
    return [tensor.flatten().tolist() for tensor in aligned]


def test_a_missing_token_takes_the_row_of_the_base_or_of_its_only_owner_or_the_mean(monkeypatch):
    tokenizers = {"a": words("x", "y", "z"), "b": words("y", "x"), "c": words("z", "x", "w")}
    rows = {"a": [1, 2, 3], "b": [20, 10], "c": [300, 100, 400]}
    for base in (None, "a"):
        assert align(rows, "base", base, **tokenizers) == [[1, 2, 3], [10, 20, 3], [100, 2, 300]]
    monkeypatch.setattr("workbench.merging.vocabulary.union_tokenizer", lambda *_: words("x", "y", "z", "w"))
    assert align(rows, "union", **tokenizers) == [[1, 2, 3, 400], [10, 20, 151.5, 400], [100, 11, 300, 400]]
    assert align(rows, "union", "a", **tokenizers) == [[1, 2, 3, 400], [10, 20, 3, 400], [100, 2, 300, 400]]
    assert align(rows, "union", "b", **tokenizers) == [[1, 2, 3, 400], [10, 20, 151.5, 400], [100, 20, 300, 400]]


def test_padding_rows_are_dropped_and_an_id_without_token_is_zero():
    tokenizers = {"a": words("x", "y"), "b": words("y", "x")}
    assert align({"a": [1, 2, 8, 9], "b": [20, 10]}, **tokenizers) == [[1, 2], [10, 20]]
    holes = SimpleNamespace(get_vocab=lambda: {"x": 0, "y": 2})
    assert align({"a": [1, 7, 2], "b": [20, 10]}, a=holes, b=words("y", "x")) == [[1, 0, 2], [10, 0, 20]]


def test_equal_vocabularies_need_no_alignment():
    tokenizers = {"a": words("x", "y"), "b": words("x", "y")}
    assert align_vocabularies(tokenizers, {"a": 3, "b": 3}, "union", base=None) is None
    assert align_vocabularies(tokenizers, {"a": 3, "b": 3}, None, base=None) is None


def test_tensors_keep_their_format_and_may_have_any_further_dimensions():
    vocabulary = align_vocabularies({"a": words("x", "y"), "b": words("y")}, {"a": 2, "b": 1}, "base", base=None)
    bias = [torch.tensor([1.0, 2.0]).bfloat16(), torch.tensor([5.0]).bfloat16()]
    assert [t.tolist() for t in vocabulary.align([lambda t=t: t for t in bias])] == [[1, 2], [1, 5]]
    cube = [torch.rand(2, 3, 4), torch.rand(1, 3, 4)]
    first, second = vocabulary.align([lambda t=t: t for t in cube])
    assert torch.equal(first, cube[0])
    assert torch.equal(second, torch.stack([cube[0][0], cube[1][0]]))


def test_what_differs_without_an_option_is_an_error_with_sizes_and_the_option():
    with pytest.raises(MergeError, match=r"'a' \(2 tokens\) and 'b' \(1 tokens\) differ.*vocabulary='union' or 'base'"):
        align_vocabularies({"a": words("x", "y"), "b": words("x")}, {"a": 2, "b": 1}, None, base=None)
    with pytest.raises(ModelError, match=r"'a' has tokens up to id 1, its model only 1 embedding rows"):
        align_vocabularies({"a": words("x", "y"), "b": words("x")}, {"a": 1, "b": 1}, "base", base=None)


def pairs(vocabulary, merges, added=()):
    """A byte-pair tokenizer with a few letters, merges in order, and added tokens."""
    tokens = ["<eos>", *vocabulary, *("".join(merge) for merge in merges)]
    model = models.BPE(vocab={token: place for place, token in enumerate(tokens)}, merges=list(merges))
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")
    fast.add_tokens(list(added))
    return fast


def test_a_union_keeps_ids_and_text_reaches_its_tokens():
    lead = pairs("abcd", [("a", "b")], [AddedToken("<chat>", special=True)])
    other = pairs(
        "badce", [("b", "a"), ("c", "d"), ("cd", "e")], [AddedToken("<note>", special=True, normalized=False)]
    )
    union = union_tokenizer(lead, [other])
    ids = union.get_vocab()
    assert {token: ids[token] for token in lead.get_vocab()} == lead.get_vocab()
    assert set(ids) == {*lead.get_vocab(), *other.get_vocab()}
    assert sorted(ids.values()) == list(range(len(ids)))
    assert union.tokenize("ab<chat>cde<note>ba") == ["ab", "<chat>", "cde", "<note>", "ba"]
    assert union.decode(union("abcde").input_ids) == "abcde"
    assert union.eos_token_id == lead.eos_token_id
    assert "<note>" in union.all_special_tokens or union.added_tokens_decoder[ids["<note>"]].special


def test_a_union_of_added_tokens_only():
    lead, other = byte_tokenizer(), byte_tokenizer()
    other.add_tokens([AddedToken("<|im_start|>", special=True), "arrhythmia"])
    union = union_tokenizer(lead, [other, other])
    assert union.get_vocab() == other.get_vocab()
    assert union("<|im_start|>arrhythmia").input_ids == [260, 261]
    assert lead.get_vocab() == byte_tokenizer().get_vocab()


def test_a_union_of_different_kinds_is_refused():
    other = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"heart": 0, "<u>": 1}, "<u>")))
    with pytest.raises(MergeError, match=r"2 ordinary tokens, e.g. 'heart', of a WordLevel .* join a BPE.*'base'"):
        union_tokenizer(byte_tokenizer(), [other])
    with pytest.raises(MergeError, match=r"without a tokenizer.json cannot be united"):
        union_tokenizer(byte_tokenizer(), [SimpleNamespace(is_fast=False)])


def extended(seed, folder=None, padded=0, token="<note>"):
    """A pico model with one more token, and rows of padding behind it."""
    model, tokenizer = pico(seed=seed), byte_tokenizer()
    tokenizer.add_tokens([AddedToken(token, special=True)])
    model.resize_token_embeddings(261 + padded, mean_resizing=False)
    if folder is not None:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return model, tokenizer


def plain(seed, folder):
    model, tokenizer = pico(seed=seed), byte_tokenizer(chat=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model, tokenizer


@pytest.mark.parametrize("method", ["linear", "slerp", "karcher"])
def test_an_export_with_aligned_vocabularies(method, tmp_path):
    first, _ = plain(0, tmp_path / "a")
    second, _ = extended(1, tmp_path / "b", padded=3)
    recipe = wb.MergeRecipe(parents=[str(tmp_path / "a"), str(tmp_path / "b")], method=method)
    with pytest.raises(
        MergeError, match=r"'lm_head.weight' has shape \(260, 24\) in '.*/a' and \(264, 24\).*'union' or"
    ):
        wb.export_merge(recipe, tmp_path / "none", progress=False)
    out = wb.export_merge(recipe, tmp_path / "union", vocabulary="union", progress=False)
    model, tokenizer = wb.load_model(out)
    assert (len(tokenizer), model.config.vocab_size, tokenizer("<note>").input_ids) == (261, 261, [260])
    card = (out / "README.md").read_text()
    assert "Vocabulary: 261 tokens; `union`" in card
    assert f"Chat template: that of `{recipe.parents[0]}`; `{recipe.parents[1]}` have another" in card
    assert '"eos_token": "<eos>"' in card
    live = wb.LiveMerge(recipe, vocabulary="union", exact=True)
    assert live.tokenizer.get_vocab() == tokenizer.get_vocab()
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in live.model.state_dict().items())
    base = wb.load_model(wb.export_merge(recipe, tmp_path / "base", vocabulary="base", progress=False))[0]
    assert base.get_output_embeddings().weight.shape == (260, 24)
    if method == "linear":
        expected = (first.lm_head.weight + second.lm_head.weight[:260]) / 2
        torch.testing.assert_close(base.lm_head.weight, expected)
        row = model.get_input_embeddings().weight[260]
        torch.testing.assert_close(row, second.get_input_embeddings().weight[260])
        assert torch.equal(model.lm_head.weight[:260], base.lm_head.weight)


def test_with_a_base_its_settings_and_ids_are_the_results(tmp_path):
    plain(0, tmp_path / "base")
    model, _ = extended(1, tmp_path / "a", token="<other>")
    model.config.eos_token_id = model.generation_config.eos_token_id = 260
    model.save_pretrained(tmp_path / "a")
    recipe = wb.MergeRecipe(parents=[str(tmp_path / "a")], method="task_arithmetic", base=str(tmp_path / "base"))
    out = wb.export_merge(recipe, tmp_path / "out", vocabulary="base", progress=False)
    assert (out / "tokenizer.json").read_text() == (tmp_path / "base" / "tokenizer.json").read_text()
    config = json.loads((out / "config.json").read_text())
    assert (config["vocab_size"], config["eos_token_id"]) == (260, EOS)
    live = wb.LiveMerge(recipe, vocabulary="base").model
    assert (live.config.vocab_size, live.config.eos_token_id, live.generation_config.eos_token_id) == (260, EOS, EOS)


@pytest.mark.parametrize("tied", [True, False])
def test_loaded_models_get_one_vocabulary(tied, tmp_path):
    (first, one), (second, two) = plain(0, tmp_path), extended(1, padded=2)
    for model in (first, second):
        model.config.tie_word_embeddings = tied
        model.tie_weights()
    rows = second.get_input_embeddings().weight.detach().clone()
    tokenizer = align_models({"a": first, "b": second}, {"a": one, "b": two}, "union", base=None)
    live = wb.LiveMerge(wb.MergeRecipe(parents=["a", "b"]), models=[first, second], tokenizer=tokenizer)
    for model in (first, second, live.model):
        assert model.get_output_embeddings().weight.shape == (261, 24)
        assert (model.lm_head.weight is model.get_input_embeddings().weight) == tied
        torch.testing.assert_close(model.get_input_embeddings().weight[260], rows[260])
    assert torch.equal(second.get_input_embeddings().weight, rows[:261])
    assert vocabulary_tensors(first) == {"model.embed_tokens.weight", "lm_head.weight"}
    assert align_models({"a": first}, {"a": one}, None, base=None) is one
