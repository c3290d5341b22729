"""The store of rows: each once, seen by all writers, gone with nothing; a file of something else stays as it is."""

import json
import sqlite3
import threading

import pytest

from workbench.errors import DataError
from workbench.search import store as store_module
from workbench.search.store import RowStore

ROW = {"exam": 0.5, "name": "中 'x'", "none": None, "exact": 0.1 + 0.2}


@pytest.fixture(params=["memory", "file"])
def store(request, tmp_path) -> RowStore:
    return RowStore(None if request.param == "memory" else tmp_path / "deep" / "rows.sqlite")


def test_a_row_comes_back_as_it_was_and_the_first_of_a_key_stays(store):
    assert "a" not in store
    with pytest.raises(KeyError, match="a"):
        store["a"]
    store.add("a", ROW, {})
    store.add("a", {"exam": 0.6}, {})
    store.add("b", {"exam": 0.7}, {})
    assert store["a"] == ROW
    assert ("b" in store, "c" in store) == (True, False)


def test_nothing_is_written_before_the_first_row(tmp_path):
    assert "a" not in RowStore(tmp_path / "rows.sqlite")
    assert list(tmp_path.iterdir()) == []


def test_each_writer_sees_what_others_have_added(tmp_path):
    first, second = RowStore(tmp_path / "rows.sqlite"), RowStore(tmp_path / "rows.sqlite")
    first.add("a", ROW, {"seed": 1})
    assert second["a"] == ROW
    second.add("a", {"exam": 1.0}, {})
    assert first["a"] == RowStore(tmp_path / "rows.sqlite")["a"] == ROW
    with sqlite3.connect(tmp_path / "rows.sqlite") as file:
        assert [json.loads(text) for (text,) in file.execute("SELECT about FROM rows")] == [{"seed": 1}]


def test_threads_may_share_a_store(tmp_path):
    store = RowStore(tmp_path / "rows.sqlite")
    threads = [threading.Thread(target=store.add, args=(str(i), {"i": i}, {})) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [store[str(i)] for i in range(8)] == [{"i": i} for i in range(8)]


def test_a_row_that_was_never_committed_is_not_there(tmp_path):
    store = RowStore(tmp_path / "rows.sqlite")
    store.add("a", ROW, {})
    file = sqlite3.connect(tmp_path / "rows.sqlite", isolation_level=None)
    file.execute("BEGIN IMMEDIATE")
    file.execute("INSERT INTO rows VALUES ('b', '{}', '{}')")
    file.close()
    assert ("a" in store, "b" in store) == (True, False)


def test_a_file_whose_writer_died_before_its_first_row_is_taken(tmp_path):
    (tmp_path / "rows.sqlite").touch()
    store = RowStore(tmp_path / "rows.sqlite")
    assert "a" not in store
    store.add("a", ROW, {})
    assert store["a"] == ROW


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ratio,clinical\n", "begins with 'ratio,clinical', and is no store of rows; give the store a file of its own"),
        ('{"a": 1}\n' * 500, r"""begins with '{"a": 1}.*no store of rows"""),
        ('{"key": "1f", "row": {}, "about": {}}\n', "the JSON lines of an earlier version, and is no store of rows"),
    ],
)
def test_a_file_of_something_else_is_left_as_it_is(tmp_path, text, message):
    path = tmp_path / "rows.jsonl"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        RowStore(path)
    assert path.read_text() == text
    assert [found.name for found in tmp_path.iterdir()] == ["rows.jsonl"]


def test_a_database_of_something_else_is_left_as_it_is(tmp_path):
    for table in ("notes (text TEXT)", "rows (key TEXT, value TEXT)"):
        path = tmp_path / f"{table[:4]}.sqlite"
        with sqlite3.connect(path) as file:
            file.execute(f"CREATE TABLE {table}")
        before = path.read_bytes()
        with pytest.raises(DataError, match=rf"holds the tables {table.split()[0]}, and is no store of rows"):
            RowStore(path)
        assert path.read_bytes() == before


def test_a_file_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "_WAIT_S", 0.01)
    store = RowStore(tmp_path / "rows.sqlite")
    store.add("a", ROW, {})
    file = sqlite3.connect(tmp_path / "rows.sqlite", isolation_level=None)
    file.execute("BEGIN EXCLUSIVE")
    with pytest.raises(DataError, match=r"rows.sqlite cannot be read or written: database is locked.*no other process"):
        store.add("b", ROW, {})
    file.close()
    with pytest.raises(DataError, match="cannot be read or written: unable to open database file"):
        RowStore(tmp_path)
