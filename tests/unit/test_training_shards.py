"""Shards of FSDP in one process: what is saved is whole, what is loaded is split, what trains in them, too."""

from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from pico_adapters import adalora, llama, trained
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from workbench.adapters import LoraMoeConfig
from workbench.curriculum.losses import consistency_loss, snapshot
from workbench.errors import ConfigError
from workbench.ops.processes import sharded
from workbench.training.adalora import allocate, ranks
from workbench.training.fit import _check_sharding
from workbench.training.resume import full_state, load_state, save_state, trained_state

MOE = LoraMoeConfig(r=2, num_experts=3, queue_size=4, target_modules=["q_proj"], task_type="CAUSAL_LM")


@pytest.fixture
def group(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def split(model):
    for layer in model.base_model.model.model.layers:
        fully_shard(layer)
    return fully_shard(model)


def test_an_adapter_in_shards_is_saved_whole_and_loaded_bit_for_bit(group, tmp_path):
    whole = trained(llama(), MOE)
    next(buffer for name, buffer in whole.named_buffers() if "vectors" in name).fill_(0.5)
    wanted = {name: tensor.clone() for name, tensor in trained_state(whole).items()}
    save_state(trained_state(split(whole)), tmp_path)
    assert sharded(whole)
    other = split(trained(llama(), MOE, seed=2))
    load_state(other, tmp_path)
    assert any(isinstance(tensor, DTensor) for tensor in other.parameters())
    found = trained_state(other)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
    assert len(found) > 8


def test_a_whole_models_state_is_its_own(group):
    model = get_peft_model(llama(), LoraConfig(r=2, target_modules=["q_proj"]))
    assert not sharded(model)
    assert full_state(model).keys() == model.state_dict().keys()
    assert not any("base_layer" in name for name in full_state(split(model)))


def test_earlier_weights_are_asked_in_shards_and_the_present_ones_stay(group):
    earlier, model = snapshot(trained(llama(), MOE, seed=2)), trained(llama(), MOE)
    ids = torch.randint(0, model.config.vocab_size, (2, 7))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    wanted, present = consistency_loss(model, earlier, inputs), snapshot(model)
    parts = split(model)
    assert consistency_loss(parts, earlier, inputs).item() == pytest.approx(wanted.item(), rel=1e-5)
    assert wanted > 1e-4
    found = snapshot(parts)
    assert found.keys() == present.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in present.items())


def test_ranks_of_a_model_in_shards_are_those_of_the_whole(group):
    def step(model):
        for name, tensor in model.named_parameters():
            if tensor.requires_grad:
                tensor.grad = torch.ones_like(tensor) * (0.1 + len(name) % 7)
        for count in range(1, 7):
            allocate(model, count)
        return ranks(model), {name: tensor.clone() for name, tensor in trained_state(model).items()}

    config = adalora(init_r=3, target_r=1, tinit=1, tfinal=1, total_step=8)
    (wanted, state), (found, other) = step(trained(llama(), config)), step(split(trained(llama(), config)))
    assert found == wanted
    assert wanted["mean_rank"] < 3
    assert other.keys() == state.keys()
    assert all(torch.allclose(other[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize(
    ("version", "efficient", "message"),
    [
        (1, False, "fsdp_version=1, .*--use_fsdp --fsdp_version 2 --fsdp_cpu_ram_efficient_loading false"),
        (2, True, "fsdp_cpu_ram_efficient_loading=True; train shards"),
    ],
)
def test_what_cannot_be_split_is_refused(version, efficient, message):
    plugin = SimpleNamespace(fsdp_version=version, cpu_ram_efficient_loading=efficient)
    with pytest.raises(ConfigError, match=message):
        _check_sharding(plugin)
    _check_sharding(SimpleNamespace(fsdp_version=2, cpu_ram_efficient_loading=False))
