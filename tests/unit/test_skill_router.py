"""The skill router against PEFT's own outputs and dense sums, its learning, and what it refuses."""

import copy
import json
import shutil

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from pico_adapters import IDS, TARGETS, adalora, llama, logits, lora, saved
from pico_language import byte_tokenizer, pico
from safetensors.torch import load_file, save_file

from workbench.adapters import (
    SkillBank,
    SkillRouterConfig,
    add_skill,
    auxiliary_losses,
    set_skill_weights,
    skill_weights,
)
from workbench.deltas import Delta, combine
from workbench.errors import ConfigError, MergeError, ModelError
from workbench.records import Example
from workbench.training import train

KINDS = {"lora": lora(), "rslora": lora(r=2, use_rslora=True), "adalora": adalora()}
Q_PROJ = "model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def skills(tmp_path_factory):
    root = tmp_path_factory.mktemp("skills")
    for seed, (name, kind) in enumerate(KINDS.items()):
        saved(llama(), kind, root / name, seed=seed)
    prune(root / "adalora")
    return {name: str(root / name) for name in KINDS}


def prune(folder):
    """Cut ranks of an AdaLoRA adapter as training does, one layer's to nothing."""
    tensors, config = (
        load_file(folder / "adapter_model.safetensors"),
        json.loads((folder / "adapter_config.json").read_text()),
    )
    config["rank_pattern"] = {}
    for name in [name.removesuffix(".lora_A") for name in tensors if name.endswith("lora_A")]:
        keep = 0 if "layers.1.mlp" in name else 3 if "q_proj" in name else 2
        tensors |= {f"{name}.lora_{part}": tensors[f"{name}.lora_{part}"][:keep] for part in "AE"}
        tensors[f"{name}.lora_B"] = tensors[f"{name}.lora_B"][:, :keep].contiguous()
        config["rank_pattern"][f"{name.removeprefix('base_model.model.')}.lora_E"] = [i < keep for i in range(4)]
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config))


def routed(skills, base=None, **changes):
    return get_peft_model(llama() if base is None else base, SkillRouterConfig(skills=skills, **changes)).eval()


def dense(skills, weights):
    """The base with the skills' weighted updates summed into its weights."""
    base, target = llama(), llama()
    deltas = [Delta.from_adapter(folder, base=base) for folder in skills.values()]
    combine(deltas, weights).apply_to(target)
    return target


@pytest.mark.parametrize("gate", ["static", "input"])
def test_a_layer_in_which_no_skill_has_a_rank_left_adds_nothing(skills, gate):
    alone = {"adalora": skills["adalora"]}
    model = routed(alone, gate=gate, initial_weights={"adalora": 1})
    assert torch.allclose(logits(model), logits(dense(alone, [1.0])), atol=2e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_one_skill_at_weight_1_is_what_peft_gives(kind, tmp_path):
    theirs = saved(llama(), KINDS[kind], tmp_path / "one", seed=4)
    saved(llama(), lora(), tmp_path / "other", seed=5)
    folders = {"one": tmp_path / "one", "other": tmp_path / "other"}
    model = routed(folders, initial_weights={"one": 1})
    assert torch.allclose(logits(model), logits(theirs), atol=2e-6)
    assert skill_weights(model) == {"one": 1.0, "other": 0.0}


def test_weight_0_is_the_base_bit_for_bit(skills):
    assert torch.equal(logits(routed(skills)), logits(llama()))


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(weights=st.lists(st.floats(-1.5, 1.5), min_size=3, max_size=3))
def test_several_skills_are_the_dense_sum_of_their_updates(skills, weights):
    model = routed(skills)
    set_skill_weights(model, dict(zip(skills, weights)))
    wanted = logits(dense(skills, weights))
    assert torch.allclose(logits(model), wanted, atol=1e-5)
    assert torch.allclose(logits(model.merge_and_unload()), wanted, atol=1e-5)


def test_a_merge_that_is_not_finite_or_quantised_is_refused_and_changes_nothing(skills):
    model, before = routed(skills, initial_weights=3e38), llama().state_dict()
    with pytest.raises(MergeError, match=r"holds NaN or infinity"):
        model.merge_adapter()
    assert torch.equal(
        model.unload().state_dict()["model.layers.0.self_attn.q_proj.weight"], before[f"{Q_PROJ}.weight"]
    )
    model = routed(skills)
    inner = model.get_base_model().get_submodule(Q_PROJ).get_base_layer()
    inner.weight = torch.nn.Parameter(inner.weight.to(torch.int8), requires_grad=False)
    with pytest.raises(ModelError, match=r"holds torch\.int8 numbers.*unquantised"):
        model.merge_adapter()


def test_a_bank_is_two_matrices_a_layer_with_unequal_ranks(skills):
    bank = SkillBank.open(skills, llama())
    assert bank.names == tuple(KINDS)
    assert list(bank.layers) == [f"model.layers.{i}.{name}" for i in (0, 1) for name in (
        "self_attn.q_proj", "self_attn.o_proj", "mlp.down_proj"
    )]  # fmt: skip
    assert bank.layers[Q_PROJ].ranks == (3, 2, 3)
    assert bank.layers["model.layers.1.mlp.down_proj"].ranks == (3, 2, 0)
    assert bank.layers[Q_PROJ].A.shape == (8, 12)
    assert bank.layers[Q_PROJ].B.shape == (12, 8)
    base = llama()
    wanted = combine([Delta.from_adapter(folder, base=base) for folder in skills.values()], [1, 1, 1])
    for name, layer in bank.layers.items():
        assert torch.allclose(layer.B @ layer.A, wanted.tensor(f"{name}.weight"), atol=1e-6)


def test_a_bank_opens_over_a_folder_and_a_wrapped_model(skills, tmp_path):
    llama().save_pretrained(tmp_path)
    here, there = SkillBank.open(skills, llama()), SkillBank.open(skills, tmp_path)
    over = SkillBank.open(skills, routed(skills).get_base_model())
    for other in (there, over):
        assert all(torch.equal(layer.A, here.layers[name].A) for name, layer in other.layers.items())


def test_each_layer_has_weights_of_its_own(skills):
    model = routed(skills, per_layer=True, initial_weights=0.5)
    assert skill_weights(model) == {name: [0.5, 0.5] for name in KINDS}
    set_skill_weights(model, {"lora": [1.0, 0.0], "rslora": 0.25})
    assert skill_weights(model) == {"lora": [1.0, 0.0], "rslora": [0.25, 0.25], "adalora": [0.5, 0.5]}
    with pytest.raises(ConfigError, match=r"'lora' has 3 weights.*each of 2 layers"):
        set_skill_weights(model, {"lora": [1.0, 0.0, 2.0]})


def test_a_softmax_starts_even_and_takes_shares(skills):
    model = routed(skills, constraint="softmax")
    assert sum(skill_weights(model).values()) == pytest.approx(1)
    shares = {"lora": 0.75, "rslora": 0.25, "adalora": 0.0}
    set_skill_weights(model, shares)
    assert skill_weights(model) == pytest.approx(shares, abs=1e-6)
    with pytest.raises(ConfigError, match=r"at least 0 and sum to 1.*constraint='free'"):
        set_skill_weights(model, {"lora": 0.9})


@pytest.mark.parametrize("gate", ["static", "input"])
def test_the_regulariser_is_the_mean_of_the_weights_sizes(skills, gate):
    start = {"lora": 0.6, "rslora": -0.3}
    model = routed(skills, gate=gate, l1_coef=0.1, initial_weights=start).train()
    model(input_ids=IDS)
    found = auxiliary_losses(model)
    assert found.keys() == {"l1"}
    assert float(found["l1"]) == pytest.approx(0.1 * 0.9 / 3)
    assert found["l1"].requires_grad
    model.eval()
    model(input_ids=IDS)
    assert auxiliary_losses(model) == {}
    assert auxiliary_losses(routed(skills, constraint="softmax").train()) == {}
    assert auxiliary_losses(routed(skills, l1_coef=0).train()) == {}


def test_a_gate_weighs_each_prompt_by_itself(skills):
    model = routed(skills, gate="input")
    gate = next(module for name, module in model.named_modules() if name.endswith("skill_router_gate.default"))
    gate.weight.data.normal_()
    both = logits(model)
    for row in (0, 1):
        with torch.no_grad():
            assert torch.allclose(model(input_ids=IDS[row : row + 1]).logits[0], both[row], atol=1e-5)
    outside = gate(torch.randn(2, 12))
    assert torch.allclose(outside.router_logits.gather(1, outside.selected_experts), outside.routing_weights)
    assert bool((outside.routing_weights.diff(dim=1) <= 0).all())


@pytest.mark.parametrize("gate", ["static", "input"])
def test_training_raises_the_skill_that_the_answers_need(tmp_path, gate):
    targets = {"target_modules": ["q_proj", "v_proj", "down_proj"], "task_type": "CAUSAL_LM"}
    rows = [Example(id=f"e{i}", skill="qa", query=f"say {i}", answer="ab") for i in range(6)]
    train(pico(), byte_tokenizer(chat=True), rows, adapter=LoraConfig(r=4, **targets), output_dir=tmp_path / "good",
          steps=15, lr=3e-2, batch_size=6, progress=False)  # fmt: skip
    saved(pico(), lora(**targets), tmp_path / "random", seed=1)
    config = SkillRouterConfig(skills={name: tmp_path / name for name in ("good", "random")}, gate=gate, strict=False)
    run = train(pico(), byte_tokenizer(chat=True), rows, adapter=config, output_dir=tmp_path / "router",
                steps=20, lr=5e-2, batch_size=6, progress=False)  # fmt: skip
    losses = [row["loss"] for row in run.history if "loss" in row]
    assert losses[-1] < losses[0] - 0.5
    assert any("l1" in row for row in run.history)
    if gate == "static":
        weights = skill_weights(run.model)
        assert weights["good"] > 0.3 > abs(weights["random"])


def spoiled(skills, root, change):
    """A copy of one skill, whose configuration and tensors `change` has edited."""
    folder = root / "spoiled"
    shutil.copytree(skills["lora"], folder)
    config, tensors = (
        json.loads((folder / "adapter_config.json").read_text()),
        load_file(folder / "adapter_model.safetensors"),
    )
    change(config, tensors)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "adapter_model.safetensors")
    return {"rslora": skills["rslora"], "bad": folder}


def _nan(_, tensors):
    next(iter(tensors.values()))[0, 0] = float("nan")


def _missing(_, tensors):
    del tensors[next(name for name in tensors if name.endswith("q_proj.lora_B.weight"))]


def _layer_missing(_, tensors):
    for name in [name for name in tensors if "layers.1.self_attn.q_proj" in name]:
        del tensors[name]


def _pickled_kind(config, _):
    config["peft_type"] = "IA3"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_nan, r"Tensor .*lora_A.* holds NaN or infinity.*earlier checkpoint"),
        (_missing, r"no tensor lora_B for 'model\.layers\.\d\.self_attn\.q_proj'.*Save the whole adapter again"),
        (_layer_missing, r"no tensors for 'model\.layers\.1\.self_attn\.q_proj'.*Copy the whole adapter"),
        (_pickled_kind, r"peft_type 'IA3'.*LORA, ADALORA"),
    ],
)
def test_a_broken_skill_is_told_before_the_model_is_touched(skills, tmp_path, change, message):
    model = llama()
    with pytest.raises(ModelError, match=message):
        routed(spoiled(skills, tmp_path, change), base=model)
    assert not any("base_layer" in name for name in model.state_dict())


def test_skills_of_another_base_are_refused(skills, tmp_path):
    with pytest.raises(MergeError, match=r"for a tensor '.*' of shape .*, in 'LlamaForCausalLM' it has shape"):
        routed(skills, base=llama(hidden_size=16))
    with pytest.raises(MergeError, match=r"changes tensor 'model\.layers\.1\..*', which .* does not have"):
        routed(skills, base=llama(num_hidden_layers=1))
    base = llama()
    base.name_or_path = base.config._name_or_path = "models/instruct"
    folders = spoiled(skills, tmp_path, lambda config, _: config.update(base_model_name_or_path="models/base"))
    with pytest.raises(
        ConfigError, match=r"'bad' .* trained on 'models/base', this model is 'models/instruct'.*strict"
    ):
        routed(folders, base=base)
    assert routed(folders, base=copy.deepcopy(base), strict=False)


def test_skills_of_other_layers_are_refused_unless_asked_for(skills, tmp_path):
    theirs = saved(llama(), lora(target_modules=["v_proj"]), tmp_path / "v", seed=3)
    folders = {"lora": skills["lora"], "v": tmp_path / "v"}
    with pytest.raises(ConfigError, match=r"'lora' and 'v' adapt different layers: 8 .*same target_modules.*strict"):
        routed(folders)
    model = routed(folders, strict=False, initial_weights={"v": 1.0})
    assert torch.allclose(logits(model), logits(theirs), atol=2e-6)
    with pytest.raises(ConfigError, match=r"'v' and the router 'default' adapt different layers: 8 "):
        add_skill(routed(skills), "v", tmp_path / "v")


@pytest.mark.parametrize("kind", [lora(use_dora=True), lora(modules_to_save=["lm_head"])])
def test_what_is_no_low_rank_update_is_refused(kind, tmp_path):
    saved(llama(), kind, tmp_path / "odd")
    with pytest.raises(ConfigError, match=r"the skill 'odd' .* more than a product of two thin matrices.*LoRA, rsLoRA"):
        routed({"odd": tmp_path / "odd"})


def test_an_embedding_is_refused_before_the_model_is_touched(tmp_path):
    saved(llama(), lora(target_modules=["embed_tokens", *TARGETS]), tmp_path / "odd")
    model = llama()
    with pytest.raises(ConfigError, match=r"'model\.embed_tokens', a Embedding.*linear layers only"):
        routed({"odd": tmp_path / "odd"}, base=model)
    assert not any("base_layer" in name for name in model.state_dict())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"skills": {}}, r"skills is \{\}.*at least one"),
        ({"gate": "token"}, r"gate is 'token'.*static, input"),
        ({"constraint": "simplex"}, r"constraint is 'simplex'.*free, softmax"),
        ({"l1_coef": -1}, r"l1_coef is -1.*at least 0"),
        ({"initial_weights": {"x": 1}}, r"names the skill 'x'; the skills are a, b"),
        ({"initial_weights": float("inf")}, r"initial_weights of 'a' is inf.*finite"),
        ({"initial_weights": 1, "constraint": "softmax"}, r"\[1\.0, 1\.0\].*sum to 1"),
    ],
)
def test_settings_are_checked(changes, message):
    with pytest.raises(ConfigError, match=message):
        SkillRouterConfig(**({"skills": {"a": "x", "b": "y"}} | changes))


def test_wrong_folders_names_and_models_are_told(skills):
    with pytest.raises(ModelError, match=r"'nowhere' has no adapter_config\.json.*Check the path"):
        routed({"ner": "nowhere"})
    with pytest.raises(ConfigError, match="there is no skill"):
        SkillBank.open({}, llama())
    with pytest.raises(ConfigError, match=r"names the skill 'chat'; the skills are lora, rslora, adalora"):
        set_skill_weights(routed(skills), {"chat": 1})
    with pytest.raises(ModelError, match=r"no skill router.*SkillRouterConfig"):
        skill_weights(llama())
    with pytest.raises(ModelError, match="no skill router named 'other'"):
        set_skill_weights(routed(skills), {}, adapter="other")
