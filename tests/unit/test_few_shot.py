"""The few-shot protocol, on pico models, and its figures by hand."""

import json

import pandas as pd
import pytest
from pico_language import byte_tokenizer, pico

from workbench.errors import ConfigError, DataError
from workbench.fanout import CellError
from workbench.merging.recipe import MergeRecipe
from workbench.records import Example
from workbench.search.few_shot import GENERATION, draw_shots, few_shot, shots_difference, shots_table


def rows(task: str, count: int = 6) -> list[Example]:
    made = [
        Example(id=f"{task}/{i}", skill=task, query=f"{task} {i}?", answer=f"yes {i}", split=split)
        for i, split in enumerate(["train"] * count + ["validation"] * 3 + ["test"] * 2)
    ]
    return made


TASKS = {"note": rows("note"), "letter": rows("letter")}
KEEP = {"manners": rows("manners")}
COMMON = {
    "keep": KEEP, "metrics": ("rouge_l", "exact_match"), "steps": {2: 1, 4: 2}, "batch_size": 2, "device": "cpu",
    "progress": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def parents(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parents")
    for seed, name in enumerate(("one", "two")):
        pico(seed=seed, context=128).save_pretrained(folder / name)
        byte_tokenizer(chat=True).save_pretrained(folder / name)
    one, two = str(folder / "one"), str(folder / "two")
    return {"one": one, "both": MergeRecipe(parents=[one, two], method="linear", weights=[0.5, 0.5])}


@pytest.fixture(scope="module")
def found(parents, tmp_path_factory):
    store = tmp_path_factory.mktemp("store") / "cells"
    return few_shot(parents, TASKS, ks=(0, 2), seeds=2, store=store, **COMMON), store


def test_every_cell_is_there_once_with_the_same_budget_for_all_parents(found):
    table, _ = found
    assert len(table) == 2 * 2 * (1 + 2), "parents x tasks x (k = 0 once, k = 2 with two seeds)"
    assert not table.duplicated(["parent", "task", "k", "seed"]).any()
    assert table.loc[table["k"] == 0, ["seed", "steps", "lr", "tokens"]].eq(0).all(axis=None)
    assert table.groupby("k")["steps"].unique().map(list).to_dict() == {0: [0], 2: [1]}
    read = table.groupby(["task", "k", "seed"])["tokens"].nunique()
    assert (read == 1).all(), "parents must read the same shots"
    assert {"rouge_l", "exact_match", "manners"} <= {*table.columns}
    assert table[["rouge_l", "exact_match", "manners"]].stack().between(0, 1).all()


@pytest.fixture
def asked(monkeypatch):
    """The cells that would be run, each list one call; they get a row that says nothing."""
    calls = []

    def stand_in(function, cells, *, on_result, **_):
        calls.append(cells)
        for place in range(len(cells)):
            on_result(place, {"parent": cells[place].parent})

    monkeypatch.setattr("workbench.search.few_shot.run_cells", stand_in)
    return calls


def test_called_again_it_computes_what_is_missing_and_nothing_else(found, parents, asked):
    table, store = found
    again = few_shot(parents, TASKS, ks=(0, 2), seeds=2, store=store, **COMMON)
    pd.testing.assert_frame_equal(again, table)
    assert asked.pop() == []
    few_shot(parents, TASKS, ks=(0, 2), seeds=3, store=store, **COMMON)
    assert [cell.seed for cell in asked.pop()] == [2] * 4
    few_shot(parents, TASKS, ks=(0, 2), seeds=2, store=store, **COMMON | {"lr": {("one", 2): 1e-3, ("both", 2): 3e-3}})
    assert {(cell.parent, cell.k, cell.lr) for cell in asked.pop()} == {("one", 2, 1e-3)}


def test_a_parent_made_anew_under_its_name_is_measured_anew(tmp_path, asked):
    arguments = {"tasks": {"note": TASKS["note"]}, "ks": [0], "store": tmp_path / "cells", **COMMON}
    for seed in (0, 0, 1):
        pico(seed=seed, context=128).save_pretrained(tmp_path / "model")
        few_shot({"x": tmp_path / "model"}, **arguments)
    assert [len(cells) for cells in asked] == [1, 0, 1]
    few_shot({"x": tmp_path / "model"}, **arguments | {"tasks": {"note": TASKS["note"][:-3]}})
    assert len(asked[-1]) == 1, "other examples, another cell"


def test_one_cell_is_what_train_and_evaluate_give_by_hand(found, parents, tmp_path):
    import workbench as wb
    from workbench.search.few_shot import LoraConfig

    table, _ = found
    model, tokenizer = wb.load_model(parents["one"], device="cpu")
    shots = draw_shots([row for row in TASKS["note"] if row.split == "train"], 2, 1)
    adapter = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")
    run = wb.train(
        model, tokenizer, shots, adapter=adapter, output_dir=tmp_path / "run", steps=1, batch_size=2, lr=3e-3, seed=1,
        progress=False,
    )  # fmt: skip
    held = [row for row in TASKS["note"] if row.split == "validation"]
    task = wb.evaluation.Task(name="note", examples=held, metric="rouge_l")
    wanted = wb.evaluate(run.model, tokenizer, [task], progress=False)["note"].value
    row = table.query("parent == 'one' and task == 'note' and k == 2 and seed == 1").iloc[0]
    assert row["rouge_l"] == wanted
    assert row["tokens"] == run.history[-1]["tokens"]


def test_smaller_draws_are_part_of_larger_ones_and_seeds_differ():
    many = rows("note", 40)[:40]
    small, large = (draw_shots(many, k, 3) for k in (8, 32))
    assert small == large[:8]
    assert len({row.id for row in large}) == 32
    assert draw_shots(many, 8, 4) != small


def test_the_generation_tasks_are_the_classrooms():
    assert GENERATION == ("note_section", "full_note", "impression", "discharge_summary", "short_question")


def hand_table() -> pd.DataFrame:
    """Two tasks, three seeds; the mean over tasks of `a` is 0.2, 0.3, 0.4, of `b` 0.1, 0.1, 0.4."""
    values = {("a", 64): [0.2, 0.3, 0.4], ("b", 256): [0.1, 0.1, 0.4], ("b", 0): [0.05]}
    return pd.DataFrame(
        {"parent": parent, "k": k, "seed": seed, "task": task, "composite": value + shift, "instruction": 0.5}
        for (parent, k), numbers in values.items()
        for seed, value in enumerate(numbers)
        for task, shift in (("note", -0.05), ("letter", 0.05))
    )


def test_means_intervals_and_paired_differences_by_hand():
    table = shots_table(hand_table()).set_index(["parent", "k"])
    # sd 0.1, t(2) = 4.303: 0.3 +- 4.303 * 0.1 / sqrt(3)
    assert table.loc[("a", 64), ["n", "composite"]].tolist() == pytest.approx([3, 0.3])
    assert table.loc[("a", 64), "composite_high"] == pytest.approx(0.3 + 0.24843, abs=1e-4)
    assert table.loc[("b", 0), "n"] == 1
    assert table.loc[("b", 0), ["composite_low", "composite_high"]].isna().all()

    # differences 0.1, 0.2, 0.0: mean 0.1, sd 0.1
    gap = shots_difference(hand_table(), ("a", 64), ("b", 256))
    assert [float(gap.value), float(gap.low)] == pytest.approx([0.1, 0.1 - 0.24843], abs=1e-4)
    before = shots_difference(hand_table(), ("a", 64), ("b", 0))
    assert float(before.value) == pytest.approx(0.25)


def test_tables_that_cannot_be_paired_are_refused():
    table = hand_table()
    with pytest.raises(ConfigError, match="no column 'bleu'; it has parent, k, seed, task, composite"):
        shots_table(table, ["bleu"])
    with pytest.raises(ConfigError, match=r"'a' at k=16 has no row"):
        shots_difference(table, ("a", 16), ("b", 256))
    with pytest.raises(ConfigError, match=r"a task that a seed lacks \(letter, note\)"):
        shots_table(table.iloc[1:])
    with pytest.raises(ConfigError, match=r"\('a', 64\) has seeds \[1, 2\] .*, \('b', 256\) seeds \[0, 1, 2\]"):
        shots_difference(table.query("parent != 'a' or seed > 0"), ("a", 64), ("b", 256))
    with pytest.raises(ConfigError, match=r"tasks \['note'\], .*tasks \['letter', 'note'\]; pairs need the same"):
        shots_difference(table.query("parent != 'a' or task == 'note'"), ("a", 64), ("b", 256))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"ks": (0, -1)}, ConfigError, r"ks=\[0, -1\].*numbers of shots are at least 0, each once"),
        ({"ks": (2, 2)}, ConfigError, "each once"),
        ({"ks": (7,), "steps": 1}, DataError, "7 shots are asked for and 'note' has 6 training rows; ask for fewer"),
        ({"ks": (2, 3)}, ConfigError, r"steps has \[2, 4\] and nothing for 3; name each, or give one number"),
        ({"lr": {("one", 2): 1e-3}, "ks": (2,)}, ConfigError, r"nothing for \('both', 2\)"),
        ({"lr": -1.0}, ConfigError, "lr=-1.0"),
        ({"batchsize": 2}, ConfigError, "train has no argument 'batchsize'"),
        ({"seeds": 0}, ConfigError, r"seeds=\[\]: give at least one of each"),
        ({"tasks": {}}, ConfigError, r"tasks=\[\], .*give at least one of each"),
        ({"metrics": ("rouge",)}, ConfigError, "metric 'rouge' is not known"),
        ({"split": "dev"}, ConfigError, "task 'note' has no example"),
    ],
)
def test_bad_input_is_refused_before_anything_is_trained(parents, monkeypatch, arguments, error, message):
    monkeypatch.setattr("workbench.search.few_shot.run_cells", lambda *_, **__: pytest.fail("work was begun"))
    with pytest.raises(error, match=message):
        few_shot(parents, **{"tasks": TASKS, "ks": (0, 2, 4), **COMMON, **arguments})


def test_a_cell_that_fails_is_named_and_earlier_rows_stay(parents, tmp_path):
    long = [*rows("note"), Example(id="long", skill="note", query="x" * 200, answer="y", split="validation")]
    arguments = {"ks": [0], **COMMON, "store": tmp_path / "cells"}
    with pytest.raises(CellError, match=r"task='bad', k=0, seed=0.*context holds 128"):
        few_shot({"one": parents["one"]}, {"good": rows("note"), "bad": long}, **arguments)
    kept = few_shot({"one": parents["one"]}, {"good": rows("note")}, **arguments)
    assert json.loads(kept.to_json(orient="records"))[0]["task"] == "good"
