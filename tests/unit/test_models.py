import json
import shutil
from pathlib import Path
from unittest.mock import MagicMock

import pytest
import torch
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from safetensors.torch import load_file, save_file
from tokenizers import ByteLevelBPETokenizer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

import workbench.models as models
from workbench.errors import ConfigError, ModelError, WorkbenchWarning
from workbench.models import chat_prompt, load_model, load_tokenizer, model_folder

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<bot>{% endif %}"
)


@pytest.fixture(scope="module")
def pico(tmp_path_factory) -> Path:
    """A random two-layer Llama in bfloat16 with its tokenizer, in three shards."""
    folder = tmp_path_factory.mktemp("models") / "pico"
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(["chest pain and fever"], vocab_size=270, special_tokens=["<eos>"], show_progress=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, eos_token="<eos>")
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=3,
        num_key_value_heads=1,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder, max_shard_size="15KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    return folder


@pytest.fixture
def copy(pico, tmp_path) -> Path:
    """A copy of the pico model that a test may break, its weights in one file."""
    folder = tmp_path / "copy"
    shutil.copytree(pico, folder)
    tensors = {}
    for shard in folder.glob("*.safetensors"):
        tensors |= load_file(shard)
        shard.unlink()
    (folder / "model.safetensors.index.json").unlink()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def edit_config(folder: Path, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_loads_ready_to_generate(pico):
    model, tokenizer = load_model(pico, device="cpu")
    assert not model.training
    assert tokenizer.pad_token == tokenizer.eos_token == "<eos>"
    assert tokenizer.padding_side == "left"
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id
    batch = tokenizer(["fever", "chest pain and fever"], return_tensors="pt", padding=True)
    assert batch["attention_mask"][0, 0] == 0
    assert model.generate(**batch, max_new_tokens=3, min_new_tokens=3).shape[1] == batch["input_ids"].shape[1] + 3


def test_weights_are_those_of_the_file_computed_in_float32_on_cpu(copy):
    model, _ = load_model(str(copy), device="cpu")
    stored = load_file(copy / "model.safetensors")
    assert model.dtype == torch.float32
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, stored[name].float(), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", ["bfloat16", torch.bfloat16, "float16"])
def test_dtype_can_be_chosen(pico, dtype):
    model, _ = load_model(pico, device="cpu", dtype=dtype)
    assert model.dtype == (dtype if isinstance(dtype, torch.dtype) else getattr(torch, dtype))


def test_bfloat16_is_the_default_where_the_gpu_computes_in_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    assert models._choose_dtype(None, torch.device("cuda")) == torch.bfloat16
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    assert models._choose_dtype(None, torch.device("cuda")) == torch.float32
    assert models._choose_dtype(None, torch.device("mps")) == torch.float32


@pytest.mark.parametrize("dtype", ["float31", "int8", torch.int64, 16])
def test_no_floating_dtype_is_refused(pico, dtype):
    with pytest.raises(ConfigError, match=r"not a floating-point format. Pass e.g. 'float32'"):
        load_model(pico, dtype=dtype)


@pytest.mark.parametrize("device", ["cudda", "cuda:99", 3.5])
def test_device_that_is_not_there_is_refused(pico, device):
    with pytest.raises(ConfigError, match=r"is not available here.*Leave device out"):
        load_model(pico, device=device)


def test_progress_bars_stay_as_the_user_had_them(pico, capfd):
    before = models.transformers_logging.is_progress_bar_enabled()
    load_model(pico, device="cpu")
    assert models.transformers_logging.is_progress_bar_enabled() == before
    assert "Loading weights" not in capfd.readouterr().err


def test_classroom_name_means_the_shipped_folder(pico, tmp_path, monkeypatch):
    shutil.copytree(pico, tmp_path / "models" / "clinical")
    monkeypatch.setattr(models, "data_samples_root", lambda: tmp_path)
    assert model_folder("classroom/clinical") == tmp_path / "models" / "clinical"
    assert load_model("classroom/clinical")[0].config.model_type == "llama"
    with pytest.raises(ModelError, match="`make classroom`"):
        load_model("classroom/base")
    with pytest.raises(ModelError, match=r"no classroom model 'classroom/clincal'. The classroom has 'classroom/base'"):
        load_model("classroom/clincal")


def test_name_that_points_nowhere(tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(models, "snapshot_download", lambda *a, **k: pytest.fail("asked the network for a local name"))
    for name in ("gpt2", "runs/moe", "./org/name", "/nowhere/model", Path("org/name")):
        with pytest.raises(ModelError, match=r"it is not an existing folder. Pass a folder"):
            load_model(name)
    with pytest.raises(ModelError, match="is a file; a model is a folder"):
        load_model("config.json")


def test_hub_that_cannot_be_reached():
    with pytest.raises(ModelError, match=r"'org/name' is not a folder here, and the model hub cannot be reached"):
        load_model("org/name")


@pytest.mark.parametrize(
    ("error", "message"),
    [(RepositoryNotFoundError, "neither a folder here nor a model on the hub"), (GatedRepoError, "hf auth login")],
)
def test_hub_that_refuses(monkeypatch, error, message):
    def refuse(*args, **kwargs):
        raise error("no", response=MagicMock())

    monkeypatch.setattr(models, "snapshot_download", refuse)
    with pytest.raises(ModelError, match=message):
        load_model("org/name")


def test_hub_model_takes_the_same_path_and_fetches_no_pickle(pico, monkeypatch):
    asked = {}

    def fetch(name, **kwargs):
        asked.update(kwargs, name=name)
        return str(pico)

    monkeypatch.setattr(models, "snapshot_download", fetch)
    assert model_folder("org/name") == "org/name"
    assert load_model("org/name", device="cpu")[0].config.model_type == "llama"
    assert asked["name"] == "org/name"
    assert not [pattern for pattern in asked["allow_patterns"] if pattern.endswith((".bin", ".pt", ".py", "*"))]


class TestBrokenFolder:
    def test_pickle_only(self, copy):
        (copy / "model.safetensors").unlink()
        (copy / "pytorch_model.bin").write_bytes(b"not opened")
        with pytest.raises(ModelError, match=r"only as pickle \(pytorch_model.bin\).*save_pretrained\(new_folder\)"):
            load_model(copy)

    def test_pickle_beside_safetensors_is_left_alone(self, copy):
        (copy / "pytorch_model.bin").write_bytes(b"not opened")
        assert load_model(copy)[0].dtype == torch.float32

    def test_no_weights(self, copy):
        (copy / "model.safetensors").unlink()
        with pytest.raises(ModelError, match=r"has no \*.safetensors file"):
            load_model(copy)

    def test_no_config(self, copy):
        (copy / "config.json").unlink()
        with pytest.raises(ModelError, match=r"has no config.json"):
            load_model(copy)

    def test_adapter(self, copy):
        (copy / "config.json").rename(copy / "adapter_config.json")
        with pytest.raises(ModelError, match=r"holds an adapter.*PeftModel"):
            load_model(copy)

    @pytest.mark.parametrize("keep", [0, 5, 1000, -10])
    def test_cut_short(self, copy, keep):
        weights = copy / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:keep])
        with pytest.raises(ModelError, match=r"damaged or cut short \([\d,]+ bytes.*download it again"):
            load_model(copy)

    def test_shard_missing(self, pico, tmp_path):
        folder = shutil.copytree(pico, tmp_path / "shards")
        next(iter(folder.glob("*.safetensors"))).unlink()
        with pytest.raises(ModelError, match=r"lacks 1 of the \d weight files"):
            load_model(folder)

    def test_shard_index_unreadable(self, pico, tmp_path):
        folder = shutil.copytree(pico, tmp_path / "shards")
        (folder / "model.safetensors.index.json").write_text("[]")
        with pytest.raises(ModelError, match="is not a readable shard index"):
            load_model(folder)

    def test_weight_missing(self, copy):
        tensors = load_file(copy / "model.safetensors")
        del tensors["model.layers.1.mlp.up_proj.weight"]
        save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ModelError, match=r"lacks 1 weights.*'model.layers.1.mlp.up_proj.weight'"):
            load_model(copy)

    def test_weight_of_another_shape(self, copy):
        edit_config(copy, intermediate_size=41)
        with pytest.raises(ModelError, match=r"config.json and its weights do not fit each other"):
            load_model(copy)

    def test_unused_weight_is_said(self, copy):
        tensors = load_file(copy / "model.safetensors") | {"extra.weight": torch.zeros(2)}
        save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
        with pytest.warns(WorkbenchWarning, match=r"holds 1 weights that .* not use.*'extra.weight'"):
            load_model(copy)

    def test_unknown_architecture(self, copy):
        edit_config(copy, model_type="llamoid", architectures=["LlamoidForCausalLM"])
        with pytest.raises(ModelError, match=r"model_type 'llamoid', which the installed transformers does not know"):
            load_model(copy)

    def test_own_code_is_never_run(self, copy):
        (copy / "own.py").write_text("raise SystemExit('ran')")
        auto_map = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
        edit_config(copy, model_type="own", auto_map=auto_map)
        with pytest.raises(ModelError, match="brings its own code, which is never run"):
            load_model(copy)

    def test_no_language_model(self, copy):
        config = T5Config(vocab_size=270, d_model=8, d_ff=8, d_kv=4, num_layers=1, num_heads=2)
        T5ForConditionalGeneration(config).save_pretrained(copy)
        with pytest.raises(ModelError, match=r"is a 't5' model, which does not continue text"):
            load_model(copy)

    @pytest.mark.parametrize("text", ["{", "[]", '"llama"'])
    def test_config_unreadable(self, copy, text):
        (copy / "config.json").write_text(text)
        with pytest.raises(ModelError, match=r"config.json (is not readable JSON|holds a (list|str)).*Copy"):
            load_model(copy)

    def test_tokenizer_missing(self, copy):
        (copy / "tokenizer.json").unlink()
        for load in (load_model, load_tokenizer):
            with pytest.raises(ModelError, match=r"has no tokenizer.*tokenizer.save_pretrained"):
                load(copy)

    def test_tokenizer_broken(self, copy):
        (copy / "tokenizer.json").write_text('{"model": 3}')
        with pytest.raises(ModelError, match=r"tokenizer of .* cannot be read"):
            load_model(copy)

    def test_tokenizer_of_another_model(self, copy):
        edit_config(copy, vocab_size=200)
        tensors = load_file(copy / "model.safetensors")
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            tensors[name] = tensors[name][:200].clone()
        save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ModelError, match=r"has \d+ tokens, its model only 200 embedding rows"):
            load_model(copy)


def test_tokenizer_without_special_tokens_still_pads(copy):
    path = copy / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in settings.items() if k != "eos_token"}))
    (copy / "special_tokens_map.json").unlink(missing_ok=True)
    tokenizer = load_tokenizer(copy)
    assert tokenizer.eos_token is None
    assert tokenizer(["a", "chest pain"], padding=True)["attention_mask"][0][0] == 0


def test_chat_prompt_fills_the_template(pico):
    tokenizer = load_tokenizer(pico)
    assert chat_prompt(tokenizer, "Any fever?") == "Any fever?\n"
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Any fever?"}]
    assert chat_prompt(tokenizer, turns) == "Be brief.\nAny fever?\n"
    tokenizer.chat_template = TEMPLATE
    assert chat_prompt(tokenizer, "Any fever?") == "<user>Any fever?\n<bot>"
    assert chat_prompt(tokenizer, turns) == "<system>Be brief.\n<user>Any fever?\n<bot>"


def test_data_samples_are_found():
    assert (models.data_samples_root() / "world").is_dir()
