"""What if an expert were forced, or muted: the change is what it says, and it is gone afterwards."""

import pytest
import torch
from pico_mixtures import NATIVE, mixture, xlora
from test_routing_capture import IDS, hooks, lora_moe

from workbench.errors import ConfigError
from workbench.routing.capture import capture_routing
from workbench.routing.intervene import steer_routing


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.mark.parametrize("kind", [*NATIVE, "LoraMoe"])
def test_a_forced_expert_takes_all_and_a_muted_one_nothing(kind) -> None:
    model = lora_moe() if kind == "LoraMoe" else mixture(kind)
    before, count = logits(model), hooks(model)
    with capture_routing(model) as free:
        logits(model)
    with steer_routing(model, force=2), capture_routing(model) as forced:
        assert not torch.allclose(logits(model), before)
    with steer_routing(model, mute=2), capture_routing(model) as muted:
        assert not torch.allclose(logits(model), before)
    for name in forced.routers:
        one, other = forced.routers[name], muted.routers[name]
        assert (one.selected_experts[:, 0] == 2).all()
        assert all(len(set(row)) == len(row) for row in one.selected_experts.tolist() + other.selected_experts.tolist())
        assert (one.routing_weights[:, 1:] == 0).all()
        assert (other.selected_experts != 2).all()
    first = next(iter(free.routers))  # later routers read what the change before them made
    for trace in (forced, muted):
        total = trace.routers[first].routing_weights.sum(1)
        torch.testing.assert_close(total, free.routers[first].routing_weights.sum(1))
    untouched = (free.routers[first].selected_experts != 2).all(1)
    assert torch.equal(
        muted.routers[first].selected_experts[untouched], free.routers[first].selected_experts[untouched]
    )
    assert torch.equal(logits(model), before)
    assert hooks(model) == count


def test_one_layer_can_be_changed_alone() -> None:
    model = mixture()
    with steer_routing(model, force=0, layers=[1]), capture_routing(model) as trace:
        logits(model)
    assert (trace.routers["layers.1.mlp.gate"].selected_experts[:, 0] == 0).all()
    assert not (trace.routers["layers.0.mlp.gate"].selected_experts[:, 0] == 0).all()
    with pytest.raises(ConfigError, match=r"layers=\[7\]: no router is there"):
        steer_routing(model, force=0, layers=[7]).__enter__()


def test_xlora_can_be_steered(tmp_path) -> None:
    model = xlora(tmp_path)
    for change, favoured in (({"mute": 0}, 1), ({"force": 0}, 0)):
        with steer_routing(model, **change):
            logits(model)
        scalings = model.internal_xlora_scalings
        torch.testing.assert_close(scalings[..., favoured], torch.ones_like(scalings[..., 0]))
        assert (scalings[..., 1 - favoured] == 0).all()


def test_wrong_questions_are_refused() -> None:
    for both in ({}, {"force": 0, "mute": 1}):
        with pytest.raises(ConfigError, match=r"give exactly one of them"):
            steer_routing(mixture(), **both).__enter__()
    model = mixture()
    message = r"expert 3 of the router .*: it has 3 experts"
    with pytest.raises(ConfigError, match=message), steer_routing(model, force=3):
        logits(model)
