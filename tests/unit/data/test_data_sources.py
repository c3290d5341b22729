from pathlib import Path

import datasets
import pytest

from workbench.data import load_examples, sources
from workbench.errors import DataError
from workbench.records import Example

VISITS = [
    {"dialogue": "Doctor: Any fever?", "note": "No fever.", "header": "ROS"},
    {"dialogue": "Doctor: Any pain?", "note": "Chest pain.", "header": "CC"},
]
VISIT = {"skill": "summarisation", "context": "dialogue", "query": "Summarise the visit.", "answer": "note"}
QA = {"skill": "question_answering", "query": "q", "answer": "a"}


class TestSources:
    def test_missing_file(self, write, tmp_path):
        write("visits.csv", "q,a\n")
        with pytest.raises(DataError, match=r"no such file or folder; did you mean 'visits.csv'\?"):
            load_examples(tmp_path / "visit.csv", **QA)

    @pytest.mark.parametrize("content", ["", " \n\n"])
    @pytest.mark.parametrize("name", ["v.csv", "v.jsonl", "v.json", "v.parquet"])
    def test_empty_file(self, write, name, content):
        with pytest.raises(DataError, match=rf"{name} is empty \(\d bytes\)"):
            load_examples(write(name, content), **QA)

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("v.xlsx", "PK", r"ends in '.xlsx', which names no known format.*Save the table as CSV"),
            ("v.csv", "q,a\n", r"v.csv has no rows.*header=False"),
            ("v.json", "[]", r"v.json has no rows"),
            ("v.json", '{"q": "x", "a": "y"}', r"one JSON object with the keys \['q', 'a'\].*format='jsonl'"),
            ("v.json", "[{]", r"v.json is not readable JSON"),
            ("v.json", "3", r"holds a JSON int"),
            ("v.csv", "a;q\n1;2\n", r"Its columns: 'a;q'. It seems to use another delimiter: pass e.g. delimiter=';'"),
            ("v.csv", b"\xff\xfeq\x00,\x00a\x00\n\x00", r"Pass encoding='utf-16'"),
            ("v.parquet", "PAR1 no", r"v.parquet is not a readable Parquet file"),
        ],
    )
    def test_unreadable_file(self, write, name, content, message):
        with pytest.raises(DataError, match=message):
            load_examples(write(name, content), **QA)

    def test_folder_without_data(self, write, tmp_path):
        write("LICENSE", "free")
        with pytest.raises(DataError, match=r"holds no data file \(\['LICENSE'\]\)"):
            load_examples(tmp_path, **QA)

    def test_no_network_for_local_names(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "runs").mkdir()
        monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: pytest.fail("asked the network"))
        for name in ("runs/rows", "org/rows.csv", "/nowhere/x", "squad", Path("org/name")):
            with pytest.raises(DataError, match="there is no such file or folder"):
                load_examples(name, **QA)

    def test_hub_that_cannot_be_reached(self):
        with pytest.raises(DataError, match=r"'org/name' is no file or folder here, and cannot be opened.*network"):
            load_examples("org/name", **QA)


class TestClassroom:
    @pytest.fixture
    def classroom(self, write, tmp_path, monkeypatch):
        def rows(skill):
            for split in ("train", "test"):
                yield Example(
                    id=f"{skill}-{split}",
                    skill=skill,
                    split=split,
                    query="Which organ?",
                    choices=("heart", "lung") if skill == "exam_forward" else None,
                    answer="heart",
                    source="world",
                    meta='{"condition": "asthma"}',
                ).to_dict()

        for skill in ("question_answering", "exam_forward"):
            write(f"examples/{skill}.jsonl", list(rows(skill)))
        monkeypatch.setattr(sources, "data_samples_root", lambda: tmp_path)

    @pytest.mark.usefixtures("classroom")
    def test_needs_no_mapping(self):
        dataset = load_examples("classroom/question_answering")
        assert dataset["id"][:] == ["question_answering-train", "question_answering-test"]
        assert set(dataset["source"]) == {"world"}
        everything = load_examples("classroom", split="test")
        assert everything["skill"][:] == ["exam_forward", "question_answering"]
        assert everything["choices"][:] == [["heart", "lung"], None]
        assert load_examples("classroom", skill="exam_forward")["split"][:] == ["train", "test"]

    @pytest.mark.usefixtures("classroom")
    def test_unknown_name_lists_what_there_is(self):
        with pytest.raises(DataError, match=r"The classroom has: exam_forward, question_answering"):
            load_examples("classroom/ner")

    def test_missing_classroom(self, tmp_path, monkeypatch):
        monkeypatch.setattr(sources, "data_samples_root", lambda: tmp_path)
        with pytest.raises(DataError, match="run `make classroom`"):
            load_examples("classroom")

    def test_saved_examples_load_again_unchanged(self, tmp_path, write):
        first = load_examples(write("v.jsonl", VISITS), **VISIT)
        for save, name in ((first.to_json, "again.jsonl"), (first.to_parquet, "again.parquet")):
            save(tmp_path / name)
            assert load_examples(tmp_path / name).to_list() == first.to_list()
