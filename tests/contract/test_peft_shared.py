"""What PEFT promises of any method, kept by each of ours: every configuration of each, one behaviour a test."""

import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from peft import PeftConfig, PeftModel, get_peft_model

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

from pico_adapters import IDS, TARGETS, adalora, llama, logits, lora, saved, trained

from workbench.adapters import LoraMoeConfig, SkillRouterConfig, auxiliary_losses
from workbench.errors import ConfigError

GREEDY = {"do_sample": False, "max_new_tokens": 6, "pad_token_id": 0}
SIZES = {"r": 4, "num_experts": 3, "queue_size": 5, "queue_dim": 6, "target_modules": TARGETS}
SKILLS = {"ner": lora(), "exam": lora(r=2, use_rslora=True), "chat": adalora()}
MIXTURES = {
    "mixture, queue": {},
    "mixture, in batch": {"contrastive": "in_batch", "shared_expert": True},
    "mixture, shared router": {"router": "layer", "use_rslora": True},
    "mixture, by sequence": {"routing": "sequence", "lora_dropout": 0.1},
}
ROUTERS = {
    "skills, free": {},
    "skills, softmax": {"constraint": "softmax", "initial_weights": {"ner": 0.5, "exam": 0.2, "chat": 0.3}},
    "skills, by layer": {"per_layer": True, "initial_weights": 0.3},
    "skills, gate": {"gate": "input", "initial_weights": {"exam": 0.6}},
    "skills, softmax gate": {"gate": "input", "constraint": "softmax", "per_layer": True},
}


@dataclass(frozen=True)
class Method:
    """One configuration of one method."""

    config: Callable[..., PeftConfig]
    prefix: str

    def moved(self, seed=1) -> PeftModel:
        """An adapter on the pico base whose trainable numbers are no longer those it started with."""
        return trained(llama(), self.config(), seed=seed)

    def fresh(self) -> PeftModel:
        return get_peft_model(llama(), self.config()).eval()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("skills")
    for seed, (name, kind) in enumerate(SKILLS.items()):
        saved(llama(), kind, root / name, seed=seed)
    return {name: root / name for name in SKILLS}


@pytest.fixture(params=MIXTURES | ROUTERS)
def method(request, folders):
    if request.param in MIXTURES:
        return Method(lambda **new: LoraMoeConfig(**(SIZES | MIXTURES[request.param] | new)), "lora_moe")
    given = {"skills": folders} | ROUTERS[request.param]
    return Method(lambda **new: SkillRouterConfig(**(given | new)), "skill_router")


def loaded(folder, **settings):
    return PeftModel.from_pretrained(llama(), folder, **settings).eval()


def test_only_the_methods_own_tensors_train_and_disabling_is_the_base(method):
    model = method.moved()
    trainable = [name for name, tensor in model.named_parameters() if tensor.requires_grad]
    assert trainable
    assert all(f"{method.prefix}_" in name for name in trainable)
    assert not torch.allclose(logits(model), logits(llama()))
    with model.disable_adapter():
        assert torch.equal(logits(model), logits(llama()))
    assert torch.equal(logits(model.unload()), logits(llama()))


@pytest.mark.parametrize("low_memory", [False, True])
def test_every_saved_tensor_comes_back(method, tmp_path, low_memory):
    model = method.moved()
    model.save_pretrained(tmp_path)
    again = loaded(tmp_path, low_cpu_mem_usage=low_memory)
    assert torch.equal(logits(again), logits(model))
    wanted = model.state_dict()
    assert again.state_dict().keys() == wanted.keys()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in again.state_dict().items())


def test_several_adapters_are_chosen_among_and_deleted(method, tmp_path):
    first, second = method.moved(seed=1), method.moved(seed=2)
    first.save_pretrained(tmp_path / "first")
    second.save_pretrained(tmp_path / "second")
    both = loaded(tmp_path / "first")
    both.load_adapter(tmp_path / "second", "second")
    assert torch.equal(logits(both), logits(first))
    both.set_adapter("second")
    assert torch.equal(logits(both), logits(second))
    both.delete_adapter("default")
    assert torch.equal(logits(both), logits(second))
    assert not any("default" in name for name in both.state_dict())


def test_only_the_chosen_adapter_trains(method):
    model = method.moved()
    model.add_adapter("second", method.config())
    model.set_adapter("second")
    assert torch.equal(logits(model), logits(method.fresh()))
    assert all("second" in name for name, tensor in model.named_parameters() if tensor.requires_grad)


def test_left_padding_changes_no_answer(method):
    model = method.moved()
    padded, mask = torch.tensor([[0, 0, 3, 3, 7]]), torch.tensor([[0, 0, 1, 1, 1]])
    alone = model.generate(input_ids=padded[:, 2:], attention_mask=mask[:, 2:], **GREEDY)
    answer = model.generate(input_ids=padded, attention_mask=mask, **GREEDY)
    assert torch.equal(answer[:, 5:], alone[:, 3:])


def test_mixed_precision_training(method):
    model = method.moved().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(input_ids=IDS, labels=IDS).loss
        losses = auxiliary_losses(model)
    assert {loss.dtype for loss in losses.values()} <= {torch.float32}
    (loss + sum(losses.values())).backward()
    assert all(tensor.grad.isfinite().all() for tensor in model.parameters() if tensor.requires_grad)


def test_transformers_loads_and_adds_adapters(method, tmp_path):
    model = method.moved()
    model.save_pretrained(tmp_path)
    alone = llama()
    found = alone.load_adapter(str(tmp_path))
    assert not found.missing_keys
    assert not found.unexpected_keys
    assert torch.equal(logits(alone.eval()), logits(model))
    fresh = llama()
    fresh.add_adapter(method.config(), "fresh")
    assert torch.equal(logits(fresh.eval()), logits(method.fresh()))


def test_a_name_that_is_part_of_the_methods_is_refused(method):
    for name in (method.prefix, method.prefix.split("_")[-1]):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT's own, of the same matter
            with pytest.raises(ConfigError, match=rf"name '{name}' is part of '{method.prefix}'.*another name"):
                get_peft_model(llama(), method.config(), adapter_name=name)
