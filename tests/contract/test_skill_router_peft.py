"""What PEFT promises of a method, kept by the skill router: one list of configurations, every behaviour for each."""

import copy
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftConfig, PeftModel, get_peft_model, inject_adapter_in_model

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

from pico_adapters import IDS, adalora, gpt2, llama, logits, lora, saved

from workbench.adapters import (
    SkillRouterConfig,
    add_skill,
    auxiliary_losses,
    keep_sequences,
    set_skill_weights,
    skill_weights,
)
from workbench.errors import ConfigError, ModelError
from workbench.routing.capture import capture_routing

KINDS = {"ner": lora(), "exam": lora(r=2, use_rslora=True), "chat": adalora()}
CONFIGS = {
    "free": {},
    "softmax": {"constraint": "softmax", "initial_weights": {"ner": 0.5, "exam": 0.2, "chat": 0.3}},
    "layers": {"per_layer": True, "initial_weights": 0.3},
    "gate": {"gate": "input", "initial_weights": {"exam": 0.6}},
    "softmax gate": {"gate": "input", "constraint": "softmax", "per_layer": True},
}
GREEDY = {"do_sample": False, "max_new_tokens": 6, "pad_token_id": 0, "attention_mask": torch.ones_like(IDS)}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("skills")
    for seed, (name, kind) in enumerate(KINDS.items()):
        saved(llama(), kind, root / name, seed=seed)
    saved(llama(), lora(r=1), root / "late", seed=9)
    return root


@pytest.fixture(params=CONFIGS)
def config(request, folders):
    skills = {"skills": {name: folders / name for name in KINDS}}
    return lambda **changes: SkillRouterConfig(**(skills | CONFIGS[request.param] | changes))


def moved(config, seed=1, base=None):
    """A router whose weights are no longer those it started with."""
    model = get_peft_model(llama() if base is None else base, config).eval()
    torch.manual_seed(seed)
    for tensor in model.parameters():
        tensor.data += 0.3 * torch.randn_like(tensor) * tensor.requires_grad
    return model


def loaded(folder, **settings):
    return PeftModel.from_pretrained(llama(), folder, **settings).eval()


def test_the_story_loss_falls_disabling_matters_reload_is_identical(config, tmp_path):
    model = get_peft_model(llama(), config()).train()
    trainable = [name for name, tensor in model.named_parameters() if tensor.requires_grad]
    assert trainable
    assert all("skill_router_gate" in name for name in trainable)
    before = {name: tensor.clone() for name, tensor in model.named_buffers()}
    optimizer = torch.optim.AdamW([tensor for tensor in model.parameters() if tensor.requires_grad], lr=0.1)
    losses = []
    for _ in range(15):
        loss = model(input_ids=IDS, labels=IDS).loss
        (loss + sum(auxiliary_losses(model).values())).backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.02
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.named_buffers())
    model.eval()
    with model.disable_adapter():
        assert torch.equal(logits(model), logits(llama()))
    assert not torch.allclose(logits(model), logits(llama()))
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(loaded(tmp_path)), logits(model))


def test_the_saved_folder_needs_no_skill_and_keeps_their_order(config, folders, tmp_path):
    gone = tmp_path / "gone"
    for name in KINDS:
        saved(llama(), KINDS[name], gone / name, seed=3)
    model = moved(config(skills={name: gone / name for name in KINDS}))
    model.save_pretrained(tmp_path / "router")
    gone.rename(tmp_path / "elsewhere")
    again = loaded(tmp_path / "router")
    assert torch.equal(logits(again), logits(model))
    assert list(again.peft_config["default"].skills) == list(KINDS)
    again.save_pretrained(tmp_path / "twice")
    assert torch.equal(logits(loaded(tmp_path / "twice")), logits(model))


def test_a_configuration_serves_twice_and_is_saved_as_given(config, tmp_path):
    given = config()
    first, second = (get_peft_model(llama(), given).eval() for _ in range(2))
    assert given.ranks is None
    assert torch.equal(logits(first), logits(second))
    given.save_pretrained(tmp_path)
    assert PeftConfig.from_pretrained(tmp_path).to_dict() == config().to_dict()


def test_generating_with_a_cache_keeps_the_prompts_weights(config):
    model = moved(config())
    written = model.generate(input_ids=IDS, use_cache=True, **GREEDY)
    assert written.shape == (2, 11)
    for row in range(2):
        alone = GREEDY | {"attention_mask": torch.ones(1, 5, dtype=torch.int64)}
        assert torch.equal(model.generate(input_ids=IDS[row : row + 1], **alone)[0], written[row])


@pytest.mark.parametrize("autocast", [True, False])
def test_bfloat16(config, tmp_path, autocast):
    base = llama().to(torch.bfloat16)
    model = get_peft_model(copy.deepcopy(base), config(), autocast_adapter_dtype=autocast)
    assert {tensor.dtype for tensor in model.parameters() if tensor.requires_grad} == {torch.float32}
    banks = {
        tensor.dtype for name, tensor in model.named_buffers() if "skill_router_A" in name or "skill_router_B" in name
    }
    assert banks == {torch.float32 if autocast else torch.bfloat16}
    model.train()
    loss = model(input_ids=IDS, labels=IDS).loss
    (loss + sum(auxiliary_losses(model).values())).backward()
    assert all(tensor.grad.isfinite().all() for tensor in model.parameters() if tensor.requires_grad)
    model.eval()
    assert logits(model).dtype == torch.bfloat16
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(base, tmp_path, autocast_adapter_dtype=autocast).eval()
    assert torch.equal(logits(again), logits(model))


def test_gradient_checkpointing_gives_the_same_gradients(config):
    def gradients(model):
        loss = model(input_ids=IDS, labels=IDS).loss
        (loss + sum(auxiliary_losses(model).values())).backward()
        return [tensor.grad for tensor in model.parameters() if tensor.requires_grad]

    plain, saving = moved(config()).train(), moved(config()).train()
    saving.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for one, other in zip(gradients(plain), gradients(saving), strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_injecting_without_a_wrapper(config):
    model = inject_adapter_in_model(config(), llama()).eval()
    assert torch.equal(logits(model), logits(get_peft_model(llama(), config()).eval()))


def test_a_static_router_merges_exactly_and_comes_off(config):
    model = moved(config())
    if model.peft_config["default"].gate == "input":
        for merge in (model.merge_and_unload, model.merge_adapter):
            with pytest.raises(ConfigError, match=r"behind a gate cannot be merged.*depends on the prompt.*unload\(\)"):
                merge()
        assert torch.equal(logits(model.unload()), logits(llama()))
        return
    wanted = logits(model)
    model.merge_adapter()
    assert torch.allclose(logits(model), wanted, atol=1e-5)
    with pytest.raises(ConfigError, match=r"merged into the weights.*Unmerge it first"):
        set_skill_weights(model, {"ner": 1.0})
    model.unmerge_adapter()
    assert torch.equal(logits(model), wanted)
    model.merge_adapter()
    with model.disable_adapter():
        assert torch.equal(logits(model), logits(llama()))
    merged = model.merge_and_unload()
    assert torch.allclose(logits(merged), wanted, atol=1e-5)
    assert not any("skill_router" in name for name in merged.state_dict())


def test_another_skill_joins_without_changing_anything(config, folders, tmp_path):
    given = config()
    model = moved(given)
    before = logits(model)
    add_skill(model, "late", folders / "late")
    assert "late" not in given.skills
    assert torch.allclose(logits(model), before, atol=1e-5)
    assert list(model.peft_config["default"].skills) == [*KINDS, "late"]
    model.save_pretrained(tmp_path)
    again = loaded(tmp_path)
    assert torch.equal(logits(again), logits(model))
    model.train()
    model(input_ids=IDS, labels=IDS).loss.backward()
    shapes = {len(tensor.grad) for tensor in model.parameters() if tensor.requires_grad}
    assert shapes == {4}
    with pytest.raises(ConfigError, match=r"'late' cannot be added.*has that skill already.*another name"):
        add_skill(model, "late", folders / "late")


def test_a_gate_is_seen_by_capture_and_its_weights_are_one_set_for_each_prompt(config):
    model = moved(config())
    if model.peft_config["default"].gate == "static":
        with pytest.raises(ModelError, match="has no router"), capture_routing(model):
            pass
        assert list(skill_weights(model)) == list(KINDS)
        return
    with capture_routing(model) as trace:
        model.generate(input_ids=IDS, **GREEDY)
    routers = 2 if model.peft_config["default"].per_layer else 1
    assert len(trace.routers) == routers
    for output in trace.routers.values():
        assert output.routing_weights.shape == (20, 3)
        for row in range(2):
            own = output.routing_weights[trace.tokens["row"] == row]
            assert torch.equal(own, own[:1].expand_as(own))
    with pytest.raises(ConfigError, match=r"'default' follow the input.*capture_routing"):
        skill_weights(model)


def test_sequences_that_are_dropped_take_their_weights_along(config):
    model = moved(config())
    if model.peft_config["default"].gate == "static":
        return
    with torch.no_grad():
        both = model(input_ids=IDS, use_cache=True)
        cache = both.past_key_values
        wanted = model(input_ids=IDS[:, :1], past_key_values=copy.deepcopy(cache)).logits[1]
        cache.batch_select_indices(torch.tensor([1]))
        with pytest.raises(ModelError, match=r"prompts of 2 sequences and 1 are continued.*keep_sequences"):
            model(input_ids=IDS[1:, :1], past_key_values=copy.deepcopy(cache))
        keep_sequences(model, torch.tensor([1]))
        assert torch.allclose(model(input_ids=IDS[1:, :1], past_key_values=cache).logits[0], wanted, atol=1e-5)


def test_layers_that_keep_their_weights_transposed(config, tmp_path):
    targets = {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}
    for seed, name in enumerate(KINDS):
        saved(gpt2(), lora(r=2 + seed, **targets), tmp_path / name, seed=seed)
    model = moved(config(skills={name: tmp_path / name for name in KINDS}), base=gpt2())
    assert not torch.allclose(logits(model), logits(gpt2()), atol=1e-3)
    if model.peft_config["default"].gate == "static":
        wanted = logits(model)
        assert torch.allclose(logits(model.merge_and_unload()), wanted, atol=1e-5)
