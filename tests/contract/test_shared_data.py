"""Real public files load into valid records with a mapping of a few words each."""

import json
from collections import Counter
from pathlib import Path

import pytest

from workbench.data import Choice, load_examples
from workbench.data.files import FORMATS
from workbench.records import EXAMPLE_COLUMNS, Example

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
pytestmark = pytest.mark.skipif(not SHARED.is_dir(), reason=f"the public data sets are not at {SHARED}")

FOUR = ["A", "B", "C", "D"]
MMLU = {
    "skill": "exam",
    "columns": ["question", *FOUR, "answer"],
    "query": "question",
    "choices": FOUR,
    "answer": Choice("answer", first="A"),
}
CMMLU = {"skill": "exam", "query": "Question", "choices": FOUR, "answer": Choice("Answer", first="A")}
NER = {
    "skill": "ner",
    "context": lambda row: " ".join(row["tokens"]),
    "query": "Name the entities.",
    "answer": lambda row: " ".join(row["tags"]),
}
DIALOGUE = {"skill": "summarisation", "context": "dialogue", "query": "Summarise the visit."}
CASES = [
    (
        "medmcqa/dev.json",
        4183,
        {
            "skill": "exam",
            "query": "question",
            "choices": ["opa", "opb", "opc", "opd"],
            "answer": Choice("cop", first=1),
            "id": "id",
            "meta": ["subject_name", "topic_name", "exp"],
        },
    ),
    ("mmlu_medical", 1216, MMLU),
    ("mmlu_general", 766, MMLU),
    ("cmmlu_medical_zh", 789, CMMLU),
    (
        "pubmedqa/pqal_dev.json",
        500,
        {
            "skill": "reading_comprehension",
            "context": lambda row: "\n".join(row["CONTEXTS"]),
            "query": "QUESTION",
            "answer": "final_decision",
            "meta": ["LONG_ANSWER", "YEAR"],
        },
    ),
    ("mts_dialog", 1501, DIALOGUE | {"answer": "section_text", "meta": ["section_header"]}),
    ("aci_bench", 127, DIALOGUE | {"answer": "note", "id": "encounter_id"}),
    (
        "meqsum/questions_800.jsonl",
        800,
        {
            "skill": "short_question",
            "context": "question",
            "query": "Ask it in one line.",
            "answer": "summary",
        },
    ),
    ("bc5cdr_ner", 9141, NER),
    ("ncbi_disease", 6355, NER),
    (
        "chemprot_re",
        6596,
        {
            "skill": "relation_extraction",
            "context": "text",
            "query": "How do the two relate?",
            "answer": "label",
        },
    ),
    (
        "negex_assertion/negation_temporality.tsv",
        1891,
        {
            "skill": "entity_attribute",
            "columns": ["number", "blank", "phrase", "sentence", "polarity", "time", "who"],
            "context": "sentence",
            "query": lambda row: f"Is '{row['phrase']}' affirmed or negated?",
            "answer": "polarity",
            "id": "number",
        },
    ),
    (
        "ifeval/prompts_100.jsonl",
        100,
        {
            "skill": "instruction",
            "query": "prompt",
            "answer": "",
            "id": "key",
            "meta": ["instruction_id_list", "kwargs"],
        },
    ),
    (
        "self_instruct/seed_tasks.jsonl",
        175,
        {
            "skill": "general",
            "context": lambda row: row["instances"][0]["input"],
            "query": "instruction",
            "answer": lambda row: row["instances"][0]["output"],
        },
    ),
]


@pytest.mark.parametrize(("name", "count", "mapping"), CASES, ids=[case[0] for case in CASES])
def test_every_row_becomes_a_valid_example(name, count, mapping):
    dataset = load_examples(SHARED / name, **mapping)
    assert dataset.column_names == list(EXAMPLE_COLUMNS)
    assert len(dataset) == count
    assert len(set(dataset["id"])) == count
    path = SHARED / name
    inside = {p.relative_to(path).as_posix() for p in path.rglob("*") if p.suffix in FORMATS}
    files = inside if path.is_dir() else {path.name}
    assert {source.rpartition(":")[0] for source in dataset["source"]} == files
    for row in dataset.select(range(0, count, max(1, count // 200))):
        example = Example(**{**row, "choices": row["choices"] and tuple(row["choices"])})
        assert example.query.strip()
        assert example.answer.strip() or mapping["answer"] == ""
        assert example.choices is None or example.answer in example.choices
        assert isinstance(example.details(), dict)


def test_every_shared_folder_is_covered():
    folders = {path.name for path in SHARED.iterdir() if path.is_dir()}
    assert folders == {name.split("/")[0] for name, _, _ in CASES}


def test_medmcqa_counts_its_options_from_one():
    dataset = load_examples(SHARED / "medmcqa/dev.json", **CASES[0][2])
    rows = [json.loads(line) for line in (SHARED / "medmcqa/dev.json").open(encoding="utf-8")]
    assert dataset["answer"][:] == [row["op" + "abcd"[row["cop"] - 1]] for row in rows]
    assert json.loads(dataset[0]["meta"])["subject_name"] == "Physiology"


def test_mmlu_letters_and_file_places():
    dataset = load_examples(SHARED / "mmlu_medical", **MMLU)
    assert dataset[0]["source"] == "dev/anatomy_dev.csv:1"
    first = (SHARED / "mmlu_medical/dev/anatomy_dev.csv").read_text().splitlines()[0]
    assert dataset[0]["choices"]["ABCD".index(first[-1])] == dataset[0]["answer"]


def test_negation_labels_are_those_of_the_file():
    dataset = load_examples(SHARED / CASES[11][0], **CASES[11][2])
    assert Counter(dataset["answer"]) == {"Affirmed": 1503, "Negated": 388}


def test_a_mistaken_base_of_the_answer_is_refused():
    wrong = {**CASES[0][2], "answer": Choice("cop", first=0)}
    # All four marks occur, so only the marks beyond the last choice betray it.
    with pytest.raises(ValueError, match=r"Write Choice\('cop', first=1\)"):
        load_examples(SHARED / "medmcqa/dev.json", on_error="collect", **wrong)
