"""Losses over processes: the average of the parts, in value and in gradient, is the loss of all rows together."""

import threading

import pytest
import torch

from workbench.ops.processes import average, gather, gather_objects
from workbench.ops.routing import balance_loss, in_batch_contrastive, queue_contrastive, z_loss

N, E, K = 7, 4, 2
CUTS = [0, 2, 7]  # two processes with unequally many rows


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def side_by_side(function):
    """Call `function(process, across)` for both processes, with an average that they wait for; return both results."""
    held, results, barrier = [torch.empty(0)] * 2, [torch.empty(0)] * 2, threading.Barrier(2, timeout=30)

    def work(process):
        def across(values):
            held[process] = values.detach()
            barrier.wait()
            mean = (held[0] + held[1]) / 2
            barrier.wait()
            return mean

        results[process] = function(process, across)

    threads = [threading.Thread(target=work, args=(process,)) for process in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def part(tensor, process):
    return None if tensor is None else tensor[CUTS[process] : CUTS[process + 1]]


SELECTED = random(N, E, seed=1).topk(K).indices
PRESENT = random(N, E, seed=2) > -1.5
KEYS, FILLED = torch.nn.functional.normalize(random(E, 5, 3, seed=3), dim=-1), torch.tensor([5, 3, 0, 5])
LOSSES = {
    "balance": ((N, E), lambda x, cut, seen, across: balance_loss(x, cut(SELECTED), seen, across)),
    "z": ((N, E), lambda x, cut, seen, across: z_loss(x, seen, across)),
    "in_batch": (
        (N, E, E),
        lambda x, cut, seen, across: in_batch_contrastive(x, cut(SELECTED), cut(PRESENT), 0.5, seen, across),
    ),
    "queue": ((N, E, 3), lambda x, cut, seen, across: queue_contrastive(x, KEYS, FILLED, 0.5, 2, across)),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("counted", [None, torch.tensor([1, 0, 1, 1, 0, 1, 1]), torch.tensor([0, 0, 1, 1, 1, 0, 1])])
def test_parts_average_to_the_whole(name, counted):
    shape, loss = LOSSES[name]
    whole = random(*shape).requires_grad_()
    wanted = loss(whole, lambda tensor: tensor, counted, lambda values: values)
    wanted.backward()
    assert wanted.item() > 0
    split = whole.detach().clone().requires_grad_()
    parts = side_by_side(
        lambda process, across: loss(
            part(split, process), lambda tensor: part(tensor, process), part(counted, process), across
        )
    )
    mean = (parts[0] + parts[1]) / 2
    mean.backward()
    assert torch.allclose(mean, wanted, atol=1e-6)
    assert torch.allclose(split.grad, whole.grad, atol=1e-6)
    assert whole.grad.abs().sum() > 0


def test_one_process_is_given_back_what_it_gave():
    rows = random(2, 3).requires_grad_()
    assert torch.equal(average(rows), rows)
    assert torch.equal(gather(rows), rows)
    assert not average(rows).requires_grad
    assert not gather(rows).requires_grad
    assert gather_objects({"a": 1}) == [{"a": 1}]
