"""A curriculum on files as they lie around: general instructions, exams and abstracts, then visit notes."""

import sys
import warnings
from pathlib import Path

import pytest
from peft import LoraConfig

from workbench.curriculum.curriculum import Curriculum
from workbench.curriculum.difficulty import difficulty, stage_by_difficulty
from workbench.curriculum.memory import LongTermMemory, ShortTermMemory
from workbench.curriculum.stage import Stage
from workbench.data import Choice, load_examples
from workbench.errors import ConfigError, WorkbenchWarning
from workbench.training import train

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
from pico_language import byte_tokenizer, pico

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
pytestmark = pytest.mark.skipif(not SHARED.is_dir(), reason=f"no real data at {SHARED}")
CONTEXT = 1500
FILES = {
    "general": (
        "self_instruct/seed_tasks.jsonl",
        {
            "skill": "general",
            "context": lambda row: row["instances"][0]["input"],
            "query": "instruction",
            "answer": lambda row: row["instances"][0]["output"],
        },
    ),
    "exam": (
        "medmcqa/dev.json",
        {
            "skill": "exam", "query": "question", "choices": ["opa", "opb", "opc", "opd"], "id": "id",
            "answer": Choice("cop", first=1),
        },
    ),
    "abstract": (
        "pubmedqa/pqal_dev.json",
        {
            "skill": "abstract", "context": lambda row: "\n".join(row["CONTEXTS"]), "query": "QUESTION",
            "answer": "final_decision",
        },
    ),
    "specialist": (
        "mts_dialog",
        {"skill": "note", "context": "dialogue", "query": "Write the section.", "answer": "section_text"},
    ),
}  # fmt: skip


def examples(name: str) -> list[dict]:
    file, mapping = FILES[name]
    dataset, report = load_examples(SHARED / file, on_error="collect", limit=24, **mapping)
    assert report.kept + len(report.bad) >= 24
    return [row | {"id": f"{name}/{row['id']}"} for row in dataset.to_list()]


def test_staged_by_loss_and_trained_in_three_tiers(tmp_path) -> None:
    model, tokenizer = pico(context=CONTEXT), byte_tokenizer(chat=True)
    tiers = {"general": examples("general"), "broad": examples("exam") + examples("abstract"),
             "specialist": examples("specialist")}  # fmt: skip
    whole = [row for rows in tiers.values() for row in rows]
    values = difficulty(whole, model=model, tokenizer=tokenizer, progress=False)
    over = sum(value != value for value in values)
    assert 0 < over < len(whole)  # abstracts and visits of more than 1,500 bytes
    stages = []
    for name, rows in tiers.items():
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always", WorkbenchWarning)
            (part,) = stage_by_difficulty(rows, model=model, tokenizer=tokenizer, num_stages=1, too_long="drop",
                                          names=[name], settings={"steps": 2}, progress=False)  # fmt: skip
        lost = len(rows) - len(part.examples)
        assert lost == 0 or f"{lost} of {len(rows)} examples are longer" in str(told[-1].message)
        stages.append(part)
    made = Curriculum(stages, short_term=ShortTermMemory(8), long_term=LongTermMemory(9), batch_size=2)
    run = train(
        model, tokenizer, curriculum=made, output_dir=tmp_path / "run", batch_size=2, progress=False,
        adapter=LoraConfig(r=2, target_modules=["q_proj"]),
    )  # fmt: skip
    assert run.state == "finished"
    assert [row["stage"] for row in made.history] == [name for name in tiers for _ in range(2)]


def test_test_rows_are_refused() -> None:
    rows = load_examples(SHARED / FILES["exam"][0], split="test", limit=3, **FILES["exam"][1])
    with pytest.raises(ConfigError, match="is of split 'test'"):
        Stage(name="exam", data=rows)
