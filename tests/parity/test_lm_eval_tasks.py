"""Benchmarks as we read and run them give what lm-evaluation-harness gives for a task of its own, and what a plain
forward pass gives by hand.

The other side is a task written here from the published file: lm-eval's own reader, prompt template, index of the
right option and accuracy. MedMCQA has 200 items; anatomy has fewer in all its parts together, 154 in MMLU and 153 in
CMMLU, so all of them are taken.
"""

from pathlib import Path

import pytest
import torch
import yaml

pytest.importorskip("lm_eval", reason="lm-eval is not installed (extra `eval`)")
import lm_eval
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

import workbench.evaluation
from workbench.evaluation import evaluate, run_benchmarks
from workbench.models import load_model

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
LETTERS = ["A", "B", "C", "D"]
LISTED = "\nA. {{%s}}\nB. {{%s}}\nC. {{%s}}\nD. {{%s}}\n"
MEDMCQA = {
    "doc_to_text": "{{question}}" + LISTED % ("opa", "opb", "opc", "opd") + "Answer:",
    "doc_to_target": "{{cop - 1}}",
}
MMLU = {
    "doc_to_text": "{{question}}" + LISTED % tuple(LETTERS) + "Answer:",
    "doc_to_target": "{{['A', 'B', 'C', 'D'].index(answer)}}",
}
CMMLU = {
    "doc_to_text": "{{Question}}" + LISTED % tuple(LETTERS) + "答案：",
    "doc_to_target": "{{['A', 'B', 'C', 'D'].index(Answer)}}",
}


@pytest.fixture(scope="module")
def loaded():
    return load_model("classroom/clinical", device="cpu")


def lines(*places: str, header: bool = False) -> str:
    """The rows of several public files, one after the other, with the header of the first."""
    if not SHARED.is_dir():
        pytest.skip(f"the public data sets are not at {SHARED}")
    texts = [(SHARED / place).read_text(encoding="utf-8") for place in places]
    bodies = [text.partition("\n")[2] if header and number else text for number, text in enumerate(texts)]
    return "".join(body if body.endswith("\n") else f"{body}\n" for body in bodies)


def parts(folder: str, *names: str) -> list[str]:
    return [f"{folder}/{name}" for name in names]


def case(name: str, folder: Path) -> tuple[Path, dict, int]:
    """A benchmark's file, the same as a task of lm-eval, and how many items it has."""
    if name == "medmcqa":
        path = folder / "dev.jsonl"
        path.write_text("".join(f"{line}\n" for line in lines("medmcqa/dev.json").split("\n")[:200]), encoding="utf-8")
        return path, {"dataset_path": "json", **MEDMCQA}, 200
    path = folder / "anatomy.csv"
    if name == "mmlu_medical":
        files = parts("mmlu_medical", "dev/anatomy_dev.csv", "val/anatomy_val.csv", "test/anatomy_test.csv")
        path.write_text(lines(*files), encoding="utf-8")
        names = {"column_names": ["question", *LETTERS, "answer"]}
        return path, {"dataset_path": "csv", "dataset_kwargs": names, **MMLU}, 154
    files = parts("cmmlu_medical_zh", "dev/anatomy.csv", "test/anatomy.csv")
    path.write_text(lines(*files, header=True), encoding="utf-8")
    return path, {"dataset_path": "csv", **CMMLU}, 153


def alone(
    loaded, folder: Path, files: dict[str, Path], task: dict, *, template: bool, num_fewshot: int = 0
) -> list[dict]:
    """What lm-eval gives by itself, one row for each item."""
    kwargs = {"data_files": {part: str(path) for part, path in files.items()}, "cache_dir": str(folder / "cache")}
    config = {
        "task": "theirs",
        "output_type": "multiple_choice",
        "test_split": "test",
        "doc_to_choice": LETTERS,
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        **task,
        "dataset_kwargs": {**task.get("dataset_kwargs", {}), **kwargs},
    }
    (folder / "theirs.yaml").write_text(yaml.safe_dump(config, allow_unicode=True), encoding="utf-8")
    model, tokenizer = loaded
    tasks = TaskManager(include_path=str(folder), include_defaults=False).load(["theirs"])
    tasks["tasks"]["theirs"].set_config("num_fewshot", num_fewshot)
    found = lm_eval.evaluate(
        lm=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=16),
        task_dict=tasks,
        bootstrap_iters=0,
        apply_chat_template=template,
        fewshot_as_multiturn=True,
    )
    return found["samples"]["theirs"]


def by_hand(loaded, context: str, letter: str, bare: bool) -> float:
    """Log-likelihood of a continuation: one unpadded forward pass, log-probabilities added up."""
    model, tokenizer = loaded
    before = tokenizer(context, add_special_tokens=False)["input_ids"]
    ids = tokenizer(context + letter, add_special_tokens=False)["input_ids"]
    assert ids[: len(before)] == before
    with torch.no_grad():
        scores = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return sum(float(scores[place - 1, ids[place]]) for place in range(len(before), len(ids)))


@pytest.mark.parametrize(
    ("name", "template"),
    [("medmcqa", True), ("mmlu_medical", True), ("cmmlu_medical", True), ("mmlu_medical", False)],
)
def test_our_numbers_are_those_of_lm_eval_alone_and_by_hand(name, template, loaded, tmp_path):
    path, task, items = case(name, tmp_path)
    theirs = alone(loaded, tmp_path, {"test": path}, task, template=template)
    scores = run_benchmarks(*loaded, {name: path}, chat_template=template, batch_size=16)
    ours = scores.outputs[name]
    assert len(theirs) == len(ours) == scores[name].n == items
    assert [output.value for output in ours] == [row["acc"] for row in theirs]
    assert scores[name].value == pytest.approx(sum(row["acc"] for row in theirs) / items)
    assert 0 < scores[name].value < 1
    for row in theirs[::8]:
        expected = [by_hand(loaded, context, letter, not template) for context, letter in row["arguments"]]
        found = [likelihood for ((likelihood, _),) in row["resps"]]
        torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=1e-4, atol=1e-4)


def test_few_shots_are_those_of_the_subject_as_lm_eval_takes_them(loaded, tmp_path):
    """In a folder of many subjects each question has the first solved examples of its own."""
    folder = tmp_path / "mmlu"
    for place in ("dev/anatomy_dev.csv", "dev/virology_dev.csv", "test/anatomy_test.csv"):
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        text = lines(f"mmlu_medical/{place}")
        (folder / place).write_text("".join(text.splitlines(keepends=True)[:40]), encoding="utf-8")
    names = {"column_names": ["question", *LETTERS, "answer"]}
    shots = {"fewshot_split": "dev", "fewshot_config": {"sampler": "first_n"}}
    files = {"test": folder / "test/anatomy_test.csv", "dev": folder / "dev/anatomy_dev.csv"}
    task = {"dataset_path": "csv", "dataset_kwargs": names, **MMLU, **shots}
    theirs = alone(loaded, tmp_path, files, task, template=True, num_fewshot=2)
    ours = run_benchmarks(*loaded, {"mmlu_medical": folder}, num_fewshot=2).outputs["mmlu_medical"]
    assert [output.value for output in ours] == [row["acc"] for row in theirs]
    assert theirs[0]["arguments"][0][0].count("Answer:") == 3


def test_the_tasks_of_the_package_run_in_lm_eval_without_us(loaded, tmp_path):
    """By name and folder, as its command line runs them, with the benchmark said in the metadata."""
    path, _, _ = case("medmcqa", tmp_path)
    folder = Path(workbench.evaluation.__file__).parent / "tasks"
    asked = {"benchmark": "medmcqa", "source": str(path), "shuffle_options": 5}
    tasks = TaskManager(include_path=str(folder), include_defaults=False, metadata=asked).load(["workbench_choice"])
    tasks["tasks"]["workbench_choice"].set_config("num_fewshot", 0)
    model, tokenizer = loaded
    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=16)
    found = lm_eval.evaluate(lm=lm, task_dict=tasks, limit=40, bootstrap_iters=0, apply_chat_template=True)
    ours = run_benchmarks(*loaded, {"medmcqa": path}, shuffle_options=5).outputs["medmcqa"][:40]
    theirs = found["samples"]["workbench_choice"]
    assert [output.value for output in ours] == [row["value"] for row in theirs]
    assert found["results"]["workbench_choice"]["value,none"] == pytest.approx(sum(o.value for o in ours) / 40)


def test_a_classroom_suite_scores_as_evaluate_scores_it(loaded):
    names = ("exam_backward", "entity_attribute")
    ours = run_benchmarks(*loaded, {name: f"classroom/{name}" for name in names})
    direct = evaluate(*loaded, "classroom", tasks=names, progress=False)
    for name in names:
        assert ours.outputs[name] == direct.outputs[name]
        assert ours[name] == direct[name]
