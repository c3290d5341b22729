"""Every method in the live model: over whole models and over adapters, with a density that moves at once."""

import pytest
import torch
from pico_adapters import adalora, llama, logits, lora, saved
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

import workbench as wb
from workbench.deltas import Delta
from workbench.errors import ConfigError, MergeError, ModelError
from workbench.merging.recipe import METHODS, options_of
from workbench.ops.rules import merge_tensor

torch.set_num_threads(1)

NAME = "model.layers.1.mlp.up_proj.weight"


def recipe(method, count=2, **changes):
    options = options_of(method)
    extra = {"base": "base"} if "base" in options else {}
    extra |= {"density": 0.5} if "density" in options else {}
    extra |= {"epsilon": 0.1} if "epsilon" in options else {}
    extra |= {"t": 0.05} if "t" in options else {}
    parents = ["a", "b", "c"][: min(count, METHODS[method].most or count)]
    return wb.MergeRecipe(**({"parents": parents, "method": method} | extra | changes))


def live(start, *, dtype=torch.float32, **options):
    models = [llama(seed).to(dtype) for seed in range(len(start.parents))]
    return wb.LiveMerge(start, models=models, base=llama(9).to(dtype), **options)


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one, other):
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def rule(merged, asked, name, place):
    """What the exact rule makes of one tensor of the parents."""
    parts = [merged.parent(parent).state_dict()[name] for parent in asked.parents]
    base = llama(9).to(parts[0].dtype).state_dict()[name] if asked.base else None
    return merge_tensor(asked.method, parts, base, asked.settings_at(name, place))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("exact", [True, None, False])
def test_every_method_is_its_rule(method, exact):
    asked = recipe(method)
    merged = live(asked, exact=exact)
    for name, place in ((NAME, 1.0), ("lm_head.weight", 0.0), ("model.norm.weight", 0.0)):
        ours, expected = merged.model.state_dict()[name], rule(merged, asked, name, place)
        if exact:
            assert torch.equal(ours, expected)
        else:
            # At density 0.5 the codes' borders are those of the ranks; breadcrumbs' 1 % is 3/256, at both ends.
            off = ~torch.isclose(ours, expected, rtol=1e-5, atol=1e-6)
            assert off.sum() <= (4 + 0.02 * off.numel() if method.startswith("breadcrumbs") else 0)


@pytest.mark.parametrize("method", ["ties", "dare_ties", "della_linear", "nuslerp", "task_arithmetic"])
def test_many_moves_do_not_drift_and_the_ways_back_are_exact(method):
    start = recipe(method)
    merged = live(start, dtype=torch.bfloat16)
    once = state(merged.model)
    for step in range(20):
        changes = {"density": 0.3 + step / 50} if start.density else {}
        merged.apply(start.replace(weights=[step / 20, 1.0], **changes))
    merged.apply(start)
    assert same(once, state(merged.model))
    merged.reset("b")
    assert same(state(llama(1).bfloat16()), state(merged.model))
    merged.reset("base")
    assert same(state(llama(9).bfloat16()), state(merged.model))
    assert merged.recipe.method == "task_arithmetic"


def test_density_moves_along_depth_and_for_each_parent():
    asked = recipe("ties", density=[[0.25, 0.75], {"mlp": 0.5, "*": 1.0}])
    assert asked.settings_at(NAME, 1.0).density == (0.75, 0.5)
    assert asked.settings_at("model.norm.weight", 0.0).density == (0.25, 1.0)
    merged = live(asked)
    assert torch.allclose(merged.model.state_dict()[NAME], rule(merged, asked, NAME, 1.0), atol=1e-6)


def test_codes_are_made_at_the_first_move_and_freed_with_the_method():
    merged = live(recipe("linear"))
    assert not merged._codes
    merged.apply(recipe("ties"))
    kept = dict(merged._codes)
    weights = sum(tensor.numel() for tensor in merged.model.state_dict().values())
    assert sum(codes.values.nbytes for _, both in kept.values() for codes in both) == 2 * weights
    merged.apply(recipe("breadcrumbs", density=0.3))
    assert all(merged._codes[name] is kept[name] for name in kept)
    merged.apply(recipe("dare_linear", seed=1))
    assert all(merged._codes[name] is not kept[name] for name in kept)
    merged.apply(recipe("slerp"))
    assert not merged._codes


def test_the_seed_decides_the_masks():
    merged = live(recipe("dare_linear", seed=1))
    first = state(merged.model)
    merged.apply(recipe("dare_linear", seed=2))
    assert not same(first, state(merged.model))
    merged.apply(recipe("dare_linear", seed=1))
    assert same(first, state(merged.model))


def test_ties_of_the_paper_trims_over_the_whole_model():
    merged = live(recipe("ties", 1, semantics="paper", density=0.2))
    before, parent = state(llama(9)), state(llama(0))
    changed = {name: tensor != before[name] for name, tensor in state(merged.model).items()}
    sizes = {name: (parent[name] - tensor).abs() for name, tensor in before.items()}
    largest = torch.cat([size.flatten() for size in sizes.values()]).sort(descending=True).values
    limit = largest[int(0.2 * len(largest)) - 1]
    assert all(torch.equal(changed[name], size >= limit) for name, size in sizes.items())


def test_coefficients_tell_the_bases_share_or_that_there_is_no_number():
    merged = live(recipe("task_arithmetic", weights=[0.5, 0.25], lambda_=2.0))
    assert merged.coefficients()[NAME] == (1.0, 0.5, -0.5)
    assert len(merged.coefficients(recipe("karcher"))[NAME]) == 2
    assert sum(merged.coefficients(recipe("model_stock"))[NAME]) == pytest.approx(1)
    with pytest.raises(MergeError, match=r"ties weighs every entry by itself, so that no tensor has one number"):
        merged.coefficients(recipe("ties"))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"base": "other"},
            MergeError,
            r"\['a', 'b'\] on the base 'other', this LiveMerge holds .* on the base 'base'",
        ),
        ({"weights": [{"norm": 1, "*": 1}, {"norm": -1, "*": 1}]}, MergeError, r"'model.layers.*norm.* sum to 0"),
    ],
)
def test_a_refused_move_leaves_weights_and_recipe(changes, error, message):
    start = recipe("task_arithmetic", normalise=True)
    merged = live(start)
    before = state(merged.model)
    with pytest.raises(error, match=message):
        merged.apply(start.replace(**changes))
    assert same(before, state(merged.model))
    assert merged.recipe == start


def test_a_rule_that_fails_half_way_is_taken_back(monkeypatch):
    merged = live(recipe("ties"))
    before, calls, write = state(merged.model), [], wb.merging.live.merge_coded

    def interrupted(*arguments, **options):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return write(*arguments, **options)

    monkeypatch.setattr("workbench.merging.live.merge_coded", interrupted)
    with pytest.raises(KeyboardInterrupt):
        merged.apply(recipe("ties", density=0.1))
    assert same(before, state(merged.model))


def adapters(folder, dtype=torch.float32):
    base = llama(9)
    configs = {"lora": lora(), "dora": lora(use_dora=True), "ada": adalora()}
    models = [saved(base, config, folder / kind, seed) for seed, (kind, config) in enumerate(configs.items(), 1)]
    base = base.to(dtype)
    return base, models, [Delta.from_adapter(folder / kind, base=base) for kind in configs]


def test_one_adapter_alone_gives_the_logits_of_peft(tmp_path):
    base, models, deltas = adapters(tmp_path)
    names = ["a", "b", "c"]
    merged = wb.LiveMerge(recipe("task_arithmetic", 3), models=deltas, base=base)
    for index, (name, model) in enumerate(zip(names, models)):
        merged.apply(recipe("task_arithmetic", 3, weights=[float(index == place) for place in range(3)]))
        assert torch.allclose(logits(merged.model), logits(model), atol=2e-6)
        assert torch.allclose(logits(merged.parent(name)), logits(model), atol=2e-6)
    assert merged.parent("a") is merged.parent("a")
    merged.reset("base")
    assert torch.equal(logits(merged.model), logits(base))


@pytest.mark.parametrize("exact", [True, None])
def test_sliders_over_adapters_are_the_same_engine(tmp_path, exact):
    base, _, deltas = adapters(tmp_path)
    merged = wb.LiveMerge(recipe("ties", 3, density=0.25), models=deltas, base=base, exact=exact)
    name = "model.layers.1.self_attn.q_proj.weight"
    before = base.state_dict()[name]
    parts = [before + delta.tensor(name) for delta in deltas]
    expected = merge_tensor("ties", parts, before, merged.recipe.settings_at(name, 1.0))
    assert torch.allclose(merged.model.state_dict()[name], expected, atol=1e-6)
    assert torch.equal(merged.model.state_dict()[NAME], base.state_dict()[NAME])
    for method in METHODS:
        if METHODS[method].most is None:
            merged.apply(recipe(method, 3))


def test_a_small_update_is_not_lost_in_bfloat16(tmp_path):
    base, _, deltas = adapters(tmp_path, torch.bfloat16)
    merged = wb.LiveMerge(recipe("task_arithmetic", 3, weights=[1000.0, 0.0, 0.0]), models=deltas, base=base)
    name = "model.layers.1.self_attn.q_proj.weight"
    expected = (base.state_dict()[name].float() + 1000 * deltas[0].tensor(name)).bfloat16()
    assert torch.allclose(merged.model.state_dict()[name], expected, rtol=0.01)
    assert merged.model.dtype == torch.bfloat16


def test_adapters_are_read_from_their_folders(tmp_path):
    base, (model, *_), _ = adapters(tmp_path)
    home = tmp_path / "base"
    base.save_pretrained(home)
    words = Tokenizer(WordLevel({"<": 0, "a": 1}, "<"))
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(home)
    names = [str(tmp_path / "lora"), str(tmp_path / "dora")]
    start = wb.MergeRecipe(parents=names, base=str(home), method="task_arithmetic", weights=[1, 0])
    merged = wb.LiveMerge(start, device="cpu")
    assert torch.allclose(logits(merged.model), logits(model), atol=2e-6)
    assert merged.tokenizer is not None
    written = start.to_yaml()
    assert f"model: {home}+{names[0]}" in written
    assert wb.MergeRecipe.from_yaml(written) == start
    with pytest.raises(ConfigError, match=r"'.*lora' is an adapter, which adds to a base, and the recipe has none"):
        wb.LiveMerge(wb.MergeRecipe(parents=names), device="cpu")


def test_bases_that_do_not_fit(tmp_path):
    _, _, deltas = adapters(tmp_path)
    with pytest.raises(ConfigError, match=r"'a' is an adapter, which adds to a base, and the recipe has none"):
        wb.LiveMerge(wb.MergeRecipe(parents=["a"]), models=deltas[:1])
    with pytest.raises(
        MergeError, match=r"changes tensor '.*down_proj.weight' of shape \(12, 20\), which the base does"
    ):
        wb.LiveMerge(recipe("task_arithmetic", 3), models=deltas, base=llama(9, hidden_size=16))
    with pytest.raises(MergeError, match=r"has shape \(17, 12\) in 'a' and \(19, 12\) in 'base'"):
        wb.LiveMerge(recipe("ties"), models=[llama(0), llama(1)], base=llama(9, vocab_size=19))
    with pytest.raises(ConfigError, match=r"base='x', and the recipe's base is 'base'"):
        wb.LiveMerge(recipe("ties"), models=[llama(0), llama(1)], base="x")
    with pytest.raises(ModelError):
        wb.LiveMerge(recipe("ties", base="no/such-base"), models=[llama(0), llama(1)])
    with pytest.raises(MergeError, match=r"this LiveMerge holds \['a', 'b'\]\. Keep to these"):
        wb.LiveMerge(recipe("linear"), models=[llama(0), llama(1)]).apply(recipe("ties"))
