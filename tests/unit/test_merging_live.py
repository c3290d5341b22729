"""The live model: exact ways back, no drift, parents that do not fit, and one recipe for each generation."""

import copy
import threading

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import workbench as wb
from workbench.errors import ConfigError, MergeError
from workbench.ops.merging import linear, slerp

torch.set_num_threads(1)

SIZES = {
    "hidden_size": 12,
    "intermediate_size": 20,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 17,
    "tie_word_embeddings": False,
}


def llama(seed=0, dtype=torch.bfloat16, **changes):
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**(SIZES | changes))).to(dtype).eval()
    for norm in (weight for name, weight in model.named_parameters() if "norm" in name):
        norm.data += 0.1 * torch.randn_like(norm)
    return model


def recipe(**changes):
    return wb.MergeRecipe(**({"parents": ["a", "b"], "method": "slerp", "weights": [0.6, 0.4]} | changes))


def live(start=None, models=None, **options):
    return wb.LiveMerge(start or recipe(), models=models or [llama(0), llama(1)], **options)


def same(model, other):
    theirs = other.state_dict()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("exact", [True, False])
def test_each_tensor_is_merged_by_the_rule(dtype, exact):
    a, b = llama(0, dtype), llama(1, dtype)
    merged = live(recipe(weights=[1, 3]), [a, b], exact=exact)
    theirs = [model.state_dict() for model in (a, b)]
    for name, tensor in merged.model.state_dict().items():
        expected = slerp(theirs[0][name], theirs[1][name], 0.75)
        torch.testing.assert_close(tensor, expected, rtol=torch.finfo(dtype).eps, atol=1e-6)


def test_any_number_of_parents():
    models = [llama(seed) for seed in range(3)]
    merged = live(wb.MergeRecipe(parents=["a", "b", "c"], weights=[1, 2, -0.5]), models)
    parts = [model.model.layers[1].mlp.up_proj.weight for model in models]
    assert torch.equal(merged.model.model.layers[1].mlp.up_proj.weight, linear(parts, [1, 2, -0.5]))


@pytest.mark.parametrize("method", ["linear", "slerp"])
def test_the_way_back_is_exact_after_many_moves(method):
    a, b = llama(0), llama(1)
    merged = live(recipe(method=method), [a, b], exact=False)
    once = {name: tensor.clone() for name, tensor in merged.model.state_dict().items()}
    for step in range(200):
        merged.apply(recipe(method=method).with_ratio(step / 199))
    merged.apply(recipe(method=method))
    assert all(torch.equal(tensor, once[name]) for name, tensor in merged.model.state_dict().items())
    merged.reset("b")
    assert same(merged.model, b)
    assert merged.recipe.ratio == 1
    merged.reset(0)
    assert same(merged.model, a)
    assert same(a, llama(0))


def test_a_move_changes_what_the_model_says():
    a, b = llama(0, torch.float32), llama(1, torch.float32)
    merged = live(recipe(), [a, b])
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    blend = merged.model(ids).logits
    merged.reset("b")
    assert torch.equal(merged.model(ids).logits, b(ids).logits)
    assert not torch.allclose(blend, merged.model(ids).logits)
    assert merged.parent("b") is b
    assert merged.parent(0) is a


def test_curves_and_filters_reach_the_tensors_that_they_name():
    coefficients = live(recipe(method="linear")).coefficients(
        recipe(method="linear").with_ratio({"mlp": [0, 1], "embed": 0.9, "*": [0.3, 0.7]})
    )
    shares = {name: pytest.approx(pair[1]) for name, pair in coefficients.items()}
    assert [shares[f"model.layers.{i}.mlp.up_proj.weight"] for i in range(3)] == [0, 0.5, 1]
    assert [shares[f"model.layers.{i}.self_attn.q_proj.weight"] for i in range(3)] == [0.3, 0.5, 0.7]
    assert [shares[name] for name in ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")] == [
        0.9,
        0.3,
        0.3,
    ]


def test_a_one_layer_model_reads_the_end_of_a_curve():
    models = [llama(seed, num_hidden_layers=1) for seed in range(2)]
    shares = live(recipe(method="linear").with_ratio([0, 1]), models).coefficients()
    assert shares["model.layers.0.mlp.up_proj.weight"] == (0, 1)
    assert shares["lm_head.weight"] == (1, 0)


def test_tied_weights_are_merged_once_under_their_first_name():
    models = [llama(seed, tie_word_embeddings=True) for seed in range(2)]
    merged = live(recipe(method="linear").with_ratio({"lm_head": 1, "embed": 0.25, "*": 0}), models)
    assert "lm_head.weight" not in merged.coefficients()
    embed = merged.model.get_input_embeddings().weight
    assert merged.model.lm_head.weight is embed
    assert torch.equal(embed, linear([m.get_input_embeddings().weight for m in models], [0.75, 0.25]))


def test_buffers_of_the_parents_are_merged_and_counters_must_agree():
    models = [llama(seed) for seed in range(2)]
    for index, model in enumerate(models):
        model.model.register_buffer("scale", torch.tensor([float(index)]))
        model.model.register_buffer("steps", torch.tensor([7]))
    merged = live(recipe(method="linear").with_ratio(0.25), models)
    assert merged.model.model.scale.tolist() == [0.25]
    models[1].model.steps += 1
    with pytest.raises(MergeError, match=r"'model.steps' holds torch.int64 numbers that differ between 'a' and 'b'"):
        live(recipe(), models)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            lambda: llama(1, vocab_size=19),
            r"'model.embed_tokens.weight' has shape \(17, 12\) in 'a' and \(19, 12\) in 'b'",
        ),
        (lambda: llama(1, intermediate_size=24), r"'model.layers.0.mlp.gate_proj.weight' .* \(20, 12\) .* \(24, 12\)"),
        (lambda: llama(1, num_hidden_layers=4), r"'model.layers.3.* of 'b' is missing in 'a'.* family and size"),
        (lambda: llama(1, torch.float32), r"is torch.bfloat16 in 'a' and torch.float32 in 'b'; .* Pass dtype="),
        (lambda: llama(1, tie_word_embeddings=True), r"'lm_head.weight' is tied .* tie_word_embeddings=False"),
        (lambda: llama(1, hidden_act="relu"), r"setting 'hidden_act' is 'silu' in 'a' and 'relu' in 'b'"),
        (lambda: llama(1, rope_parameters={"rope_type": "default", "rope_theta": 5e5}), r"setting 'rope_parameters'"),
        (
            lambda: GPT2LMHeadModel(GPT2Config(n_embd=12, n_layer=1, n_head=2, vocab_size=17)),
            r"'a' is a LlamaForCausalLM, 'b' a GPT2LMHeadModel; merging needs parents of one architecture",
        ),
    ],
)
def test_parents_that_do_not_fit(other, message):
    with pytest.raises(MergeError, match=message):
        live(recipe(), [llama(0), other()])


def test_a_larger_context_or_another_stop_token_is_no_obstacle():
    live(recipe(), [llama(0), llama(1, max_position_embeddings=99, eos_token_id=5, attention_dropout=0.1)])


def words(*tokens):
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({t: i for i, t in enumerate(tokens)}, tokens[0]))
    )


def test_parents_are_loaded_by_name_and_their_tokenizers_compared(tmp_path):
    folders = [str(tmp_path / name) for name in ("one", "two", "odd")]
    for seed, (folder, tokens) in enumerate(zip(folders, (("<", "a", "b"), ("<", "a", "b"), ("<", "b", "a", "c")))):
        llama(seed, torch.float32).save_pretrained(folder)
        words(*tokens).save_pretrained(folder)
    merged = wb.LiveMerge(recipe(parents=folders[:2], dtype="bfloat16"), device="cpu")
    assert merged.model.dtype == torch.bfloat16
    assert merged.tokenizer.get_vocab() == {"<": 0, "a": 1, "b": 2}
    merged.reset(folders[1])
    assert same(merged.model, llama(1, torch.float32).to(torch.bfloat16))
    with pytest.raises(
        MergeError, match=r"\(3 tokens\) and .* \(4 tokens\) differ: token 'a' has id 1 in the first and 2"
    ):
        wb.LiveMerge(recipe(parents=[folders[0], folders[2]]), device="cpu")


def test_another_dtype_copies_the_given_models_and_leaves_computed_buffers_alone():
    models = [llama(seed, torch.float32) for seed in range(2)]
    merged = live(recipe(), models, dtype="bfloat16")
    assert {tensor.dtype for tensor in merged.model.state_dict().values()} == {torch.bfloat16}
    assert merged.model.model.rotary_emb.inv_freq.dtype == torch.float32
    assert models[0].dtype == torch.float32


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"parents": ["a", "c"]}, MergeError, r"parents are \['a', 'c'\], this LiveMerge holds \['a', 'b'\]"),
        ({"num_layers": 32}, ConfigError, r"recipe is for 32 layers, the parents have 3"),
        (
            {"weights": [[1, 1], [1, -1]]},
            MergeError,
            r"'model.layers.2.* at depth 1.00: the weights \[1.0, -1.0\] sum to 0",
        ),
    ],
)
def test_a_refused_move_leaves_everything_as_it_was(changes, error, message):
    merged = live()
    before = copy.deepcopy(merged.model)
    with pytest.raises(error, match=message):
        merged.apply(recipe(**changes))
    assert same(merged.model, before)
    assert merged.recipe == recipe()


def test_an_interrupted_move_is_taken_back(monkeypatch):
    merged = live()
    before, calls = copy.deepcopy(merged.model), []

    def interrupted(*arguments, **options):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return write(*arguments, **options)

    write = wb.merging.live.mix_
    monkeypatch.setattr("workbench.merging.live.mix_", interrupted)
    with pytest.raises(KeyboardInterrupt):
        merged.apply(recipe().with_ratio(0.9))
    assert same(merged.model, before)
    assert merged.recipe == recipe()


def test_wrong_arguments():
    with pytest.raises(ConfigError, match=r"1 models for the 2 parents \['a', 'b'\]\. Pass one for each"):
        live(recipe(), [llama()])
    with pytest.raises(ConfigError, match=r"No parent 'c'; the parents are \['a', 'b'\]"):
        live().reset("c")
    with pytest.raises(ConfigError, match=r"dtype='bf16'; a merge works in one of float32, bfloat16, float16"):
        live(recipe(), dtype="bf16")
    with pytest.raises(ConfigError, match=r"No parent 2"):
        live().reset(2)


def test_a_move_asks_previews_to_stop_and_waits_for_them():
    merged, seen, inside = live(), [], threading.Event()

    def preview():
        with merged.generation() as stop:
            inside.set()
            assert stop.wait(20)
            seen.append(merged.recipe.ratio)

    thread = threading.Thread(target=preview)
    thread.start()
    assert inside.wait(20)
    merged.apply(recipe().with_ratio(0.9))
    seen.append(merged.recipe.ratio)
    thread.join(20)
    assert seen == [0.4, 0.9]


def test_a_generation_that_is_no_preview_is_waited_for():
    merged, moved = live(), threading.Event()
    mover = threading.Thread(target=lambda: (merged.reset(1), moved.set()))
    with merged.generation(preview=False) as stop:
        mover.start()
        assert not moved.wait(0.2)
        with merged.generation() as nested:
            assert nested.is_set()
        assert not stop.is_set()
        assert not moved.is_set()
    assert moved.wait(20)
    mover.join(20)


def test_a_preview_that_starts_after_a_move_sees_the_new_recipe():
    merged, order = live(), []
    gate = threading.Event()

    def later():
        gate.wait(20)
        with merged.generation() as stop:
            order.append((merged.recipe.ratio, stop.is_set()))

    thread = threading.Thread(target=later)
    thread.start()
    merged.apply(recipe().with_ratio(0.8))
    gate.set()
    thread.join(20)
    assert order == [(0.8, False)]


def test_a_move_inside_ones_own_generation_is_refused_rather_than_waiting_for_ever():
    merged = live()
    with merged.generation(), pytest.raises(MergeError, match=r"Leave the `with live.generation\(\)` block first"):
        merged.reset(0)
    merged.reset(0)


def test_weights_never_change_while_anyone_reads():
    merged, wrong, done = live(exact=True), [], threading.Event()

    def reader():
        while not done.is_set():
            with merged.generation(preview=False):
                tensors = [t.clone() for t in merged.model.state_dict().values()]
                if not all(torch.equal(t, u) for t, u in zip(tensors, merged.model.state_dict().values())):
                    wrong.append(merged.recipe)

    readers = [threading.Thread(target=reader) for _ in range(2)]
    for thread in readers:
        thread.start()
    for step in range(30):
        merged.apply(recipe().with_ratio(step / 29))
    done.set()
    for thread in readers:
        thread.join(20)
    assert not wrong
