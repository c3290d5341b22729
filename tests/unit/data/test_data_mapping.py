import json

import pytest

from workbench.data import Choice, Column, Constant, load_examples
from workbench.errors import ConfigError, DataError

VISITS = [
    {"dialogue": "Doctor: Any fever?", "note": "No fever.", "header": "ROS"},
    {"dialogue": "Doctor: Any pain?", "note": "Chest pain.", "header": "CC"},
]
VISIT = {"skill": "summarisation", "context": "dialogue", "query": "Summarise the visit.", "answer": "note"}
QA = {"skill": "question_answering", "query": "q", "answer": "a"}
LABELLED = [
    {"q": "1", "a": "x", "split": "train", "kind": "ner"},
    {"q": "2", "a": "y", "split": "dev", "kind": "inference"},
]


class TestMapping:
    def test_constant_and_function(self, write):
        mapping = VISIT | {
            "context": lambda row: row["dialogue"].upper(),
            "query": Constant("Summarise"),
            "stage": "easy",
            "split": "validation",
            "id": lambda row: f"visit-{row['header']}",
        }
        row = load_examples(write("v.jsonl", VISITS), **mapping)[0]
        assert row["context"] == "DOCTOR: ANY FEVER?"
        assert (row["query"], row["stage"], row["split"], row["id"]) == ("Summarise", "easy", "validation", "visit-ROS")

    @pytest.mark.parametrize("query", ["Summarise the visit", "Summary:", "摘要？"])
    def test_query_that_reads_like_a_sentence_stands_bare(self, write, query):
        assert load_examples(write("v.jsonl", VISITS), **VISIT | {"query": query})[0]["query"] == query

    def test_query_that_is_a_column_is_the_column(self, write):
        path = write("v.jsonl", [{"the question": "Fever?", "a": "no"}])
        assert load_examples(path, **QA | {"query": "the question"})[0]["query"] == "Fever?"

    @pytest.mark.parametrize(
        ("field", "wrong", "meant"),
        [
            ("context", "dialog", "dialogue"),
            ("answer", "Note", "note"),
            ("query", "dialogues", "dialogue"),
            ("id", "headr", "header"),
        ],
    )
    def test_mistyped_column_never_becomes_text(self, write, field, wrong, meant):
        path = write("v.jsonl", VISITS)
        with pytest.raises(DataError, match=rf"{field}='{wrong}' is not a column.*'dialogue', 'note'.*mean '{meant}'"):
            load_examples(path, **VISIT | {field: wrong})

    def test_bare_query_close_to_a_column_is_refused(self, write):
        path = write("v.jsonl", [{"chief_complaint": "Pain", "a": "x"}])
        with pytest.raises(DataError, match=r"Did you mean 'chief_complaint'\? .* write Constant\('chief complaint'\)"):
            load_examples(path, **QA | {"query": "chief complaint"})

    def test_sentence_for_context_must_be_said_constant(self, write):
        path = write("v.jsonl", VISITS)
        with pytest.raises(DataError, match=r"For the same text in every row write Constant\('A long visit.'\)"):
            load_examples(path, **VISIT | {"context": "A long visit."})
        assert load_examples(path, **VISIT | {"context": Constant("A long visit.")})[1]["context"] == "A long visit."

    def test_what_is_not_mapped_takes_the_column_of_the_same_name(self, write):
        path = write(
            "v.jsonl", [{"query": "Fever?", "answer": "no", "context": None, "meta": {"a": 1}, "source": ["b"]}]
        )
        row = load_examples(path, skill="x")[0]
        assert (row["query"], row["context"], row["meta"], row["source"]) == ("Fever?", "", '{"a": 1}', "v.jsonl:1")

    def test_query_answer_and_skill_are_needed(self, write):
        path = write("v.jsonl", VISITS)
        with pytest.raises(DataError, match=r"no column 'query', and query= is not given"):
            load_examples(path, skill="x", answer="note")
        with pytest.raises(DataError, match=r"no column 'answer'.*such as prompts, write answer=''"):
            load_examples(path, skill="x", query="dialogue")
        with pytest.raises(ConfigError, match=r"Say what the rows teach, e.g. skill='summarisation'"):
            load_examples(path, query="dialogue", answer="note")
        assert load_examples(path, skill="x", query="dialogue", answer="")["answer"][:] == ["", ""]

    def test_numbers_become_text(self, write):
        path = write("v.jsonl", [{"q": "How many?", "a": 5}, {"q": "How much?", "a": 0.5}])
        assert load_examples(path, **QA)["answer"][:] == ["5", "0.5"]

    def test_meta_keeps_columns(self, write):
        path = write("v.jsonl", [{"q": "Fever?", "a": "no", "kwargs": [{"n": 1}], "organ": "心"}])
        assert json.loads(load_examples(path, meta=["kwargs", "organ"], **QA)[0]["meta"]) == {
            "kwargs": [{"n": 1}],
            "organ": "心",
        }
        assert load_examples(path, meta=lambda row: {"o": row["organ"]}, **QA)[0]["meta"] == '{"o": "心"}'

    @pytest.mark.parametrize(
        ("setting", "message"),
        [
            ({"query": 3}, r"query=3 is a int. It takes a column name"),
            ({"answer": ["a"]}, r"answer=\['a'\] is a list"),
            ({"query": ""}, r"query='' is not a column"),
            ({"query": Constant(" ")}, r"query=' ' is empty"),
            ({"skill": ""}, r"skill='' is empty"),
            ({"meta": [3]}, r"meta names a column by 3"),
            ({"answer": Choice("a", first="A")}, r"marks a choice, but no choices are mapped"),
            ({"on_error": "ignore"}, r"Use 'raise' or 'collect'"),
            ({"limit": 0}, r"limit=0 is below 1"),
            ({"format": "xls"}, r"Use one of csv, json, jsonl, parquet, tsv"),
            ({"delimiter": ";;"}, r"must be one character"),
            ({"encoding": "utf-9"}, r"encoding='utf-9' is unknown"),
            ({"columns": "q,a"}, r"Pass a list of names"),
        ],
    )
    def test_settings_are_checked(self, write, setting, message):
        with pytest.raises((ConfigError, DataError), match=message):
            load_examples(write("v.jsonl", [{"q": "Fever?", "a": "no"}]), **QA | setting)

    @pytest.mark.parametrize("first", [2, -1, "AB", "", "1", None, 0.5])
    def test_first_mark_is_checked(self, first):
        with pytest.raises(ConfigError, match=r"the first choice is marked 0, 1 or a letter"):
            Choice("cop", first=first)


class TestLabels:
    def test_word_filters_where_the_file_has_the_column(self, write):
        dataset, report = load_examples(write("v.jsonl", LABELLED), split="dev", on_error="collect", **QA)
        assert dataset["query"][:] == ["2"]
        assert (report.kept, report.filtered, len(report)) == (1, 1, 0)
        assert load_examples(write("v.jsonl", LABELLED), **QA)["split"][:] == ["train", "dev"]

    def test_filter_that_leaves_nothing_names_what_there_is(self, write):
        with pytest.raises(DataError, match=r"no row is left.*split='train' \(1\), split='dev' \(1\)"):
            load_examples(write("v.jsonl", LABELLED), split="test", **QA)

    def test_constant_overrides_and_column_is_explicit(self, write):
        mapping = QA | {"split": Constant("test"), "skill": Column("kind")}
        dataset = load_examples(write("v.jsonl", LABELLED), **mapping)
        assert dataset["split"][:] == ["test", "test"]
        assert dataset["skill"][:] == ["ner", "inference"]

    def test_word_that_is_a_column_is_ambiguous(self, write):
        with pytest.raises(DataError, match=r"Write skill=Column\('kind'\).*or skill=Constant\('kind'\)"):
            load_examples(write("v.jsonl", LABELLED), **QA | {"skill": "kind"})
