"""Published formats, each in a file of two rows; what does not count is counted, what is bad is said."""

import json

import datasets
import pytest

from workbench.errors import ConfigError, DataError
from workbench.evaluation import BENCHMARKS, exams, read_benchmark
from workbench.evaluation.exams import subject_of

MEDQA = {
    "question": "Which drug?",
    "options": {"A": "aspirin", "B": "insulin", "C": "digoxin", "D": "heparin"},
    "answer": "insulin",
    "answer_idx": "B",
    "meta_info": "step1",
}
MEDMCQA = {"id": "x1", "question": "Which drug?", "cop": 2, "opa": "a1", "opb": "b1", "opc": "c1", "opd": "d1"}
CMB = {
    "exam_type": "医师考试",
    "exam_class": "执业医师",
    "question": "首选药物？",
    "option": {"A": "阿司匹林", "B": "胰岛素", "C": "地高辛", "D": "肝素", "E": ""},
    "answer": "B",
}
PUBMEDQA = {"QUESTION": "Does it help?", "CONTEXTS": ["One.", "Two."], "final_decision": "maybe", "LONG_ANSWER": "-"}
IFEVAL = {"key": 7, "prompt": "No commas.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
CMEXAM = 'Question,Options,Answer,Explanation\n首选药物？,"A 阿司匹林\nB 胰岛素\nC.地高辛",B,因为\n'
MMLU = "Which organ?,heart,liver,lung,skin,B\n"
CMMLU = ",Question,A,B,C,D,Answer\n0,首选？,甲,乙,丙,丁,B\n"


def written(folder, name, rows):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    text = rows if isinstance(rows, str) else "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "file", "rows", "prompt", "answer"),
    [
        ("medqa", "a.jsonl", [MEDQA], "Which drug?\nA. aspirin\nB. insulin\nC. digoxin\nD. heparin", "insulin"),
        ("medmcqa", "a.jsonl", [MEDMCQA], "Which drug?\nA. a1\nB. b1\nC. c1\nD. d1", "b1"),
        ("mmlu_medical", "a.csv", MMLU, "Which organ?\nA. heart\nB. liver\nC. lung\nD. skin", "liver"),
        ("mmlu_general", "a.csv", MMLU, "Which organ?\nA. heart\nB. liver\nC. lung\nD. skin", "liver"),
        ("cmmlu_medical", "a.csv", CMMLU, "首选？\nA. 甲\nB. 乙\nC. 丙\nD. 丁", "乙"),
        ("cmb", "a.json", json.dumps([CMB]), "首选药物？\nA. 阿司匹林\nB. 胰岛素\nC. 地高辛\nD. 肝素", "胰岛素"),
        ("cmexam", "a.csv", CMEXAM, "首选药物？\nA. 阿司匹林\nB. 胰岛素\nC. 地高辛", "胰岛素"),
        (
            "pubmedqa",
            "a.json",
            json.dumps({"12": PUBMEDQA}),
            "One.\nTwo.\nDoes it help?\nA. yes\nB. no\nC. maybe",
            "maybe",
        ),
        ("ifeval", "a.jsonl", [IFEVAL], "No commas.", ""),
    ],
)
def test_each_published_format(name, file, rows, prompt, answer, tmp_path):
    task = read_benchmark(name, written(tmp_path, file, rows)).task
    assert [(example.prompt(), example.answer) for example in task.rows()] == [(prompt, answer)]
    assert (task.name, task.metric) == (name, BENCHMARKS[name].metric)


def test_every_benchmark_has_its_format_tested():
    cases = test_each_published_format.pytestmark[0].args[1]
    assert {case[0] for case in cases} == set(BENCHMARKS)


def test_shuffled_options_take_the_answer_along_and_depend_on_the_seed_alone(tmp_path):
    path = written(tmp_path, "a.jsonl", [MEDMCQA | {"id": str(i)} for i in range(20)])
    plain, one, again, other = (
        read_benchmark("medmcqa", path, shuffle_options=seed).task.rows() for seed in (None, 1, 1, 2)
    )
    assert one == again != other
    assert {example.answer for example in one} == {"b1"}
    assert len({example.choices for example in one}) > 10
    assert {tuple(sorted(example.choices)) for example in one} == {plain[0].choices}


def test_a_folder_has_parts_and_subjects(tmp_path):
    for part, rows in (("dev", 2), ("val", 1), ("test", 3)):
        for subject in ("anatomy", "marketing"):
            written(tmp_path, f"{part}/{subject}_{part}.csv", MMLU * rows)
    medical = read_benchmark("mmlu_medical", tmp_path)
    assert {subject_of(example) for example in medical.task.rows()} == {"anatomy"}
    assert len(medical.task.rows()) == 3
    assert medical.left_out == {"in dev": 2, "in validation": 1, "of another subject": 6}
    assert {subject: len(rows) for subject, rows in medical.shots.items()} == {"": 2, "anatomy": 2}
    general = read_benchmark("mmlu_general", tmp_path, split="validation")
    assert [example.source for example in general.task.rows()] == ["val/marketing_val.csv:1"]
    with pytest.raises(ConfigError, match=r"no row of .* counts in split 'train' \(left out: .*'in dev': 2"):
        read_benchmark("mmlu_medical", tmp_path, split="train")


def test_files_that_are_named_after_their_part(tmp_path):
    for part, count in (("train", 3), ("dev", 1), ("test", 2)):
        written(tmp_path, f"{part}.jsonl", [MEDQA] * count)
    found = read_benchmark("medqa", tmp_path)
    assert (len(found.task.rows()), len(found.shots[""])) == (2, 1)


def test_questions_with_several_right_options_are_left_out_and_counted(tmp_path):
    path = written(tmp_path, "a.json", json.dumps([CMB, CMB | {"answer": "ABD"}, CMB | {"answer": "A,C"}]))
    found = read_benchmark("cmb", path)
    assert (len(found.task.rows()), found.left_out) == (1, {"several answers": 2})


def test_missing_answers_and_answers_outside_the_options(tmp_path):
    rows = [CMB, CMB | {"answer": None}, CMB | {"answer": "F"}, CMB | {"answer": "E"}, CMB | {"answer": "BC"}]
    path = written(tmp_path, "a.jsonl", rows)
    with pytest.raises(DataError) as caught:
        read_benchmark("cmb", path)
    said = str(caught.value)
    assert said.startswith(f"benchmark 'cmb': {path}: 3 of 4 rows cannot become examples.")
    assert "row 2, column 'answer': is missing" in said
    assert "row 3, column 'answer': marks none of the 4 choices, of which the first is 'A'; seen: 'F'" in said
    assert "row 4" in said
    assert "'BC'" not in said
    assert said.endswith("have them counted with on_bad='skip'.")
    found = read_benchmark("cmb", path, on_bad="skip")
    assert (len(found.task.rows()), found.left_out) == (1, {"several answers": 1, "bad row": 3})


def test_a_file_of_another_benchmark(tmp_path):
    path = written(tmp_path, "a.jsonl", [MEDQA])
    with pytest.raises(DataError, match=r"benchmark 'cmb': choices='option' is not a column .*Did you mean 'options'"):
        read_benchmark("cmb", path)
    with pytest.raises(DataError, match=r"benchmark 'pubmedqa': .*'QUESTION'.* Its columns: 'question', 'options'"):
        read_benchmark("pubmedqa", path)
    with pytest.raises(DataError, match=r"(?s)benchmark 'mmlu_medical': .*has 4 cells where 6 columns are named"):
        read_benchmark("mmlu_medical", written(tmp_path, "a.csv", CMEXAM))


def test_unknown_names_and_settings(tmp_path):
    with pytest.raises(ConfigError, match=r"benchmark 'medmqa' is not known; use one of medqa, medmcqa, .*, ner"):
        read_benchmark("medmqa", tmp_path)
    with pytest.raises(ConfigError, match=r"split='exam', on_bad='error': use test, validation, dev or train"):
        read_benchmark("medqa", tmp_path, split="exam")
    with pytest.raises(DataError, match=r"benchmark 'medqa': No data at .*gone.jsonl"):
        read_benchmark("medqa", tmp_path / "gone.jsonl")


def test_the_classroom_says_its_splits_itself():
    found = read_benchmark("exam_forward", "classroom/exam_forward", split="validation")
    assert {example.split for example in found.task.rows()} == {"validation"}
    assert {example.split for example in found.shots[""]} == {"train"}
    assert (found.task.group, found.task.metric) == ("exam", "likelihood")


ON_THE_HUB = [
    ("medmcqa", "openlifescienceai/medmcqa", (None, "validation"), MEDMCQA | {"cop": 1}),
    (
        "mmlu_medical",
        "cais/mmlu:anatomy",
        ("anatomy", "test"),
        {"question": "Which?", "choices": ["a1", "b1"], "answer": 1},
    ),
    (
        "cmmlu_medical",
        "haonan-li/cmmlu:anatomy",
        ("anatomy", "test"),
        {"Question": "Which?", "A": "a1", "B": "b1", "C": "c1", "D": "d1", "Answer": "B"},
    ),
]


@pytest.mark.parametrize(("name", "source", "opened", "row"), ON_THE_HUB)
def test_a_hub_id_is_opened_as_the_user_wrote_it_and_in_its_columns_there(name, source, opened, row, monkeypatch):
    asked = []

    def load_dataset(place, config, split):
        asked.append((place, config, split))
        return datasets.Dataset.from_list([row])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    found = read_benchmark(name, source)
    assert asked == [(source.partition(":")[0], *opened)]
    assert [example.answer for example in found.task.rows()] == ["b1"]


def test_options_of_cmexam_are_lines():
    assert exams._cmexam_options({"Options": "A 甲\n B．乙 丙\n\nC:丁"}) == {"A": "甲", "B": "乙 丙", "C": "丁"}
