"""The report on a clinical generation task and the embedding F1, against plain loops; the five tasks' public files."""

from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizerFast

import workbench as wb
from workbench.data import load_examples
from workbench.errors import ConfigError, DataError
from workbench.evaluation import GENERATION, Task, generation_report, score
from workbench.evaluation.embedding_f1 import embedding_f1
from workbench.evaluation.suites import CLASSROOM
from workbench.records import Example, Output, records

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
FILES = {
    "note_section": ("mts_dialog/MTS-Dialog-ValidationSet.csv", 100),
    "full_note": ("aci_bench/valid.csv", 20),
    "short_question": ("meqsum/questions_800.jsonl", 800),
}
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "cat", "sat", "on", "mat", "[", "]", "sep")


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    tokenizer = BertTokenizerFast(vocab={word: i for i, word in enumerate(WORDS)}, model_max_length=9)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=16,
        initializer_range=1.0,
    )
    return BertModel(config).eval(), tokenizer


def plainly(encoder, reference: str, output: str) -> tuple[float, float, float]:
    model, tokenizer = encoder
    states = []
    for text in (reference, output):
        ids = tokenizer(text, split_special_tokens=True)["input_ids"]
        with torch.no_grad():
            states.append(model(torch.tensor([ids])).last_hidden_state[0, 1:-1])
    table = [[torch.cosine_similarity(x, y, dim=0).item() for x in states[0]] for y in states[1]]
    precision = max(0, sum(max(row) for row in table) / len(table))
    recall = max(0, sum(max(row[i] for row in table) for i in range(len(states[0]))) / len(states[0]))
    return precision, recall, 2 * precision * recall / (precision + recall)


def test_embedding_f1_is_the_formula_whatever_the_batch(encoder):
    references = ["the cat sat on the mat", "cat", "the [SEP] mat", "mat on cat"]
    outputs = ["the cat sat", "the mat sat on the cat", "the mat", "mat on cat"]
    wanted = [plainly(encoder, *pair) for pair in zip(references, outputs)]
    for batch_size in (1, 3, 32):
        found = embedding_f1(references, outputs, *encoder, batch_size=batch_size)
        assert torch.allclose(torch.tensor(found), torch.tensor(wanted), atol=1e-5)
    assert found[-1] == pytest.approx((1, 1, 1))
    assert min(found[0][:2]) < 0.99
    # "[SEP]" in a text is four words of it, not the end of the sentence.
    assert len({round(value, 4) for value in found[2]}) > 1


def test_a_text_beyond_the_encoders_context_is_read_in_windows(encoder):
    long = "the cat sat on the mat cat the cat sat on the mat cat"  # seven words fit between the two marks
    half = "the cat sat on the mat cat"
    assert embedding_f1([long], [half], *encoder)[0] == pytest.approx((1, 1, 1), abs=1e-5)
    cut = embedding_f1([half + " sat mat sat"], [half], *encoder)[0]
    assert cut[0] == pytest.approx(1, abs=1e-5)
    assert cut[1] < 0.999


def test_embedding_f1_leaves_the_model_as_it_was_and_gives_nothing_for_nothing(encoder):
    model, _ = encoder
    model.train()
    assert embedding_f1(["cat", ""], ["", "cat"], *encoder) == [(0, 0, 0), (0, 0, 0)]
    assert model.training
    model.eval()


def test_the_report_has_each_part_and_their_mean(encoder):
    answers = ["the cat sat on the mat", "the mat", "cat on mat"]
    outputs = ["the cat sat on mat", "", "the cat"]
    examples = [Example(id=str(i), skill="s", query="q", answer=answer) for i, answer in enumerate(answers)]
    report = generation_report(examples, outputs).set_index("metric")
    assert list(report.index) == ["rouge_1", "rouge_2", "rouge_l", "bleu", "meteor", "composite"]
    for metric in report.index:
        mean = sum(score(example, text, metric) for example, text in zip(examples, outputs)) / 3
        assert report.loc[metric, "value"] == pytest.approx(100 * mean)
    assert (set(report.n), set(report.empty_outputs)) == ({3}, {1})
    assert ((report.low <= report.value) & (report.value <= report.high)).all()
    assert report.equals(generation_report(examples, outputs).set_index("metric"))
    with_encoder = generation_report(examples, outputs, encoder=encoder).set_index("metric")
    f1 = 100 * sum(row[2] for row in embedding_f1(answers, outputs, *encoder)) / 3
    parts = [with_encoder.loc[name, "value"] for name in ("rouge_l", "bleu", "meteor")] + [f1]
    assert with_encoder.loc["embedding_f1", "value"] == pytest.approx(f1)
    assert with_encoder.loc["composite", "value"] == pytest.approx(sum(parts) / 4)


def test_bad_input_is_one_clear_error(encoder, monkeypatch):
    asked = Example(id="e1", skill="s", query="q", answer="")
    with pytest.raises(DataError, match="example 'e1' has no answer"):
        generation_report([asked], ["x"])
    with pytest.raises(DataError, match="1 outputs for 2 examples"):
        generation_report([asked, asked], ["x"])
    with pytest.raises(DataError, match="2 examples with 1 ids"):
        generation_report([asked, asked], [Output(id="e1", text="x", value=0)])
    monkeypatch.setattr(type(encoder[1]), "is_fast", False)
    with pytest.raises(ConfigError, match=r"BertTokenizer.* is not a fast tokenizer; load it by AutoTokenizer"):
        embedding_f1(["cat"], ["cat"], *encoder)


def test_the_five_tasks_are_those_of_the_classroom():
    assert set(GENERATION) == {task for task, (group, _) in CLASSROOM.items() if group == "generation"}
    assert all(columns["skill"].text == task for task, columns in GENERATION.items())


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"the public data sets are not at {SHARED}")
@pytest.mark.parametrize("task", FILES)
def test_a_public_file_becomes_examples(task):
    name, count = FILES[task]
    rows = records(load_examples(SHARED / name, **GENERATION[task]))
    assert len(rows) == count
    assert all(row.context and row.answer and row.query.endswith(".") for row in rows)
    report = generation_report(rows[:5], [row.answer for row in rows[:5]]).set_index("metric")
    assert report.loc["composite", "value"] > 99


@pytest.mark.parametrize(
    ("task", "header", "cells"),
    [
        ("impression", "uid,findings,impression", "7,Clear lungs.,No acute disease."),
        ("discharge_summary", "note_id,input,target", "7,Came with chest pain.,Treated."),
    ],
)
def test_the_files_that_need_a_licence_are_read_by_their_columns(task, header, cells, tmp_path):
    (tmp_path / "rows.csv").write_text(f"{header}\n{cells}\n", encoding="utf-8")
    (row,) = records(load_examples(tmp_path / "rows.csv", **GENERATION[task]))
    assert (row.id, row.context, row.answer) == tuple(cells.split(","))


def test_from_a_file_to_the_report_of_a_model(tmp_path):
    """One file, one `evaluate`, one report: outputs are paired by id although some examples were too long."""
    lines = [
        "question,summary",
        f"{'my knee hurts. ' * 500},what helps?",
        "why does my knee hurt?,why does a knee hurt?",
    ]
    (tmp_path / "questions.csv").write_text("\n".join(lines), encoding="utf-8")
    examples = load_examples(tmp_path / "questions.csv", **GENERATION["short_question"])
    model, tokenizer = wb.load_model("classroom/base")
    task = Task(name="short_question", metric="composite", examples=examples, max_new_tokens=4)
    scores = wb.evaluate(model, tokenizer, [task], on_long="skip", progress=False)
    report = generation_report(examples, scores.outputs["short_question"]).set_index("metric")
    assert report.loc["composite", "n"] == 1
    assert report.loc["composite", "value"] == pytest.approx(100 * scores["short_question"].value)
