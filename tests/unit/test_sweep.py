"""A sweep over ratios: one table, each row computed once, whatever interrupts it."""

import json
import sqlite3
import threading
from functools import partial

import pandas as pd
import pytest
from pico_language import byte_tokenizer, pico

from workbench.errors import ConfigError, DataError, MergeError
from workbench.evaluation import Task, evaluate
from workbench.merging.live import LiveMerge
from workbench.merging.recipe import MergeRecipe
from workbench.records import Example
from workbench.search import scoring as scoring_module
from workbench.search.scoring import RecipeScores, score_alone
from workbench.search.sweep import sweep

TOKENIZER = byte_tokenizer(chat=True)
RECIPE = MergeRecipe(parents=["general", "clinical"], weights=[0.5, 0.5])


def example(i: int, **columns) -> Example:
    return Example(id=f"e{i}", skill="s", query=f"q {i}", answer="a", **columns)


TASKS = [
    Task(name="exam", group="clinical", examples=[example(i, choices=("a", "b", "c")) for i in range(12)]),
    Task(name="talk", group="clinical", metric="rouge_l", examples=[example(0)], max_new_tokens=2),
    Task(name="both", group="both", metric="exact_match", examples=[example(1)], max_new_tokens=2),
]
SETTINGS = {
    "split": "validation", "tasks": None, "limit": None, "seed": 0, "batch_size": 32, "on_long": "error"
}  # fmt: skip


@pytest.fixture
def live() -> LiveMerge:
    return LiveMerge(RECIPE, models=[pico(seed=1), pico(seed=2)], tokenizer=TOKENIZER)


@pytest.fixture
def measured(monkeypatch) -> list[float]:
    """The ratios that were truly evaluated, also those that something ended early."""
    ratios, hold = [], scoring_module._hold

    def counting(mine, wanted, measure):
        ratios.append(wanted.ratio)
        return hold(mine, wanted, measure)

    monkeypatch.setattr(scoring_module, "_hold", counting)
    return ratios


def run(live, **options) -> pd.DataFrame:
    return sweep(RECIPE, **{"ratios": 3, "suite": TASKS, "live": live, "progress": False, **options})


def test_rows_are_what_evaluate_says_of_each_merge(live):
    front = run(live)
    assert [*front["ratio"]] == [0, 0.5, 1]
    for ratio, parent in ((0, "general"), (1, "clinical")):
        scores = evaluate(live.parent(parent), TOKENIZER, TASKS, progress=False)
        row = front.set_index("ratio").loc[ratio]
        for name, score in [("exam", scores["exam"]), ("clinical", scores.mean("clinical")), ("both", scores["both"])]:
            assert (row[name], row[f"{name}_low"], row[f"{name}_high"]) == (score.value, score.low, score.high)
            assert row[f"{name}_n"] == score.n
    assert front.attrs["suite"] == "own"
    assert front.attrs["recipe"]["parents"] == ["general", "clinical"]


def test_the_merge_gets_its_recipe_back(live):
    before = live.recipe
    run(live)
    assert live.recipe == before


def test_a_second_sweep_computes_only_what_is_missing(live, measured, tmp_path):
    first = run(live, store=tmp_path / "deep" / "rows.sqlite")
    again = run(live, store=tmp_path / "deep" / "rows.sqlite")
    assert measured == [0, 0.5, 1]
    pd.testing.assert_frame_equal(first, again)
    run(live, store=tmp_path / "deep" / "rows.sqlite", ratios=5)
    assert measured[3:] == [0.25, 0.75]


def test_a_crash_in_the_middle_keeps_the_finished_rows(live, measured, tmp_path, monkeypatch):
    def crash_in_the_second(*args, **options):
        if len(measured) == 2:
            raise KeyboardInterrupt
        return evaluate(*args, **options)

    monkeypatch.setattr(scoring_module, "evaluate", crash_in_the_second)
    with pytest.raises(KeyboardInterrupt):
        run(live, store=tmp_path / "rows.sqlite")
    assert len(run(live, store=tmp_path / "rows.sqlite")) == 3
    assert measured == [0, 0.5, 0.5, 1]


def test_stop_gives_the_table_of_the_finished_rows(live, measured, monkeypatch):
    stop = threading.Event()

    def stop_in_the_second(*args, **options):
        if len(measured) == 2:
            stop.set()
        return evaluate(*args, **options)

    monkeypatch.setattr(scoring_module, "evaluate", stop_in_the_second)
    assert [*run(live, stop=stop)["ratio"]] == [0]


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"limit": 5},
        {"suite": [Task(name="exam", group="clinical", examples=TASKS[0].rows()[:-1])]},
        {"suite": [Task(name="talk", metric="exact_match", examples=[example(0)], max_new_tokens=2)]},
        {"on_long": "skip"},
    ],
)
def test_other_settings_keep_their_rows_apart_in_the_same_file(live, measured, tmp_path, change):
    run(live, store=tmp_path / "rows.sqlite", ratios=[0.5])
    run(live, store=tmp_path / "rows.sqlite", ratios=[0.5], **change)
    assert measured == [0.5, 0.5]
    run(live, store=tmp_path / "rows.sqlite", ratios=[0.5])
    assert len(measured) == 2


def test_rebuilt_parents_of_the_same_name_are_not_mistaken(live, measured, tmp_path):
    run(live, store=tmp_path / "rows.sqlite", ratios=[0.5])
    rebuilt = LiveMerge(RECIPE, models=[pico(seed=1), pico(seed=3)], tokenizer=TOKENIZER)
    run(rebuilt, store=tmp_path / "rows.sqlite", ratios=[0.5])
    assert len(measured) == 2


def test_a_move_by_someone_else_waits_until_the_row_is_done(live, monkeypatch):
    seen = []

    def moved_meanwhile(*args, **options):
        mover = threading.Thread(target=live.apply, args=(RECIPE.with_ratio(0.9),))
        mover.start()
        mover.join(0.05)
        seen.append(mover.is_alive())
        scores = evaluate(*args, **options)
        seen.append(live.recipe.ratio)
        return scores

    monkeypatch.setattr(scoring_module, "evaluate", moved_meanwhile)
    run(live, ratios=[0.25])
    assert seen == [True, 0.25]


def test_the_store_tells_a_reader_what_each_row_is(live, tmp_path):
    run(live, store=tmp_path / "rows.sqlite", ratios=[0.25])
    with sqlite3.connect(tmp_path / "rows.sqlite") as file:
        ((row, about),) = file.execute("SELECT row, about FROM rows")
    assert json.loads(about)["recipe"]["weights"] == [0.75, 0.25]
    assert 0 <= json.loads(row)["exam"] <= 1


def test_a_file_of_something_else_is_refused(live, tmp_path):
    (tmp_path / "notes.csv").write_text("ratio,clinical\n")
    with pytest.raises(DataError, match=r"notes.csv begins with 'ratio,clinical', and is no store of rows"):
        run(live, store=tmp_path / "notes.csv")


@pytest.fixture(scope="module")
def opened(tmp_path_factory) -> MergeRecipe:
    """A recipe whose parents any process can open."""
    parents = [str(tmp_path_factory.mktemp(name)) for name in ("general", "clinical")]
    for seed, parent in enumerate(parents, start=1):
        pico(seed=seed).save_pretrained(parent)
        TOKENIZER.save_pretrained(parent)
    return MergeRecipe(parents=parents)


def test_rows_of_other_processes_are_those_of_this_one(opened, tmp_path):
    alone = RecipeScores(LiveMerge(opened), TASKS, store=None, **SETTINGS)
    spread = RecipeScores(LiveMerge(opened), TASKS, store=tmp_path / "rows.sqlite", **SETTINGS)
    recipes = [opened.with_ratio(ratio) for ratio in (0.25, 0.75)]
    with alone.work(1, progress=False) as bar:
        rows = [alone.row(recipe, bar, None) for recipe in recipes]
        spread.spread(recipes, partial(score_alone, suite=TASKS, settings=SETTINGS), progress=False)
        assert all(recipe in spread for recipe in recipes)
        assert [spread.row(recipe, bar, None) for recipe in recipes] == rows


def test_parents_that_are_only_in_memory_are_not_mistaken(opened):
    other = LiveMerge(opened, models=[pico(seed=1), pico(seed=3)], tokenizer=TOKENIZER)
    scored = RecipeScores(other, TASKS, store=None, **SETTINGS)
    with pytest.raises(MergeError, match=r"opened .*general0 and .*clinical0 by name found other weights.*'local'"):
        scored.spread([opened], partial(score_alone, suite=TASKS, settings=SETTINGS), progress=False)
    assert opened not in scored


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratios": 1}, "ratios=1: a sweep needs at least 2"),
        ({"ratios": []}, r"ratios=\[\]: they are shares of the second parent"),
        ({"ratios": [0.5, 1.2]}, r"ratios=\[0.5, 1.2\]: they are shares"),
        ({"suite": [*TASKS, Task(name="clinical", examples=[example(0)])]}, "'clinical' has the name of a group"),
    ],
)
def test_bad_input_is_refused(live, options, message):
    with pytest.raises(ConfigError, match=message):
        run(live, **options)


def test_three_parents_have_no_single_ratio(live):
    with pytest.raises(ConfigError, match="needs two"):
        sweep(MergeRecipe(parents=["a", "b", "c"]), suite=TASKS, live=live, progress=False)
