"""Many recipes in one batch: each row writes what its own merge writes alone."""

import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pico_language import byte_tokenizer, pico
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    PhiConfig,
    Qwen2Config,
    Qwen3Config,
)

from workbench.errors import ConfigError, MergeError
from workbench.merging import rows as rows_module
from workbench.merging.live import LiveMerge
from workbench.merging.recipe import METHODS, MergeRecipe
from workbench.merging.rows import RowEmbedding, RowLinear, RowNorm
from workbench.merging.spectrum import RatioSpectrum, spectrum_recipes

SHAPE = {
    "vocab_size": 50,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "initializer_range": 0.4,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}
HEAD = {"head_dim": 8}
FAMILIES = {
    "llama": LlamaConfig(**SHAPE, tie_word_embeddings=False, attention_bias=True),
    "llama-tied": LlamaConfig(**SHAPE, tie_word_embeddings=True),
    "mistral": MistralConfig(**SHAPE, sliding_window=8),
    "qwen2": Qwen2Config(**SHAPE),
    "qwen3": Qwen3Config(**SHAPE, **HEAD),
    "gemma": GemmaConfig(**SHAPE, **HEAD),
    "gemma2": Gemma2Config(**SHAPE, **HEAD, sliding_window=8),
    "gemma3": Gemma3TextConfig(**SHAPE, **HEAD, sliding_window=8),
    "phi": PhiConfig(**(SHAPE | {"num_key_value_heads": 3})),
    "gpt2": GPT2Config(vocab_size=50, n_embd=24, n_layer=2, n_head=3, n_positions=64, initializer_range=0.4),
}
NAMES = ["x/general", "x/medical"]
CURVE = [{"mlp": [0.0, 1.0], "norm": 0.25, "embed": 0.6, "*": 0.5}, {"mlp": [1.0, 0.0], "embed": 0.4, "*": 0.5}]


def random_models(config, count: int = 2) -> list:
    models = []
    for seed in range(count):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config).eval()
        for parameter in model.parameters():
            # Norms and biases start alike in every model, where a wrong mix of them could not be seen.
            parameter.data += 0.3 * torch.randn_like(parameter)
        models.append(model)
    return models


def prompts(rows: int = 2) -> dict[str, torch.Tensor]:
    """Different prompts of different lengths, padded on the left."""
    lengths = [5, 3, 6][:rows]
    ids, mask = torch.zeros(rows, max(lengths), dtype=torch.long), torch.zeros(rows, max(lengths), dtype=torch.long)
    for row, length in enumerate(lengths):
        ids[row, -length:] = torch.arange(length) * 7 % 43 + row + 1
        mask[row, -length:] = 1
    return {"input_ids": ids, "attention_mask": mask}


def written(model, batch: dict[str, torch.Tensor], tokens: int = 8) -> torch.Tensor:
    return model.generate(**batch, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)


def one_by_one(live: LiveMerge, recipes, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    answers = []
    for recipe in recipes:
        live.apply(recipe)
        answers.append(written(live.model, batch))
    return torch.cat(answers)


@pytest.mark.parametrize("family", FAMILIES)
def test_each_row_writes_what_its_merge_writes_alone(family: str) -> None:
    live = LiveMerge(MergeRecipe(parents=NAMES), models=random_models(FAMILIES[family]))
    slerp = live.recipe.replace(method="slerp")
    recipes = [*spectrum_recipes(live.recipe, 3), *spectrum_recipes(slerp, [0.3]), live.recipe.replace(weights=CURVE)]
    spectrum = RatioSpectrum(recipes, live=live)
    assert "RowNorm" in repr(spectrum.model)
    alone = one_by_one(live, recipes, prompts())
    torch.testing.assert_close(written(spectrum.model, spectrum.expand(prompts())), alone, rtol=0, atol=0)


# GPT-2 is left out: alone it makes one row of positions for the whole batch, where generate gives every row its own.
@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - {"gpt2"}))
def test_scores_are_those_of_the_merge_for_short_and_long_prompts(family: str, monkeypatch) -> None:
    live = LiveMerge(MergeRecipe(parents=NAMES), models=random_models(FAMILIES[family]))
    spectrum = RatioSpectrum(live.recipe, [0.0, 0.4, 1.0], live=live)
    for threshold in (1, 10**6):
        monkeypatch.setitem(rows_module.MIXED_FROM, "cpu", threshold)
        with torch.no_grad():
            together = spectrum.model(**spectrum.expand(prompts())).logits.unflatten(0, (3, -1))
            for recipe, logits in zip(spectrum.recipes, together):
                live.apply(recipe)
                mask = prompts()["attention_mask"].bool()
                alone = live.model(**prompts()).logits
                assert not torch.allclose(alone[mask], live.parent(0)(**prompts()).logits[mask]) or recipe.ratio == 0.0
                torch.testing.assert_close(logits[mask], alone[mask], rtol=1e-4, atol=1e-4)


def test_three_parents_signs_and_sums_other_than_one() -> None:
    models = random_models(FAMILIES["llama"], 3)
    recipe = MergeRecipe(parents=[*NAMES, "x/third"], normalise=False)
    recipes = [recipe.replace(weights=weights) for weights in ([1, 0.5, -0.5], [0, 0, 1], [0.2, 0.9, 0.4])]
    spectrum = RatioSpectrum(recipes, models=models)
    torch.testing.assert_close(
        written(spectrum.model, spectrum.expand(prompts(1))), one_by_one(spectrum.live, recipes, prompts(1))
    )


TRIMMED = {"base": "x/base", "density": 0.5}
SPARSE = {
    "task_arithmetic": [{"weights": [0.7, 0.6]}, {"weights": [0.2, -0.5], "lambda_": 0.5}],
    "ties": [TRIMMED, TRIMMED | {"lambda_": 0.4}, TRIMMED | {"density": 0.2, "weights": [0.9, 0.3]}],
    "dare_linear": [TRIMMED | {"weights": [0.9, 0.1]}, TRIMMED | {"weights": [0.1, 1.4], "lambda_": [0.2, 1.0]}],
    "della": [TRIMMED, TRIMMED | {"epsilon": 0.1}],
    "breadcrumbs": [TRIMMED | {"weights": [0.4, 0.3], "normalise": True}, TRIMMED | {"weights": [2, 1]}],
    "multislerp": [{"weights": [0.3, 0.7]}, {"weights": [0.6, 0.4]}],
    "nuslerp": [{"weights": [0.3, 0.7], "vectors": "last"}, {"weights": [0.3, 0.7]}],
    "arcee_fusion": [{}],
    "sce": [{"select_topk": 0.5}, {}],
    "nearswap": [{"t": 0.05, "base": "x/base"}, {"t": 0.3, "base": "x/base"}],
}


@pytest.mark.parametrize("method", SPARSE)
@pytest.mark.parametrize("semantics", ["mergekit", "paper"])
def test_methods_with_a_base_write_what_they_write_alone(method: str, semantics: str) -> None:
    *models, base = random_models(FAMILIES["qwen3"], 3)
    names = NAMES[: METHODS[method].most]
    shared = {"parents": names, "method": method, "semantics": semantics}
    origin = {} if method == "multislerp" else {"base": "x/base"}
    recipes = [MergeRecipe(**(shared | origin | changes)) for changes in SPARSE[method]]
    live = LiveMerge(recipes[0], models=models[: len(names)], base=base, exact=True)
    spectrum = RatioSpectrum(recipes, live=live)
    alone = one_by_one(live, recipes, prompts())
    assert torch.equal(written(spectrum.model, spectrum.expand(prompts())), alone)


def test_recipes_of_some_of_the_models_stand_side_by_side() -> None:
    models = random_models(FAMILIES["llama"], 2)
    live = LiveMerge(MergeRecipe(parents=NAMES), models=models, exact=True)
    swap = {"parents": NAMES[1:], "base": NAMES[0]}
    recipes = [live.recipe, *(live.recipe.with_method("nearswap", **swap, t=t) for t in (0.05, 0.3))]
    recipes.append(live.recipe.with_method("arcee_fusion", **swap))
    recipes.append(live.recipe.with_method("task_arithmetic", **swap, weights=[0.5]))
    spectrum = RatioSpectrum(recipes, live=live)
    assert torch.equal(written(spectrum.model, spectrum.expand(prompts())), one_by_one(live, recipes, prompts()))
    live.apply(recipes[-1])
    half = live.model.state_dict()["lm_head.weight"]
    torch.testing.assert_close(half, (models[0].lm_head.weight.data + models[1].lm_head.weight.data) / 2)
    live.reset(NAMES[1])
    assert live.recipe.parents == tuple(NAMES)


def test_fixed_masks_need_one_component_for_each_parent() -> None:
    *models, base = random_models(FAMILIES["llama"], 3)
    dare = MergeRecipe(parents=NAMES, method="dare_linear", **TRIMMED)
    live = LiveMerge(dare, models=models, base=base)
    ties = [dare.with_method("ties", weights=[w, 1 - w], semantics="peft") for w in (0.2, 0.5, 0.9)]
    for recipes, count in (
        (spectrum_recipes(dare, 5), 2),
        (spectrum_recipes(dare.replace(lambda_=0.5), 5), 3),
        (ties, 2),
        ([r.replace(semantics="mergekit") for r in ties], 3),
        ([ties[0].replace(semantics="mergekit", lambda_=number) for number in (0.25, 0.5, 1.0)], 2),
        (spectrum_recipes(dare.with_method("linear"), 5), 2),
    ):
        spectrum = RatioSpectrum(recipes, live=live)
        assert len(spectrum.model.lm_head._parts) == count


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_other_number_formats(dtype: str) -> None:
    models = random_models(FAMILIES["qwen2"])
    live = LiveMerge(MergeRecipe(parents=NAMES), models=models, dtype=getattr(torch, dtype))
    spectrum = RatioSpectrum(live.recipe, 3, live=live)
    near = {"bfloat16": 0.15, "float64": 1e-12}[dtype]
    with torch.no_grad():
        together = spectrum.model(**spectrum.expand(prompts(1))).logits
        live.apply(live.recipe.with_ratio(0.5))
        alone = live.model(**prompts(1)).logits
    assert together.dtype == alone.dtype == getattr(torch, dtype)
    assert (together[1:2] - alone).norm() <= near * alone.norm()


def test_parents_and_the_live_model_stay_as_they_are_and_no_weight_is_copied() -> None:
    live = LiveMerge(MergeRecipe(parents=NAMES), models=random_models(FAMILIES["llama-tied"]))
    before = [tensor.clone() for i in (0, 1) for tensor in live.parent(i).state_dict().values()]
    spectrum = RatioSpectrum(live.recipe, 5, live=live)
    written(spectrum.model, spectrum.expand(prompts()))
    assert live.recipe.weights == (0.5, 0.5)
    after = [tensor for i in (0, 1) for tensor in live.parent(i).state_dict().values()]
    assert all(torch.equal(a, b) for a, b in zip(before, after))
    memory = {tensor.data_ptr() for tensor in live.model.parameters()}
    assert all(parameter.data_ptr() in memory for parameter in spectrum.model.parameters())
    held = {part.data_ptr() for i in (0, 1) for part in live.parent(i).parameters()}
    assert {part.data_ptr() for part in spectrum.model.lm_head._parts} <= held


def test_other_recipes_may_take_the_rows() -> None:
    spectrum = RatioSpectrum(MergeRecipe(parents=NAMES), 2, models=random_models(FAMILIES["qwen3"]))
    assert spectrum.ratios == (0.0, 1.0)
    spectrum.apply(spectrum.recipes[0], [0.25, 0.5, 0.75])
    assert spectrum.ratios == (0.25, 0.5, 0.75)
    alone = one_by_one(spectrum.live, spectrum.recipes, prompts())
    assert torch.equal(written(spectrum.model, spectrum.expand(prompts())), alone)


def test_several_sequences_for_a_row_stay_in_their_recipes_block() -> None:
    spectrum = RatioSpectrum(MergeRecipe(parents=NAMES), 2, models=random_models(FAMILIES["llama"]))
    settings_ = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "num_beams": 2}
    beams = spectrum.model.generate(**spectrum.expand(prompts()), num_return_sequences=2, **settings_)
    alone = torch.cat(
        [spectrum.live.parent(i).generate(**prompts(), num_return_sequences=2, **settings_) for i in (0, 1)]
    )
    assert torch.equal(beams, alone)


@settings(max_examples=20, deadline=None)
@given(
    numbers=st.lists(st.tuples(*[st.floats(-2, 2, width=32)] * 2), min_size=1, max_size=4),
    tokens=st.integers(1, 3),
    turned=st.booleans(),
)
def test_a_linear_layer_by_hand(numbers: list, tokens: int, turned: bool) -> None:
    torch.manual_seed(0)
    weights, x = torch.randn(2, 5, 3), torch.randn(len(numbers), tokens, 3)
    biases, table = torch.randn(2, 5), torch.tensor(numbers, dtype=torch.float64)
    layer = rows_module.Conv1D(5, 3) if turned else nn.Linear(3, 5)
    module = RowLinear(layer)
    module.assign({"weight": ([w.t() if turned else w for w in weights], table), "bias": (list(biases), table)})
    for row, (a, b) in enumerate(numbers):
        expected = x[row] @ (a * weights[0] + b * weights[1]).T + a * biases[0] + b * biases[1]
        for result in (module(x)[row], module._by_weight(x)[row] + module._bias[row]):
            torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)


def test_norms_and_embeddings_by_hand() -> None:
    table = torch.tensor([[1.0, 0.0], [0.5, 0.5]], dtype=torch.float64)
    one, none = torch.ones(2), torch.zeros(2)
    norm = RowNorm(nn.LayerNorm(2))
    norm.assign({"weight": ([one, 3 * one], table), "bias": ([none, one], table)})
    x = torch.tensor([[[-1.0, 1.0]], [[-1.0, 1.0]]])
    torch.testing.assert_close(norm(x), torch.tensor([[[-1.0, 1.0]], [[-1.5, 2.5]]]), rtol=0, atol=1e-4)
    embedding = RowEmbedding(nn.Embedding(2, 2))
    embedding.assign({"weight": ([torch.eye(2), 2 * torch.ones(2, 2)], table)})
    assert embedding(torch.tensor([[0], [1]])).tolist() == [[[1.0, 0.0]], [[1.0, 1.5]]]


def test_wrong_batches_are_refused() -> None:
    spectrum = RatioSpectrum(MergeRecipe(parents=NAMES), 3, models=random_models(FAMILIES["llama"]))
    with pytest.raises(MergeError, match=r"A batch of 2 rows for 3 recipes; .* Make it with expand"):
        spectrum.model(**prompts())
    cache = spectrum.model(**spectrum.expand(prompts()), use_cache=True).past_key_values
    with pytest.raises(MergeError, match="went from 6 to 3 rows"):
        spectrum.model(input_ids=torch.ones(3, 1, dtype=torch.long), past_key_values=cache)
    with pytest.raises(MergeError, match="Export one of its recipes"):
        spectrum.model.save_pretrained("out")


def test_wrong_arguments() -> None:
    recipe, models = MergeRecipe(parents=NAMES), [pico(seed=0), pico(seed=1)]
    live = LiveMerge(recipe, models=models, tokenizer=byte_tokenizer())
    assert RatioSpectrum(recipe, 1, live=live).tokenizer is live.tokenizer
    with pytest.raises(ConfigError, match="live= was given together"):
        RatioSpectrum(recipe, live=live, models=models)
    with pytest.raises(ConfigError, match="at least one recipe"):
        RatioSpectrum([], live=live)
    with pytest.raises(ConfigError, match="ratios=\\[\\]"):
        RatioSpectrum(recipe, [], live=live)
    with pytest.raises(MergeError, match="parents are"):
        RatioSpectrum(MergeRecipe(parents=["x/a", "x/b"]), live=live)


def test_layers_that_rows_cannot_carry_are_named() -> None:
    config = MixtralConfig(**SHAPE, num_local_experts=3, num_experts_per_tok=2)
    with pytest.raises(MergeError, match=r"Layer 'model.layers.0.mlp.* need layers that are linear"):
        RatioSpectrum(MergeRecipe(parents=NAMES), models=random_models(config))


def test_two_threads_may_write_at_once() -> None:
    spectrum = RatioSpectrum(MergeRecipe(parents=NAMES), 3, models=random_models(FAMILIES["gemma3"]))
    batch, answers = spectrum.expand(prompts(1)), []
    expected = written(spectrum.model, batch)
    threads = [threading.Thread(target=lambda: answers.append(written(spectrum.model, batch))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(answer, expected) for answer in answers)
