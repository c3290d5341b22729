"""The classroom's build: tokenizer, drills, batches, and that what is shipped is what the code makes."""

import json
import random
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaForCausalLM

import workbench as wb
from workbench.classroom.build import TASKS, build_models, read_examples, write_examples
from workbench.classroom.drills import drills
from workbench.classroom.plan import BASE, GROUPS, TUNINGS, group_of
from workbench.classroom.tokenizer import train_tokenizer
from workbench.classroom.train import Item, ModelSize, Phase, _batches, encode, fit, new_model
from workbench.classroom.world import load_world
from workbench.models import chat_prompt, data_samples_root
from workbench.records import SKILLS, Example

ROOT = data_samples_root()
PICO = ModelSize(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["asthma is confirmed by spirometry", "which test confirms asthma?"] * 3, vocab_size=300)


@given(st.text(max_size=40))
def test_any_text_comes_back_from_the_tokenizer(tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False).input_ids
    back = tokenizer.decode(ids)
    # A space is put before the first word, and a special token's own name is that token.
    assert back.removeprefix(" ") == text.removeprefix(" ") or "<|" in text


def test_a_word_has_the_same_token_in_front_and_in_the_middle(tokenizer):
    front = tokenizer("asthma", add_special_tokens=False).input_ids
    middle = tokenizer("is asthma", add_special_tokens=False).input_ids
    assert middle[-len(front) :] == front


def test_the_template_ends_where_the_answer_begins(tokenizer):
    assert chat_prompt(tokenizer, "which test?") == "<|user|>which test?<|end|><|assistant|>"


def test_encoding_counts_the_answer_alone(tokenizer):
    row = Example(id="a", skill="question_answering", query="which test?", answer="spirometry")
    item = encode(row, tokenizer, answers_only=True)
    assert tokenizer.decode(item.ids[item.start :]).strip() == "spirometry<|end|>"
    assert encode(row, tokenizer, answers_only=False).start == 1


def test_batches_keep_to_their_size_and_lose_nothing():
    items = [Item(ids=[0] * random.Random(n).randint(2, 50)) for n in range(512)]
    batches = _batches(iter(items), batch_tokens=120, rng=random.Random(0))
    drawn = []
    while len(drawn) < len(items):
        batch = next(batches)
        assert len(batch) * max(len(item.ids) for item in batch) <= 120
        drawn += batch
    assert sorted(map(id, drawn)) == sorted(map(id, items))


def test_training_lowers_the_loss_and_repeats_with_its_seed(tokenizer):
    rows = [Example(id=str(n), skill="ner", query=f"which test {n}?", answer="spirometry") for n in range(6)]
    groups = {"skills": [encode(row, tokenizer, answers_only=True) for row in rows]}
    phase = Phase(shares={"skills": 1.0}, tokens=6_000, lr=1e-2, answers_only=True, batch_tokens=128)

    def train(seed):
        told = []
        model = fit(new_model(PICO, tokenizer, seed=seed), groups, phase, seed=seed, report=told.append)
        losses = [float(re.findall(r"loss ([\d.]+)", line)[0]) for line in told]
        return model.lm_head.weight.detach(), losses

    weights, losses = train(0)
    assert len(losses) == 10
    assert losses[-1] < 0.5 * losses[0]
    assert torch.equal(weights, train(0)[0])
    assert not torch.equal(weights, train(1)[0])


def test_a_tiny_build_saves_models_that_load(tmp_path):
    """The whole path of `make classroom`, with a handful of rows and steps."""
    (tmp_path / "world").mkdir()
    (tmp_path / "world" / "conditions.json").write_bytes((ROOT / "world" / "conditions.json").read_bytes())
    counts = write_examples(tmp_path)
    assert counts["question_answering"] > 400
    build_models(tmp_path, tmp_path / "models", scale=0.0001, report=lambda line: None)
    for name in ("base", *TUNINGS):
        model, loaded = wb.load_model(tmp_path / "models" / name, device="cpu")
        assert isinstance(model, LlamaForCausalLM)
        assert model.config.max_position_embeddings >= 1024
        assert loaded.chat_template


def test_shipped_rows_are_the_generated_ones(tmp_path):
    (tmp_path / "world").mkdir()
    (tmp_path / "world" / "conditions.json").write_bytes((ROOT / "world" / "conditions.json").read_bytes())
    write_examples(tmp_path)
    fresh = {path.name: path.read_bytes() for path in (tmp_path / "examples").iterdir()}
    shipped = {path.name: path.read_bytes() for path in (ROOT / "examples").iterdir()}
    assert fresh.keys() == shipped.keys()
    assert [name for name in fresh if fresh[name] != shipped[name]] == []


def test_shipped_files_are_small():
    def size(folder: Path) -> int:
        return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())

    tables = size(ROOT / "results")
    assert tables <= 1e6
    assert size(ROOT) - size(ROOT / "models") - size(ROOT / "skills") - tables <= 8e6
    assert size(ROOT / "models") <= 12e6
    assert size(ROOT / "skills") <= 6e6


def test_no_model_is_taught_what_is_held_back():
    taught = {task for task in TASKS if group_of(task)}
    assert taught == {*SKILLS, "exam_forward", "exam_backward", "instruction", "general_knowledge", "prose"}
    assert "instruction" not in [task for task in GROUPS if GROUPS[task] in TUNINGS["clinical"].shares]
    assert not {"skills", "exam"} & set(TUNINGS["instruct"].shares)
    assert sum(BASE.shares.values()) == pytest.approx(1)


def test_every_fact_names_a_source_or_says_that_none_was_read():
    rows = json.loads((ROOT / "world" / "conditions.json").read_text())
    assert len(rows) >= 80
    for row in rows:
        for source in row["sources"].values():
            assert source == "unverified" or source.startswith("https://") or source.startswith("http://"), row["name"]


def test_drills_name_no_held_out_condition():
    world = load_world(ROOT / "world" / "conditions.json")
    text = "\n".join(row.answer for row in drills(world, 2_000))
    for condition in world.unseen:
        for name in (condition.name, condition.synonym):
            assert not re.search(rf"\b{re.escape(name)}\b", text), name


def test_no_training_row_names_a_held_out_condition():
    world = load_world(ROOT / "world" / "conditions.json")
    names = [name for c in world.unseen for name in (c.name, c.synonym, c.abbreviation) if name]
    pattern = re.compile("|".join(rf"\b{re.escape(name)}\b" for name in names))
    for task, rows in read_examples(ROOT).items():
        if task == "prose":
            continue
        leaks = [
            row.id for row in rows if row.split != "test_unseen" and pattern.search(f"{row.prompt()} {row.answer}")
        ]
        assert leaks == []
