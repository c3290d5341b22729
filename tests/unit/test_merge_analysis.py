"""What is told before a merge: hand-worked angles and conflicts, and a barrier whose height is known."""

import math

import plotly.graph_objects as go
import pytest
import torch
from pico_language import byte_tokenizer, pico

from workbench.errors import ConfigError, DataError
from workbench.merging.analysis import OUTSIDE, LossPath, delta_stats, loss_path
from workbench.merging.live import LiveMerge
from workbench.merging.recipe import MergeRecipe
from workbench.records import Example
from workbench.views.merge_analysis import MergeAnalysis, example_losses

NAMES = ["x/general", "x/medical"]


def filled(*values: float):
    """A model in which the weights of both layers are these values, over and over, and all other weights are 1."""
    model = pico(context=256)
    for name, parameter in model.named_parameters():
        numbers = torch.tensor(values if ".layers." in name else (1,), dtype=torch.float32)
        parameter.data = numbers.repeat(parameter.numel() // len(numbers)).view_as(parameter)
    return model


def live_merge(*models, base=None) -> LiveMerge:
    recipe = MergeRecipe(parents=[*NAMES, "x/third"][: len(models)])
    return LiveMerge(recipe, models=models, base=base, tokenizer=byte_tokenizer(chat=True))


def examples(count: int = 3) -> list[Example]:
    return [Example(id=str(i), skill="s", query=f"q{'u' * i}", answer=f"a{i}") for i in range(count)]


def test_task_vectors_by_hand() -> None:
    # d_1 = (1, 1, 0, 0) and d_2 = (1, -1, 2, 0): cosine 0, |d_1| / |base| = sqrt(2) / 2, one conflict in two.
    live = live_merge(filled(2, 2, 1, 1), filled(2, 0, 3, 1), base=filled(1, 1, 1, 1))
    outside, first, second = delta_stats(live)
    assert (outside.part, first.part, second.part) == (OUTSIDE, "layer 1", "layer 2")
    assert first.norms == pytest.approx((math.sqrt(2) / 2, math.sqrt(6) / 2))
    assert first.cosines[0][1] == pytest.approx(0, abs=1e-9)
    assert first.cosines[1][1] == pytest.approx(1)
    assert first.conflict == 0.5
    assert outside.norms == (0.0, 0.0)
    assert math.isnan(outside.conflict)
    assert math.isnan(outside.cosines[0][1])
    assert sum(part.size for part in (outside, first, second)) == sum(p.numel() for p in live.model.parameters())


def test_without_a_base_the_parents_themselves_are_compared() -> None:
    outside, first, _ = delta_stats(live_merge(filled(1, 2, 2, 0), filled(1, -2, 2, 0), filled(2, 4, 4, 0)))
    assert first.norms == pytest.approx((0.0, 4 / 3, 1.0))
    assert first.cosines[0] == pytest.approx((1.0, 1 / 9, 1.0))
    assert first.conflict == pytest.approx(1 / 3)
    assert outside.cosines[0][1] == pytest.approx(1.0)


def test_a_barrier_by_hand() -> None:
    live = live_merge(filled(0.0), filled(1.0))
    live.apply(live.recipe.with_ratio(0.25))
    before = live.recipe

    def losses(model) -> list[float]:
        t = model.model.layers[0].mlp.up_proj.weight[0, 0].item()
        return [t * (1 - t) + t, t * (1 - t) + 3 * t]

    path = loss_path(live, losses, 5)
    assert path.ratios == (0.0, 0.25, 0.5, 0.75, 1.0)
    assert path.losses == pytest.approx((0.0, 0.6875, 1.25, 1.6875, 2.0))
    assert path.heights == pytest.approx((0.0, 0.1875, 0.25, 0.1875, 0.0))
    assert path.barrier == pytest.approx(0.25)
    assert path.errors[2] == pytest.approx(1.96 * 0.5)
    assert path.n == 2
    assert live.recipe == before


def test_a_path_that_falls_has_no_barrier() -> None:
    path = LossPath(ratios=(0.0, 0.5, 1.0), losses=(2.0, 0.5, 1.0), errors=(0.0,) * 3, n=1)
    assert path.barrier == 0.0


def test_wrong_paths() -> None:
    live = live_merge(filled(0.0), filled(1.0))
    for ratios in (2, [0.0, 1.0], [0.1, 0.5, 1.0], [0.0, 0.7, 0.6, 1.0]):
        with pytest.raises(ConfigError, match="at least 3 rising shares"):
            loss_path(live, lambda _: [0.0], ratios)
    with pytest.raises(ConfigError, match="returned no number"):
        loss_path(live, lambda _: [])
    with pytest.raises(ConfigError, match="3 parents; a path runs between two"):
        loss_path(live_merge(filled(0.0), filled(1.0), filled(2.0)), lambda _: [0.0])
    with pytest.raises(ZeroDivisionError):
        loss_path(live, lambda _: [1 / 0])
    assert live.recipe.weights == (0.5, 0.5)


def test_losses_are_those_of_the_answers() -> None:
    model, tokenizer = pico(context=256), byte_tokenizer(chat=True)
    found = example_losses(model, tokenizer, examples())(model)
    prompt = tokenizer("<user>q<answer>")["input_ids"]
    answer = [*tokenizer("a0")["input_ids"], tokenizer.eos_token_id]
    ids = torch.tensor([[*prompt, *answer]])
    with torch.no_grad():
        scores = model(ids).logits.log_softmax(-1)[0, len(prompt) - 1 : -1]
    assert found[0] == pytest.approx(-scores.gather(1, torch.tensor(answer)[:, None]).mean().item(), rel=1e-4)
    assert len(found) == 3


def test_the_view_shows_numbers_and_a_table() -> None:
    live = live_merge(pico(seed=0, context=256), pico(seed=1, context=256), base=pico(seed=2, context=256))
    view = MergeAnalysis(live, examples(), ratios=3)
    assert isinstance(view.figure, go.Figure)
    assert len(view.figure.data) == 2 + 2 + 2
    bundle = view._repr_mimebundle_()
    for part in ("layer 2", "cosine general, medical", "sign conflict", "n = 3", "barrier", "distance from the base"):
        assert part in bundle["text/html"]
    assert "application/vnd.plotly.v1+json" in bundle
    assert view.path is not None
    assert view.path.barrier >= 0


def test_the_view_without_examples_and_without_a_base() -> None:
    view = MergeAnalysis(live_merge(pico(seed=0), pico(seed=1), pico(seed=2)))
    assert view.path is None
    assert "distance from general: third" in view.table
    assert "distance from general: general" not in view.table
    assert [trace.name for trace in view.figure.data][-1] == "sign conflict"


def test_wrong_examples() -> None:
    live = live_merge(pico(seed=0), pico(seed=1))
    with pytest.raises(DataError, match="empty"):
        MergeAnalysis(live, [])
