"""The expert memory queue: first in, first out; bounded; filled once a micro-batch; saved with the adapter."""

import copy

import pytest
import torch
from peft import PeftModel, get_peft_model
from pico_adapters import IDS, TARGETS, llama, trained
from torch.nn.functional import normalize

from workbench.adapters import LoraMoeConfig, auxiliary_losses
from workbench.adapters.lora_moe.queue import ExpertQueue


def config(**changes):
    settings = {"r": 4, "num_experts": 3, "queue_size": 5, "queue_dim": 6, "target_modules": TARGETS}
    return LoraMoeConfig(**(settings | {"task_type": "CAUSAL_LM"} | changes))


def queues(model):
    return [module for module in model.modules() if isinstance(module, ExpertQueue)]


def step(model, ids=IDS):
    model(input_ids=ids, attention_mask=torch.ones_like(ids))
    return auxiliary_losses(model)


def test_the_oldest_goes_first_and_zero_outputs_are_skipped():
    queue = ExpertQueue(4, num_experts=2, size=3, dim=None)
    outputs = torch.randn(5, 2, 4, generator=torch.Generator().manual_seed(0))
    outputs[1, 0] = 0
    queue.add(outputs[:2])
    assert queue.written.tolist() == [1, 2]
    queue.add(outputs[2:4])
    queue.add(outputs[4:])
    units = normalize(outputs, dim=-1)
    keys, filled = queue.keys()
    assert queue.written.tolist() == [4, 5]
    assert filled.tolist() == [3, 3]
    assert torch.equal(keys[0], units[[4, 2, 3], 0])
    assert torch.equal(keys[1], units[[3, 4, 2], 1])
    queue.add(torch.randn(7, 2, 4))
    assert queue.written.tolist() == [7, 8]


def test_what_is_kept_is_bounded_whatever_the_batch():
    model = get_peft_model(llama(), config()).train()
    sizes = [tuple(queue.vectors.shape) for queue in queues(model)]
    assert set(sizes) == {(3, 6, 6)}
    for shape in ((1, 3), (9, 9)):
        step(model, torch.zeros(shape, dtype=torch.long))
    assert [tuple(queue.vectors.shape) for queue in queues(model)] == sizes


def test_a_fresh_adapter_fills_no_queue_and_a_trained_one_does():
    model = get_peft_model(llama(), config()).train()
    losses = step(model)
    assert losses["contrastive"].item() == 0
    assert all(queue.written.sum() == 0 for queue in queues(model))
    model = trained(llama(), config()).train()
    step(model)
    for queue in queues(model):
        assert 2 <= queue.written.sum() <= 6
        kept = queue.keys()[0].norm(dim=-1).flatten()
        assert torch.allclose(kept[kept > 0], torch.ones(int(queue.written.sum())), atol=1e-6)
        assert not queue.vectors.requires_grad


def gradients(checkpointing):
    model = trained(llama(), config(lora_dropout=0.2, router_jitter_noise=0.1, router_z_loss_coef=0.1)).train()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    torch.manual_seed(0)
    for _ in range(5):
        model.zero_grad()
        loss = model(input_ids=IDS, labels=IDS, attention_mask=torch.ones_like(IDS)).loss
        (loss + sum(auxiliary_losses(model).values())).backward()
    return model, {name: tensor.grad for name, tensor in model.named_parameters() if tensor.requires_grad}


def test_checkpoint_recomputation_adds_nothing_and_changes_no_gradient():
    plain, wanted = gradients(checkpointing=False)
    again, found = gradients(checkpointing=True)
    assert any(queue.written.max() > 5 for queue in queues(plain))
    for mine, theirs in zip(queues(again), queues(plain)):
        assert torch.equal(mine.written, theirs.written)
        assert torch.allclose(mine.vectors, theirs.vectors, atol=1e-6)
    for name, grad in wanted.items():
        assert torch.allclose(found[name], grad, atol=1e-5), name


def test_asking_twice_adds_once():
    model = trained(llama(), config()).train()
    step(model)
    before = [queue.written.clone() for queue in queues(model)]
    auxiliary_losses(model)
    assert all(torch.equal(queue.written, was) for queue, was in zip(queues(model), before))


def test_evaluation_adds_nothing():
    model = trained(llama(), config())
    step(model)
    assert all(queue.written.sum() == 0 for queue in queues(model))


def test_the_queue_is_saved_and_training_goes_on_as_if_unbroken(tmp_path):
    base = llama()
    model = trained(base, config()).train()
    for _ in range(4):
        step(model)
    model.save_pretrained(tmp_path)
    resumed = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path, is_trainable=True).train()
    for mine, theirs in zip(queues(resumed), queues(model)):
        assert torch.equal(mine.vectors, theirs.vectors)
        assert torch.equal(mine.written, theirs.written)
    assert torch.equal(step(resumed)["contrastive"], step(model)["contrastive"])


@pytest.mark.parametrize(("dim", "kept"), [(None, 20), (64, 20), (8, 8)])
def test_the_projection_is_the_same_one_everywhere_and_keeps_angles(dim, kept):
    queue = ExpertQueue(20, num_experts=2, size=3, dim=dim)
    outputs = torch.randn(2, 2, 20, generator=torch.Generator().manual_seed(0))
    short = queue.shorten(outputs)
    assert short.shape == (2, 2, kept)
    assert torch.equal(short, ExpertQueue(20, 2, 3, dim).shorten(outputs))
    if kept == 20:
        assert torch.equal(short, outputs)


def test_random_projections_keep_angles_about_as_they_are():
    pairs = torch.randn(2, 50, 512, generator=torch.Generator().manual_seed(1))
    pairs[1] += pairs[0]
    before = torch.cosine_similarity(*pairs, dim=-1)
    after = torch.cosine_similarity(*ExpertQueue(512, 2, 3, 128).shorten(pairs), dim=-1)
    assert (before - after).abs().mean() < 0.1
