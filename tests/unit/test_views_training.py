"""The picture of a run: what it draws, what it escapes, what survives saving, and the button."""

import json
import xml.etree.ElementTree as ElementTree

import pytest

from workbench.errors import ConfigError
from workbench.training import Run, TrainSettings
from workbench.views.controls import StyleSheet
from workbench.views.curve_picture import curve_pictures
from workbench.views.training_view import TrainingView, charts, table

ROWS = [
    {
        "stage": "<b>easy", "step": step, "loss": 4.0 / step, "learning_rate": 0.1, "balance": 0.01, "mean_rank": 3.0,
        "ranks": {"q": 3, "v": 3 - step}, "routing_entropy": 0.9, "expert_load": {"r1": [0.2, 0.8], "r2": [0.4, 0.6]},
    }
    for step in (1, 2)
] + [{"stage": "<b>easy", "step": 2, "eval_loss": 2.5, "eval_qa": 0.5}]  # fmt: skip


def a_run(tmp_path, rows=()):
    run = Run(None, None, tmp_path, TrainSettings(seed=3), steps=10)
    run.history.extend(rows)
    return run


def test_charts_hold_what_the_rows_have_and_nothing_else():
    found = charts(ROWS)
    assert found["loss (nats per answer token)"] == {"training": [(1, 4.0), (2, 2.0)], "validation": [(2, 2.5)]}
    assert found["added losses"] == {"balance": [(1, 0.01), (2, 0.01)]}
    assert found["measured while training"] == {"qa": [(2, 0.5)]}
    assert found["AdaLoRA: rank by layer"]["v"] == [(1, 2), (2, 1)]
    assert found["expert load (share)"]["E0"] == [(1, pytest.approx(0.3)), (2, pytest.approx(0.3))]
    assert list(charts([{"stage": "", "step": 1, "loss": 1.0}])) == ["loss (nats per answer token)"]


def test_the_picture_is_sound_svg_also_of_one_point_a_flat_line_and_a_broken_number():
    lines = {"one": [(1, 2.0)], "flat <x>": [(1, 0.0), (2, 0.0)], "broken": [(1, float("nan"))]}
    svg = curve_pictures({"a & b": lines, "empty": {"none": [(1, float("inf"))]}})
    root = ElementTree.fromstring(svg)
    assert "a & b" in root.get("aria-label")
    assert len(root.findall(".//{http://www.w3.org/2000/svg}polyline")) == 3
    assert "nan" not in svg.replace("broken", "")


def test_it_follows_a_run_and_its_button_stops_it(tmp_path):
    run = a_run(tmp_path)
    view = TrainingView(run)
    assert "No step was logged yet" in view._picture.value
    run.history.extend(ROWS)
    view._drawn = 0.0
    run._tell()
    assert "<svg" in view._picture.value
    assert "running; step 2 of 10; training 2; validation 2.5; stage &lt;b&gt;easy; seed 3" in view._status.value
    view._button.click()
    assert run.stopping.is_set()
    run.finish("failed", RuntimeError("<script>"))
    assert "RuntimeError: &lt;script&gt;" in view._status.value
    assert view._button.disabled


def test_it_redraws_seldom_while_a_run_goes_on(tmp_path):
    run = a_run(tmp_path)
    view = TrainingView(run)
    run.history.extend(ROWS)
    run._tell()
    assert "<svg" not in view._picture.value


def test_it_brings_its_style_sheet(tmp_path):
    (tmp_path / "run.json").write_text("{}")
    sheets = [child for child in TrainingView(tmp_path).children if isinstance(child, StyleSheet)]
    assert [".wb-view" in sheet._css for sheet in sheets] == [True]


def test_a_folder_of_another_process_is_read_again(tmp_path):
    with pytest.raises(ConfigError, match="holds no run; pass the output_dir of train"):
        TrainingView(tmp_path)
    (tmp_path / "run.json").write_text("{}")
    view = TrainingView(str(tmp_path))
    assert view.history() == []
    (tmp_path / "history.jsonl").write_text(json.dumps(ROWS[0]) + "\n" + json.dumps(ROWS[1])[:20])
    view.refresh()
    assert view.history() == ROWS[:1]
    assert view._button not in view.children


def test_a_saved_notebook_keeps_picture_numbers_and_the_reading(tmp_path):
    saved = TrainingView(a_run(tmp_path, ROWS))._repr_mimebundle_()["text/html"]
    assert "data:image/svg+xml;base64," in saved
    assert "How to read this" in saved
    assert "<td>0.01</td>" in saved
    assert "<b>easy" not in saved


def test_the_table_is_thinned_evenly():
    rows = [{"stage": "", "step": step, "loss": 1.0, "ranks": {}} for step in range(101)]
    text = table(rows)
    assert "20 of 101 rows" in text
    assert text.count("<tr>") == 21
    assert "<td>100</td>" in text
    assert "ranks" not in text
