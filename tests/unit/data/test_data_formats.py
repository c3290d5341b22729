import json

import datasets
import pandas as pd
import pytest

from workbench.data import Choice, load, load_examples
from workbench.errors import DataError
from workbench.records import EXAMPLE_COLUMNS

VISITS = [
    {"dialogue": "Doctor: Any fever?", "note": "No fever.", "header": "ROS"},
    {"dialogue": "Doctor: Any pain?", "note": "Chest pain.", "header": "CC"},
]
VISIT = {"skill": "summarisation", "context": "dialogue", "query": "Summarise the visit.", "answer": "note"}
QA = {"skill": "question_answering", "query": "q", "answer": "a"}


class TestFormats:
    def check(self, dataset, places):
        assert dataset.column_names == list(EXAMPLE_COLUMNS)
        assert dataset.features == load.FEATURES
        assert dataset["context"][:] == [row["dialogue"] for row in VISITS]
        assert dataset["query"][:] == ["Summarise the visit."] * 2
        assert dataset["answer"][:] == [row["note"] for row in VISITS]
        assert dataset["source"][:] == dataset["id"][:] == places
        assert set(dataset["split"]) == {"train"}
        assert set(dataset["stage"]) == {""}
        assert set(dataset["meta"]) == {"{}"}
        assert dataset["choices"][:] == [None, None]

    def test_jsonl_counts_lines_and_skips_blank_ones(self, write):
        lines = [json.dumps(row) for row in VISITS]
        path = write("visits.jsonl", f"\ufeff{lines[0]}\r\n\n{lines[1]}\n\n")
        self.check(load_examples(path, **VISIT), ["visits.jsonl:1", "visits.jsonl:3"])

    @pytest.mark.parametrize("wrap", [lambda rows: rows, lambda rows: {"data": rows, "version": 1}])
    def test_json_list(self, write, wrap):
        path = write("visits.json", json.dumps(wrap(VISITS), indent=1))
        self.check(load_examples(str(path), **VISIT), ["visits.json:1", "visits.json:2"])

    def test_json_keyed_by_id(self, write):
        path = write("visits.json", json.dumps({"v7": VISITS[0], "v9": VISITS[1]}))
        dataset = load_examples(path, **VISIT)
        assert dataset["id"][:] == ["v7", "v9"]
        assert dataset["source"][:] == ["visits.json:1", "visits.json:2"]

    def test_json_lines_under_the_name_json(self, write):
        path = write("visits.json", VISITS)
        self.check(load_examples(path, **VISIT), ["visits.json:1", "visits.json:2"])

    @pytest.mark.parametrize(("name", "sep"), [("visits.csv", ","), ("VISITS.TSV", "\t")])
    def test_table_with_header(self, tmp_path, name, sep):
        pd.DataFrame(VISITS).to_csv(tmp_path / name, sep=sep, index=False)
        self.check(load_examples(tmp_path / name, **VISIT), [f"{name}:2", f"{name}:3"])

    def test_table_without_header(self, tmp_path):
        pd.DataFrame(VISITS).to_csv(tmp_path / "v.csv", sep=";", index=False, header=False)
        places = ["v.csv:1", "v.csv:2"]
        named = load_examples(tmp_path / "v.csv", columns=["dialogue", "note", "header"], delimiter=";", **VISIT)
        self.check(named, places)
        numbered = VISIT | {"context": "column1", "answer": "column2"}
        self.check(load_examples(tmp_path / "v.csv", header=False, delimiter=";", **numbered), places)

    def test_columns_may_be_renamed(self, write):
        path = write("v.csv", "x,x\nfever,yes\n")
        dataset = load_examples(path, header=True, columns=["q", "a"], **QA)
        assert dataset["query"][:] == ["fever"]
        with pytest.raises(DataError, match=r"more than one column called \['x'\].*pass columns="):
            load_examples(path, **QA)

    def test_parquet(self, tmp_path):
        pd.DataFrame(VISITS).to_parquet(tmp_path / "v.parquet")
        self.check(load_examples(tmp_path / "v.parquet", **VISIT), ["v.parquet:1", "v.parquet:2"])

    def test_parquet_holds_lists_dates_and_null(self, tmp_path):
        frame = pd.DataFrame(
            {
                "q": ["a?", "b?"],
                "opts": [["x", "y"], ["z", "w"]],
                "gold": [1, 0],
                "day": pd.to_datetime(["2020-01-02"] * 2),
            }
        )
        frame.to_parquet(tmp_path / "v.parquet")
        mapping = {"skill": "exam", "query": "q", "choices": "opts", "answer": Choice("gold", first=0), "meta": ["day"]}
        dataset = load_examples(tmp_path / "v.parquet", **mapping)
        assert dataset["answer"][:] == ["y", "z"]
        assert json.loads(dataset[0]["meta"]) == {"day": "2020-01-02T00:00:00"}

    def test_format_may_be_said(self, write):
        path = write("v.txt", "q\ta\nfever\tyes\n")
        assert load_examples(path, format="tsv", **QA)["answer"][:] == ["yes"]

    def test_folder_reads_all_files_in_order_of_path(self, write, tmp_path):
        write("b.jsonl", [{"q": "2", "a": "x", "n": 1}])
        write("a/deep.csv", "q,a,n\n1,y,1\n")
        write(".ipynb_checkpoints/b.jsonl", "broken")
        write("LICENSE.md", "free")
        dataset, report = load_examples(tmp_path, on_error="collect", **QA)
        assert dataset["source"][:] == ["a/deep.csv:2", "b.jsonl:1"]
        assert report.ignored == ("LICENSE.md",)
        assert "ignored files: LICENSE.md" in str(report)
        assert load_examples(tmp_path, id="n", **QA)["id"][:] == ["a/deep.csv:1", "b.jsonl:1"]

    def test_hub_dataset(self, monkeypatch):
        def fake(name, config, split):
            assert (name, config, split) == ("org/exams", "cardiology", "test")
            return datasets.Dataset.from_list([{"q": "Fever?", "a": "no"}])

        monkeypatch.setattr(datasets, "load_dataset", fake)
        row = load_examples("org/exams", config="cardiology", split="test", **QA)[0]
        assert (row["source"], row["split"]) == ("org/exams/test:1", "test")

    def test_huge_field_and_quoted_line_breaks(self, write):
        text = "a,\n" * 400_000
        path = write("v.csv", f'q,a\n"{text}",yes\nfever,no\n')
        dataset, report = load_examples(path, on_error="collect", **QA)
        assert dataset[0]["query"] == text
        assert (len(dataset), len(report)) == (2, 0)

    def test_unusual_characters_survive(self, write):
        text = 'β-blocker \u2028 "5 µg"\x85 胸痛 🫀'
        assert load_examples(write("v.jsonl", [{"q": text, "a": "x"}]), **QA)[0]["query"] == text
        assert (
            load_examples(write("w.csv", "q,a\n胸痛,x\n".encode("gb18030")), encoding="gb18030", **QA)[0]["query"]
            == "胸痛"
        )
