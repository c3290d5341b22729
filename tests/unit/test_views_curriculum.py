"""Curriculum views without a browser: borders move stages, pictures follow training, nothing unescaped gets out."""

import base64
import math
import re
from types import SimpleNamespace

import pytest
import torch

from workbench.curriculum.curriculum import Curriculum
from workbench.curriculum.memory import LongTermMemory, ShortTermMemory
from workbench.curriculum.stage import Stage
from workbench.errors import ConfigError
from workbench.records import Example, Score, Scores
from workbench.views.curriculum_borders import StageBorders
from workbench.views.curriculum_pictures import matrix_panel, memory_tables, ribbon_panel
from workbench.views.curriculum_view import CurriculumView

NAMES = ("general", "broad", "specialist")


def rows(name: str, n: int = 12) -> list[Example]:
    return [Example(id=f"{name}{i}", skill=name, query="<script>q", answer=f"<b>{i}") for i in range(n)]


def trained() -> Curriculum:
    stages = [Stage(name=name, data=rows(name)) for name in NAMES]
    made = Curriculum(stages, short_term=ShortTermMemory(5), long_term=LongTermMemory(9), consistency_coef=0)
    step = 0
    for plan in made:
        for start in range(0, len(plan.examples), 4):
            step += 1
            ids = tuple(e.id for e in plan.examples[start : start + 4])
            inputs = {"attention_mask": torch.ones(len(ids), 3)}
            losses = torch.full((len(ids),), 3.0 / step)
            made.on_batch(SimpleNamespace(stage=plan.name, step=step, ids=ids, losses=losses, inputs=inputs))
    return made


def scores(value: float) -> Scores:
    return Scores(tasks={"ner": Score(value=value, low=value - 0.1, high=value + 0.1, n=40, metric="m", group="g")})


def test_borders_part_the_examples_and_move() -> None:
    data = [Example(id=str(i), skill="s", query=f"q{i}", answer="a") for i in range(30)]
    view = StageBorders(data, [float(i) for i in range(30)], label="loss")
    assert [len(stage.examples) for stage in view.stages] == [10, 10, 10]
    assert sum(view.histogram.counts) == 30
    view.histogram.move([2.5, 27.5])
    assert [len(stage.examples) for stage in view.stages] == [3, 25, 2]
    assert "stage 3: 2 examples" in view._below.value
    view.histogram.move([2.4, 2.6])
    assert "no stage empty" in view._below.value
    with pytest.raises(ConfigError, match="leave no stage empty"):
        _ = view.stages


def test_the_fallback_says_borders_and_escapes_examples() -> None:
    view = StageBorders(rows("a", 6), [0, 1, 2, 3, 4, math.nan], num_stages=2, names=["<i>easy", "hard"])
    text = view._repr_mimebundle_()["text/html"]
    assert "borders at 2" in text
    assert "n = 5 examples; 1 too long" in text
    assert "<script>" not in text
    assert "<i>" not in text
    assert "&lt;script&gt;q" in text
    picture = base64.b64decode(re.findall(r'base64,([^"]+)"', text)[0]).decode()
    assert picture.count("<title>") == 30
    # 5 values from 0 to 4: bars of one example, of full height, and one border at 2, in the middle.
    assert re.findall(r'height="([\d.]+)" fill="#2b7bba"[^>]*><title>1 examples', picture) == ["150.0"] * 5
    assert 'x1="332.0" x2="332.0"' in picture


@pytest.mark.parametrize(
    ("values", "changes", "message"),
    [
        ([1.0], {}, "6 examples and 1 values"),
        ([1.0] * 6, {}, "1 different values"),
        ([1.0, 2, 3, 4, 5, 6], {"num_stages": 1}, "at least two stages"),
        ([1.0, 2, 3, 4, 5, 6], {"names": ["a"]}, "3, 1 names"),
    ],
)
def test_bad_borders(values, changes, message) -> None:
    with pytest.raises(ConfigError, match=message):
        StageBorders(rows("a", 6), values, **changes)


def test_the_ribbon_shows_stages_mixture_and_losses() -> None:
    panel = ribbon_panel(trained())
    assert all(f"{i + 1} {name}" in panel.picture for i, name in enumerate(NAMES))
    assert panel.picture.count("<polyline") == 3
    first, last = panel.rows[0], panel.rows[-1]
    assert first[1] == "general"
    assert first[-3:] == ["100%", "0%", "0%"]
    assert last[1] == "specialist"
    assert any(row[-1] != "0%" for row in panel.rows)
    assert "replay ratio 0.2" in panel.about
    assert "How to read this" in panel.live()
    assert "<img" in panel.still()


def test_a_batch_is_as_wide_as_any_other_in_the_ribbon() -> None:
    made = trained()
    steps = {"general": 61, "broad": 20, "specialist": 41}
    row = made.history[0]
    made.history = [row | {"stage": stage, "step": i} for stage, n in steps.items() for i in range(n)]
    panel = ribbon_panel(made)
    assert [row[1] for row in panel.rows] == ["general"] * 21 + ["broad"] * 7 + ["specialist"] * 14
    ribbon = re.findall(r'<rect x="([\d.]+)" y="258.0" width="([\d.]+)"', panel.picture)
    assert [float(width) for _, width in ribbon] == pytest.approx([560 * n / 122 for n in steps.values()], abs=0.1)
    assert float(ribbon[1][0]) == pytest.approx(52 + 560 * 61 / 122, abs=0.1)


def test_the_matrix_fills_in() -> None:
    panel = matrix_panel({"before": scores(0.2), "general": scores(0.6)}, ["before", *NAMES])
    assert panel.picture.count("<rect") == 5  # the page and four columns, of which two hold numbers
    assert "0.20" in panel.picture
    assert "0 = before, 1 = after general, 2 = after broad" in panel.about
    assert panel.rows[1] == ["ner", "general", "0.600", "0.500 to 0.700", 40]


def test_memories_are_shown_escaped() -> None:
    text = memory_tables(trained())
    assert "5 of 5 places taken" in text
    assert "9 of 9 places taken" in text
    assert "<script>" not in text
    assert memory_tables(Curriculum([Stage(name="a", data=rows("a"))])) == ""


def test_the_view_follows_a_run() -> None:
    made = trained()
    history, made.history = made.history, []
    view = CurriculumView(made, measure=lambda model: scores(model), before=scores(0.1))
    assert "Nothing was trained yet" in view.children[0].value
    made.history = history
    view._drawn = 0.0
    view.update("whatever a callback gives")
    assert "Loss, mixture and stages" in view.children[0].value
    assert view.evaluate(0.7)["ner"].value == 0.7
    assert "0.70" in view.children[1].value
    text = view._repr_mimebundle_()["text/html"]
    assert text.count("<img") == 2
    assert "Long-term memory" in text
    assert CurriculumView(made).evaluate(0.7) == {}
