"""`export_merge`: the same bits as the live merge, whole or not at all, and clear refusals."""

import errno
import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from pico_adapters import lora, saved
from pico_language import byte_tokenizer, pico
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

import workbench as wb
from workbench.deltas import Delta
from workbench.errors import ConfigError, MergeError, ModelError
from workbench.merging import shards

torch.set_num_threads(1)

SMALL = 20_000  # bytes of a shard: the pico models take several
DOWN = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def parents(tmp_path_factory):
    """Three relatives in one folder: a, b and base."""
    root = tmp_path_factory.mktemp("parents")
    for seed, name in enumerate(("base", "a", "b")):
        model = pico(seed=0)
        torch.manual_seed(seed)
        for tensor in model.parameters():
            tensor.data += 0.1 * seed * torch.randn_like(tensor)
        model.save_pretrained(root / name, max_shard_size="30KB")
        byte_tokenizer(chat=name == "a").save_pretrained(root / name)
    return root


@pytest.fixture
def recipe(parents):
    return wb.MergeRecipe(parents=[str(parents / "a"), str(parents / "b")], weights=[0.3, 0.7])


@pytest.fixture
def spoilt(parents, tmp_path):
    """A recipe whose second parent is a copy that the test may break."""
    shutil.copytree(parents / "b", tmp_path / "b")
    return wb.MergeRecipe(parents=[str(parents / "a"), str(tmp_path / "b")], weights=[0.3, 0.7])


def export(recipe, out, **options):
    return wb.export_merge(recipe, out, **({"max_shard_bytes": SMALL, "progress": False} | options))


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def tensors(folder):
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def change(folder, name, edit):
    """Rewrite the shard of a tensor with that tensor edited; None takes it out."""
    path = next(path for path in folder.glob("*.safetensors") if name in load_file(path))
    held = load_file(path)
    held[name] = edit(held[name])
    save_file({key: tensor for key, tensor in held.items() if tensor is not None}, path, {"format": "pt"})


FILTERS = {"self_attn": [1, 0.2], "mlp": [0.1, 0.6, 0.2], "lm_head": 0.9, "*": [0.35, 0.8]}
CASES = {
    "linear": {"weights": [0.3, FILTERS]},
    "linear, not normalised": {"weights": [0.7, -0.6], "normalise": False},
    "slerp": {"method": "slerp", "weights": [FILTERS, 1]},
    "bfloat16": {"method": "slerp", "weights": [1, 2], "dtype": "bfloat16"},
    "ties": {"method": "ties", "base": "base", "density": [0.4, [0.2, 0.9]], "weights": [1, 0.5]},
    "ties of the paper": {"method": "ties", "base": "base", "density": [0.4, 0.6], "semantics": "paper"},
    "dare": {"method": "dare_ties", "base": "base", "density": 0.5, "seed": 3, "dtype": "bfloat16"},
    "karcher": {"method": "karcher"},
}


@pytest.mark.parametrize("case", CASES)
def test_the_result_is_the_exact_live_merge_bit_for_bit(case, recipe, parents, tmp_path):
    options = dict(CASES[case])
    if "base" in options:
        options["base"] = str(parents / "base")
    recipe = wb.MergeRecipe(parents=recipe.parents, **options)
    out = export(recipe, tmp_path / "out")
    live = wb.LiveMerge(recipe, exact=True)
    live.model.save_pretrained(tmp_path / "saved")
    ours, theirs = tensors(out), tensors(tmp_path / "saved")
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert ours[name].dtype == theirs[name].dtype
        assert torch.equal(ours[name], theirs[name]), name


def test_the_result_is_an_ordinary_model_folder(recipe, parents, tmp_path):
    out = export(recipe, f"{tmp_path}/deep/../deep/out")
    files = {path.name for path in out.iterdir()}
    index = json.loads((out / shards.INDEX).read_text())
    assert len(set(index["weight_map"].values())) > 2
    assert files == {*index["weight_map"].values(), shards.INDEX, "config.json", "generation_config.json"} | {
        *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "README.md")
    }
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors(out).values())
    assert all(
        sum(tensor.nbytes for tensor in load_file(out / name).values()) <= 25_000 for name in files if "-" in name
    )
    model, loading = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(loading.values())
    loaded, tokenizer = wb.load_model(out)
    assert tokenizer.chat_template == (parents / "a" / "chat_template.jinja").read_text()
    ids = torch.tensor([[7, 8, 9]])
    assert torch.equal(model(ids).logits, loaded(ids).logits)
    card = (out / "README.md").read_text()
    assert "no medical advice" in card
    assert wb.MergeRecipe.from_json(card.split("```json")[1].split("```")[0]) == recipe
    assert wb.MergeRecipe.from_yaml(card.split("```yaml")[1].split("```")[0]) == recipe
    assert f"that of `{recipe.parents[0]}`; `{recipe.parents[1]}` have another" in card
    assert list(tmp_path.glob("deep/.*")) == []


@pytest.mark.parametrize("case", ["slerp", "dare"])
def test_the_same_recipe_gives_the_same_bytes(case, recipe, parents, tmp_path):
    options = {key: str(parents / "base") if key == "base" else value for key, value in CASES[case].items()}
    recipe = wb.MergeRecipe(parents=recipe.parents, **options)
    first, second = (contents(export(recipe, tmp_path / name)) for name in ("one", "two"))
    assert first == second
    whole = export(recipe, tmp_path / "whole", max_shard_bytes=10**9)
    assert {path.name for path in whole.glob("*.safetensors")} == {"model.safetensors"}
    assert all(torch.equal(tensor, tensors(whole)[name]) for name, tensor in tensors(tmp_path / "one").items())


def test_blocks_do_not_change_a_bit(recipe, tmp_path, monkeypatch):
    whole = tensors(export(recipe.with_method("slerp"), tmp_path / "whole"))
    monkeypatch.setattr("workbench.merging.export._BLOCK", 100)
    pieces = tensors(export(recipe.with_method("slerp"), tmp_path / "pieces"))
    assert all(torch.equal(whole[name], pieces[name]) for name in whole)


def test_a_parent_can_be_an_adapter(parents, tmp_path):
    base = AutoModelForCausalLM.from_pretrained(parents / "base")
    saved(base, lora(), tmp_path / "adapter")
    names = [str(tmp_path / "adapter"), str(parents / "a")]
    recipe = wb.MergeRecipe(parents=names, method="task_arithmetic", base=str(parents / "base"), dtype="bfloat16")
    ours, live = tensors(export(recipe, tmp_path / "out")), wb.LiveMerge(recipe, exact=True)
    assert all(torch.equal(ours[name], tensor) for name, tensor in live.model.state_dict().items())
    alone = tensors(export(wb.MergeRecipe(parents=names[:1]), tmp_path / "alone"))
    delta = Delta.from_adapter(tmp_path / "adapter", base=base)
    for name, tensor in base.state_dict().items():
        torch.testing.assert_close(alone[name], delta.merged(name) if name in delta.names else tensor)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = None
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"adapter.* names no base model. Give the recipe its base"):
        export(wb.MergeRecipe(parents=names[:1]), tmp_path / "none")


def disk_full_after(monkeypatch, count):
    real, calls = shards.os.fsync, []

    def fsync(number):
        calls.append(number)
        if len(calls) > count:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(number)

    monkeypatch.setattr(shards.os, "fsync", fsync)
    return calls


def test_a_full_disk_leaves_nothing_that_loads_and_the_next_call_goes_on(recipe, tmp_path, monkeypatch):
    whole = contents(export(recipe, tmp_path / "whole"))
    with monkeypatch.context() as patch:
        disk_full_after(patch, 2)
        with pytest.raises(ModelError, match=r"the disk is full; free some space .* files are kept in .*partial"):
            export(recipe, tmp_path / "out")
    partial = tmp_path / ".out.partial"
    assert not (tmp_path / "out").exists()
    assert len(list(partial.glob("*.safetensors"))) == 2
    assert list(partial.glob("*.writing")) == []
    with pytest.raises(ModelError, match=r"no config.json"):
        wb.load_model(partial)
    calls = disk_full_after(monkeypatch, 99)
    assert contents(export(recipe, tmp_path / "out")) == whole
    assert len(calls) == len([name for name in whole if name.endswith(".safetensors")]) - 2


def test_an_unfinished_export_of_another_recipe_is_not_mixed_in(recipe, parents, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        disk_full_after(patch, 1)
        with pytest.raises(ModelError, match="disk is full"):
            export(recipe, tmp_path / "out")
    with pytest.raises(MergeError, match=r"unfinished export with other recipe \(its recipe: .*0.7.*delete the folder"):
        export(recipe.with_ratio(0.5), tmp_path / "out")
    with pytest.raises(MergeError, match="unfinished export with other settings"):
        export(recipe, tmp_path / "out", max_shard_bytes=10**6)
    assert len(list((tmp_path / ".out.partial").glob("*.safetensors"))) == 1


def test_what_lies_there_without_a_record_is_not_taken_for_finished(recipe, tmp_path):
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "model.safetensors").write_bytes(b"what another tool left")
    out = export(recipe, tmp_path / "out", max_shard_bytes=10**9)
    assert load_file(out / "model.safetensors")


def test_too_little_space_is_said_before_the_work(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2_000_000))
    monkeypatch.setattr("workbench.merging.export._SPARE_BYTES", 3_000_000)
    with pytest.raises(ModelError, match=r"has 0.00 GB free, the merged model still needs 0.00 GB. Free some space"):
        export(recipe, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_none_names_tensor_and_parent(value, spoilt, tmp_path):
    change(tmp_path / "b", DOWN, lambda tensor: tensor.index_fill(0, torch.tensor([3]), value))
    for method in ("linear", "slerp", "karcher"):
        with pytest.raises(MergeError, match=rf"'{DOWN}' of the parent '.*/b' holds NaN or infinity in torch.float32"):
            export(spoilt.with_method(method), tmp_path / "out", max_shard_bytes=10**9)
    assert {path.name for path in tmp_path.iterdir()} == {"b"}


def test_an_overflow_names_the_tensor(recipe, tmp_path):
    big = recipe.replace(weights=[6e4, 6e4], normalise=False, dtype="float16")
    with pytest.raises(MergeError, match=r"of the result holds NaN or infinity in torch.float16. Use smaller weights"):
        export(big, tmp_path / "out")


def lose_a_shard(folder):
    next(folder.glob("*.safetensors")).unlink()


def cut_a_shard(folder):
    path = next(folder.glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-10])


def only_pickle(folder):
    for path in folder.glob("*.safetensors"):
        path.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"")


def lose_a_tensor(folder):
    change(folder, DOWN, lambda _: None)


def reshape_a_tensor(folder):
    change(folder, DOWN, lambda tensor: tensor[:, :-1].contiguous())


def halve_a_tensor(folder):
    change(folder, DOWN, lambda tensor: tensor.half())


def store_codes(folder):
    change(folder, DOWN, lambda tensor: tensor.to(torch.float8_e4m3fn))


def other_setting(folder):
    rewrite(folder, rms_norm_eps=0.5)


def quantise(folder):
    rewrite(folder, quantization_config={"quant_method": "fp8"})


def rewrite(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def other_family(folder):
    shutil.rmtree(folder)
    config = GPT2Config(n_embd=12, n_layer=2, n_head=2, vocab_size=260, n_positions=9)
    GPT2LMHeadModel(config).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)


BROKEN = {
    lose_a_shard: (ModelError, "lacks 1 of the .* weight files that its index names"),
    cut_a_shard: (ModelError, "is damaged or cut short"),
    only_pickle: (ModelError, "only as pickle .* can run code"),
    lose_a_tensor: (MergeError, f"'{DOWN}' of '.*/a' is missing in '.*/b'"),
    reshape_a_tensor: (MergeError, rf"'{DOWN}' has shape \(24, 36\) in '.*/a' and \(24, 35\) in '.*/b'"),
    halve_a_tensor: (MergeError, f"'{DOWN}' is torch.float32 in '.*/a' and torch.float16 in '.*/b'.* dtype="),
    store_codes: (MergeError, f"'{DOWN}' is torch.float32 in '.*/a' and torch.float8_e4m3fn"),
    other_setting: (MergeError, "setting 'rms_norm_eps' is 1e-06 in '.*/a' and 0.5 in '.*/b'"),
    quantise: (ModelError, "'.*/b' is quantised"),
    other_family: (MergeError, "'.*/a' is a 'llama' model, '.*/b' a 'gpt2' model"),
}


@pytest.mark.parametrize("spoil", BROKEN, ids=lambda spoil: spoil.__name__)
def test_a_broken_parent_is_refused_before_anything_is_written(spoil, spoilt, tmp_path):
    spoil(tmp_path / "b")
    kind, message = BROKEN[spoil]
    with pytest.raises(kind, match=message):
        export(spoilt, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"b"}


def test_arguments_are_checked(recipe, tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(ConfigError, match="exists already and is never overwritten"):
        export(recipe, tmp_path / "there")
    with pytest.raises(ConfigError, match="folder name is empty"):
        export(recipe, " ")
    with pytest.raises(ConfigError, match=r"max_shard_bytes=0; it is a number of bytes"):
        export(recipe, tmp_path / "out", max_shard_bytes=0)
    with pytest.raises(ConfigError, match="is for 5 layers, the parents have 2"):
        export(recipe.replace(num_layers=5), tmp_path / "out")
    with pytest.raises(MergeError, match=r"Tensor 'model.layers.1.*, at depth 1.00: .* sum to 0"):
        export(recipe.replace(weights=[1, [1, -1]]), tmp_path / "out")
    with pytest.raises(ConfigError, match="vocabulary='both'; it is one of 'union', 'base', or None"):
        export(recipe, tmp_path / "out", vocabulary="both")
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_tied_weights_are_written_once_and_must_agree_where_stored_twice(parents, tmp_path):
    model = pico()
    model.config.tie_word_embeddings = True
    model.tie_weights()
    for name in ("one", "two"):
        model.save_pretrained(tmp_path / name)
        byte_tokenizer().save_pretrained(tmp_path / name)
    recipe = wb.MergeRecipe(parents=[str(tmp_path / "one"), str(tmp_path / "two")])
    assert "lm_head.weight" not in tensors(export(recipe, tmp_path / "out"))
    held = load_file(tmp_path / "two" / "model.safetensors")
    held["lm_head.weight"] = held["model.embed_tokens.weight"] + 1
    save_file(held, tmp_path / "two" / "model.safetensors", {"format": "pt"})
    with pytest.raises(MergeError, match=r"ties 'model.embed_tokens.weight' and 'lm_head"):
        export(recipe, tmp_path / "other")


def test_shards_are_packed_in_natural_order():
    sizes = {"layers.10.w": 3, "layers.9.w": 4, "layers.2.w": 40, "head": 2}
    entries = [shards.Entry(name=name, dtype=torch.float32, shape=(size,)) for name, size in sizes.items()]
    packed = shards.plan_shards(entries, 30)
    assert [[entry.name for entry in shard] for shard in packed.values()] == [
        ["head"],
        ["layers.2.w"],
        ["layers.9.w", "layers.10.w"],
    ]
    assert list(packed)[2] == "model-00003-of-00003.safetensors"
    assert list(shards.plan_shards(entries, 10**6)) == ["model.safetensors"]


def test_a_shard_of_every_format_is_read_back(tmp_path):
    held = {
        "narrow": torch.tensor([1, 2, 3], dtype=torch.uint8),
        "mask": torch.tensor([True, False, True]),
        "half": torch.randn(3, 5).to(torch.bfloat16),
        "wide": torch.randn(2, 2, dtype=torch.float64),
        "counts": torch.tensor(7),
        "empty": torch.zeros(0, 4),
    }
    entries = [shards.Entry(name=name, dtype=t.dtype, shape=tuple(t.shape)) for name, t in held.items()]
    shards.write_shard(tmp_path / "x.safetensors", entries, lambda entry: held[entry.name].reshape(-1).split(2))
    read = load_file(tmp_path / "x.safetensors")
    assert all(torch.equal(read[name], tensor) and read[name].shape == tensor.shape for name, tensor in held.items())
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


def test_integers_are_copied_where_they_agree(spoilt, parents, tmp_path):
    shutil.copytree(parents / "a", tmp_path / "a")
    for name in ("a", "b"):
        change(tmp_path / name, DOWN, lambda tensor: torch.arange(tensor.numel()).view(tensor.shape))
    recipe = spoilt.replace(parents=[str(tmp_path / "a"), str(tmp_path / "b")])
    assert tensors(export(recipe, tmp_path / "out"))[DOWN][0, 3] == 3
    change(tmp_path / "b", DOWN, lambda tensor: tensor + 1)
    with pytest.raises(MergeError, match=rf"'{DOWN}' holds torch.int64 numbers that differ between"):
        export(recipe, tmp_path / "other")
