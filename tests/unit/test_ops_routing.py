"""Routing functions against hand-worked numbers, their written-out formulas and transformers' Mixtral."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy, normalize
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from workbench.errors import ConfigError
from workbench.ops.routing import (
    balance_loss,
    expert_cosines,
    in_batch_contrastive,
    queue_contrastive,
    router_entropy,
    top_k_gate,
    z_loss,
)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_gate_by_hand():
    weights, selected = top_k_gate(torch.tensor([[0.0, math.log(3), math.log(2)]]), 2)
    assert selected.tolist() == [[1, 2]]
    assert torch.allclose(weights, torch.tensor([[0.6, 0.4]]))


@settings(max_examples=30, deadline=None)
@given(experts=st.integers(1, 6), data=st.data())
def test_the_gate_is_the_renormalised_softmax(experts, data):
    chosen = data.draw(st.integers(1, experts))
    logits = random(5, experts, seed=data.draw(st.integers(0, 99)))
    weights, selected = top_k_gate(logits, chosen)
    best = logits.softmax(-1).gather(1, selected)
    assert torch.allclose(weights, best / best.sum(-1, keepdim=True), atol=1e-6)
    assert (best[:, :-1] >= best[:, 1:]).all()


@pytest.mark.parametrize("chosen", [0, 4])
def test_the_gate_refuses_more_experts_than_there_are(chosen):
    with pytest.raises(ConfigError, match=rf"num_experts_per_tok is {chosen} and there are 3 experts.*Choose"):
        top_k_gate(torch.zeros(1, 3), chosen)


def test_entropy_is_log_e_for_an_even_router_and_0_for_a_sure_one():
    assert torch.allclose(router_entropy(torch.tensor([[1.0, 1, 1], [50, 0, 0]])), torch.tensor([math.log(3), 0.0]))


def test_balance_by_hand():
    logits = torch.tensor([[math.log(3), 0.0], [math.log(3), 0.0]])
    # Both rows take expert 0 with probability 3/4: 2 * (1 * 3/4 + 0 * 1/4).
    assert balance_loss(logits, torch.tensor([[0], [0]])).item() == pytest.approx(1.5)
    assert balance_loss(torch.zeros(2, 2), torch.tensor([[0], [1]])).item() == pytest.approx(1.0)


@pytest.mark.parametrize("masked", [False, True])
def test_balance_is_that_of_mixtral(masked):
    layers = tuple(random(6, 4, seed=seed) for seed in range(3))
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]]) if masked else None
    flat = mask.flatten() if masked else None
    for logits in layers:
        theirs = load_balancing_loss_func((logits,), 4, 2, mask)
        assert torch.allclose(balance_loss(logits, top_k_gate(logits, 2)[1], flat), theirs)
    pooled = torch.cat(layers)
    ours = balance_loss(pooled, top_k_gate(pooled, 2)[1], flat.repeat(3) if masked else None)
    assert torch.allclose(ours, load_balancing_loss_func(layers, 4, 2, mask))
    stacked = torch.stack(layers)
    each = [balance_loss(logits, top_k_gate(logits, 2)[1], flat) for logits in layers]
    assert torch.allclose(balance_loss(stacked, stacked.topk(2).indices, flat), torch.stack(each))


def test_z_loss_by_hand_and_without_padding():
    logits = torch.tensor([[0.0, 0.0], [9.0, 9.0]])
    assert z_loss(logits, torch.tensor([True, False])).item() == pytest.approx(math.log(2) ** 2)
    assert z_loss(logits).item() == pytest.approx((math.log(2) ** 2 + (9 + math.log(2)) ** 2) / 2)
    assert z_loss(logits, torch.zeros(2)).item() == 0


def test_cosines_are_those_of_the_outputs_that_are_never_formed():
    hidden, up = random(5, 3, 4), random(7, 12, seed=1)
    outputs = torch.einsum("ner,der->ned", hidden, up.view(7, 3, 4))
    outputs[2, 1] = hidden[2, 1] = 0
    cosines, present = expert_cosines(hidden, up)
    units = normalize(outputs, dim=-1)
    assert torch.allclose(cosines, units @ units.mT, atol=1e-5)
    assert present.logical_not().nonzero().tolist() == [[2, 1]]


def test_in_batch_contrast_is_its_written_out_cross_entropy():
    hidden, up, tau = random(4, 4, 3), random(6, 12, seed=1), 0.3
    selected = torch.tensor([[0, 1], [2, 1], [3, 0], [1, 3]])
    cosines, present = expert_cosines(hidden, up)
    units = normalize(torch.einsum("ner,der->ned", hidden, up.view(6, 4, 3)), dim=-1)
    counted, losses = torch.tensor([1, 1, 0, 1]), []
    for row in (0, 1, 3):
        for q, positive in (selected[row].tolist(), selected[row].tolist()[::-1]):
            order = [positive] + [e for e in range(4) if e not in (q, positive)]
            logits = (units[row, order] @ units[row, q]) / tau
            # With K = 2 there is one positive: the loss is the cross-entropy of picking it among all others.
            losses.append(cross_entropy(logits[None], torch.tensor([0])))
    ours = in_batch_contrastive(cosines, selected, present, tau, counted)
    assert torch.allclose(ours, torch.stack(losses).mean(), atol=1e-5)


def test_queue_contrast_is_its_written_out_cross_entropy():
    queries, keys, tau = random(2, 3, 4), normalize(random(3, 5, 4, seed=1), dim=-1), 0.5
    filled = torch.tensor([1, 1, 1])  # one key an expert: the loss is the cross-entropy of finding one's own
    logits = normalize(queries, dim=-1) @ keys[:, 0].mT / tau
    theirs = cross_entropy(logits.flatten(0, 1), torch.arange(3).repeat(2))
    assert torch.allclose(queue_contrastive(queries, keys, filled, tau), theirs)


def test_queue_contrast_over_several_keys():
    queries, keys, tau = random(1, 2, 4), normalize(random(2, 3, 4, seed=1), dim=-1), 0.5
    filled, units = torch.tensor([2, 3]), normalize(queries[0], dim=-1)
    real = [keys[0, :2], keys[1, :3]]
    for_all = [torch.cat([torch.exp(part @ unit / tau) for part in real]).sum() for unit in units]
    own = [torch.exp(real[e] @ units[e] / tau).sum() for e in range(2)]
    theirs = -sum(torch.log(own[e] / for_all[e]) for e in range(2)) / 2
    assert torch.allclose(queue_contrastive(queries, keys, filled, tau), theirs)
    both = queue_contrastive(queries.expand(2, 1, 2, 4), keys.expand(2, 2, 3, 4), filled.expand(2, 2), tau)
    assert torch.allclose(both, theirs.expand(2))


def test_zero_outputs_and_short_queues_are_skipped():
    keys = normalize(random(2, 3, 4, seed=1), dim=-1)
    queries = random(2, 2, 4)
    queries[0] = 0
    queries.requires_grad_(True)
    full, alone = torch.tensor([3, 3]), queries[1:].detach()
    loss = queue_contrastive(queries, keys, full, 0.1, minimum=2)
    assert torch.allclose(loss, queue_contrastive(alone, keys, full, 0.1))
    loss.backward()
    assert queries.grad[0].abs().sum() == 0
    assert queries.grad[1].abs().sum() > 0
    for filled in ([1, 3], [0, 0], [1, 1]):
        assert queue_contrastive(queries, keys, torch.tensor(filled), 0.1, minimum=2).item() == 0


def test_a_fresh_lora_has_no_contrast_and_no_nan():
    hidden, up = random(3, 3, 2).requires_grad_(), torch.zeros(5, 6, requires_grad=True)
    cosines, present = expert_cosines(hidden, up)
    loss = in_batch_contrastive(cosines, torch.tensor([[0, 1]] * 3), present, 0.1)
    loss.backward()
    assert loss.item() == 0
    assert not present.any()
    assert hidden.grad.isfinite().all()
    assert up.grad.isfinite().all()
