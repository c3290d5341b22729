import hashlib
import json
import os
import re
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from workbench.classroom.general import TASKS
from workbench.classroom.general.both import KINDS as BOTH_KINDS
from workbench.classroom.general.facts import FACTS
from workbench.classroom.general.instruction import quotas
from workbench.classroom.general.rows import Row, take
from workbench.classroom.general.rules import RULES
from workbench.classroom.world import World, load_world
from workbench.evaluation.constraints import KINDS, check_names, passes

ROOT = Path(__file__).parents[2]
GENERATION = ("note_section", "full_note", "impression", "discharge_summary", "short_question")
CONSTRAINED = ("instruction", "both")
VISIT_MARKS = ("nurse:", "how are you", "i am worried", "let me sum up")
FRAME_MARKS = {
    "note_section": VISIT_MARKS,
    "full_note": VISIT_MARKS,
    "impression": ("report of", "study:", "sent to us"),
    "discharge_summary": ("the ward", "work-up", "ambulance"),
    "short_question": ("hello", "dear team", "good evening"),
}
SEEN_SPLITS = ("train", "validation", "test")


@pytest.fixture(scope="module")
def world():
    return load_world(ROOT / "data_samples" / "world" / "conditions.json")


@pytest.fixture(scope="module")
def tasks(world):
    return {name: build(world) for name, build in TASKS.items()}


def rows(tasks, *names):
    return [example for name in names or tasks for example in tasks[name]]


def text_of(example):
    return "\n".join([example.context, example.query, example.answer, example.meta])


def test_sizes(tasks):
    sizes = {name: Counter(example.split for example in examples) for name, examples in tasks.items()}
    usual = {"train": 280, "validation": 60, "test": 100, "test_unseen": 40}
    assert sizes["instruction"] == {"train": 1600, "validation": 120, "test": 240}
    assert sizes["general_knowledge"] == {"train": 400, "validation": 60, "test": 120}
    assert all(sizes[name] == usual for name in ("both", *GENERATION))
    assert set(sizes["prose"]) == {"train", "validation"}


def test_records_are_well_formed(tasks):
    for name, examples in tasks.items():
        assert len({example.id for example in examples}) == len(examples)
        stage = "general" if name in ("instruction", "general_knowledge", "prose") else "specialist"
        assert {(e.skill, e.stage, e.source) for e in examples} == {(name, stage, "classroom")}
        for example in examples:
            assert example.query.strip()
            assert example.answer == example.answer.strip() != ""
            assert not re.search(r"[{}]", example.context + example.query)
            assert isinstance(example.details(), dict)


def test_all_files_together_stay_small(tasks):
    size = sum(len(json.dumps(example.to_dict())) + 1 for example in rows(tasks))
    assert size < 5_000_000


def test_held_out_conditions_are_named_in_prose_and_unseen_tests_only(tasks, world):
    names = [name for c in world.unseen for name in (c.name, c.synonym, c.abbreviation) if name]
    assert len(names) >= 24
    # Letters of one case only may be part of a word of everyday text, so abbreviations keep their capitals.
    find = re.compile("|".join(rf"\b{re.escape(n) if n.isupper() else '(?i:' + re.escape(n) + ')'}\b" for n in names))
    found = defaultdict(Counter)
    for example in rows(tasks):
        if find.search(text_of(example)):
            found[example.skill][example.split] += 1
    assert set(found.pop("prose")) == {"train", "validation"}
    assert {split for counts in found.values() for split in counts} == {"test_unseen"}
    assert set(found) == {"both", *GENERATION}


def test_no_prompt_is_shared_between_splits_or_has_two_answers(tasks):
    for name in TASKS:
        if name != "prose":
            prompts = [example.prompt() for example in tasks[name]]
            assert len(set(prompts)) == len(prompts), name


def test_prose_documents_differ(tasks):
    texts = [example.answer for example in tasks["prose"]]
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("hash_seed", ["1", "4242"])
def test_same_rows_whatever_the_hash_seed(tasks, hash_seed):
    program = (
        "import hashlib, sys; from pathlib import Path\n"
        "from workbench.classroom.general import TASKS; from workbench.classroom.world import load_world\n"
        "world = load_world(Path(sys.argv[1]))\n"
        "rows = [repr(e.to_dict()) for build in TASKS.values() for e in build(world)]\n"
        "print(hashlib.sha256('\\n'.join(rows).encode()).hexdigest())\n"
    )
    path = ROOT / "data_samples" / "world" / "conditions.json"
    run = subprocess.run(
        [sys.executable, "-c", program, str(path)],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
    )
    here = hashlib.sha256("\n".join(repr(e.to_dict()) for e in rows(tasks)).encode()).hexdigest()
    assert run.stdout.strip() == here


def test_a_tiny_world_gives_fewer_rows(world):
    tiny = World((*world.seen[:2], world.unseen[0]))
    for build in TASKS.values():
        assert build(tiny)


def test_facts_have_one_short_answer_each():
    assert 60 <= len(FACTS) <= 80
    assert all(re.fullmatch("[a-z]+", fact.answer) for fact in FACTS)
    questions = [question for fact in FACTS for question in fact.questions]
    assert len(set(questions)) == len(questions)
    assert all(fact.answer not in fact.wrong and fact.wrong for fact in FACTS)


def test_every_kind_of_constraint_is_taught(tasks):
    assert set(RULES) == set(KINDS)
    for split in SEEN_SPLITS:
        assert {e.details()["kind"] for e in tasks["instruction"] if e.split == split} == set(RULES)
    for split in (*SEEN_SPLITS, "test_unseen"):
        assert {e.details()["kind"] for e in tasks["both"] if e.split == split} == set(BOTH_KINDS)
    assert len(BOTH_KINDS) >= 8


def test_every_fact_is_in_training(tasks):
    taught = "\n".join(e.query + e.answer for e in tasks["instruction"] if e.split == "train").lower()
    known = {e.answer for e in tasks["general_knowledge"] if e.split == "train"}
    assert all(fact.noun.lower() in taught and fact.answer in taught and fact.answer in known for fact in FACTS)


def test_words_are_respelt_in_training_before_they_are_tested(tasks):
    for kind in ("upper_case", "title_case", "json", "quoted", "spelled"):
        answers = defaultdict(set)
        for example in tasks["instruction"]:
            if example.details()["kind"] == kind:
                word = example.answer.lower() if kind != "json" else next(iter(json.loads(example.answer).values()))
                answers[example.split].add(word)
        assert answers["test"] | answers["validation"] <= answers["train"]


def test_reference_answers_pass_their_own_checks(tasks):
    for example in rows(tasks, *CONSTRAINED):
        details = example.details()
        assert passes(example.answer, details["checks"]), example
        assert len(details["checks"]) > 1 or details["kind"] in ("exact_repeat", "spelled")
        assert set(check_names(details["checks"])) <= set(KINDS)


def test_plausible_wrong_answers_fail(tasks):
    for example in rows(tasks, *CONSTRAINED):
        checks, kind = example.details()["checks"], example.details()["kind"]
        plain = next((c["value"] for c in checks if c["kind"] == "mentions"), None)
        wrong = [example.answer + " xx yy", "i do not know", "sure", ""]
        if kind not in ("lower_case", "yes_no"):
            # The right content without the form.
            wrong += [plain] if plain else [checks[0]["value"]]
        if kind == "yes_no":
            wrong += ["no" if example.answer == "yes" else "yes", f"{example.answer}, it is"]
        elif kind == "spelled":
            wrong.append("x-" + example.answer)
        elif kind != "mentions":
            # The right form with another content.
            content = plain or checks[-1]["value"]
            wrong.append(re.sub(re.escape(content), "qq", example.answer, flags=re.IGNORECASE))
        # More words after the answer are forgiven where the constraint says nothing on length.
        lax = ("starts_with", "mentions")
        wrong = wrong[1:] if kind in (*lax, "bullets", "numbered", "comma_list") else wrong
        assert [text for text in wrong if passes(text, checks)] == [], example


def test_instruction_names_no_condition(tasks, world):
    names = {c.name for c in world.conditions} | set(world.values("symptoms")) | set(world.values("test"))
    for example in rows(tasks, "instruction", "general_knowledge"):
        assert not any(name in example.query + example.answer for name in names)


def test_yes_and_no_are_about_equally_frequent(tasks):
    for name in CONSTRAINED:
        said = Counter(e.answer for e in tasks[name] if e.details()["kind"] == "yes_no" and e.split == "train")
        assert 0.35 < said["yes"] / said.total() < 0.65


def test_training_grants_and_denies_a_claim_about_every_fact(tasks):
    claims = Counter()
    for example in tasks["instruction"]:
        if example.split == "train" and example.details()["kind"] == "yes_no":
            noun = next(fact.noun for fact in FACTS if f"s {fact.noun} " in example.query)
            claims[noun, example.answer] += 1
    assert len(claims) == 2 * len(FACTS)
    assert set(claims.values()) <= {2, 3}


def test_general_knowledge_tests_use_other_phrasings(tasks):
    openings = defaultdict(set)
    for example in tasks["general_knowledge"]:
        fact = next(f for f in FACTS if any(q[1:] in example.query for q in f.questions))
        which = next(n for n, q in enumerate(fact.questions) if q[1:] in example.query)
        openings[example.split].add((example.query.split(":")[0] if ":" in example.query else "", which))
    assert not openings["test"] & openings["train"]
    assert not openings["validation"] & openings["train"]


@pytest.mark.parametrize("name", GENERATION)
def test_generation_rows_follow_from_their_context(tasks, world, name):
    systems = {c.name: c.organ_system for c in world.conditions}
    for example in tasks[name]:
        details = example.details()
        assert 40 <= len(example.context.split()) <= 110
        assert 8 <= len(example.answer.split()) <= 40
        assert example.answer == example.answer.lower()
        assert details["organ_system"] == systems[details["condition"]]
        assert len(details["entities"]) >= 2
        assert all(fact in example.answer and fact in example.context for fact in details["entities"])
        # All that varies in an answer can be copied: numbers, names, facts.
        numbers = re.findall(r"\d+|\b(?:two|three|four|five|six|seven|eight|nine)\b", example.answer)
        assert all(number in example.context for number in numbers)


@pytest.mark.parametrize("name", GENERATION)
def test_generation_contexts_come_in_several_frames(tasks, name):
    frames = Counter(mark for example in tasks[name] for mark in FRAME_MARKS[name] if mark in example.context)
    assert frames.total() == len(tasks[name])
    assert len(frames) >= 3
    assert min(frames.values()) > 100


def test_patients_can_have_what_they_have(tasks):
    for example in rows(tasks, *GENERATION):
        if re.search("prostat|testic", example.context):
            assert "woman" not in example.context
        if "missed periods" in example.context:
            assert "woman" in example.context


def test_prose_tells_every_fact_of_every_condition(tasks, world):
    texts = defaultdict(str)
    for example in tasks["prose"]:
        if example.split == "train" and example.details():
            texts[example.details()["condition"]] += example.answer + "\n"
    assert set(texts) == {c.name for c in world.conditions}
    for condition in world.conditions:
        text = texts[condition.name]
        for field in ("organ_system", "specialty", "test", "treatment", "cause", "contraindication", "drug_class"):
            assert text.count(getattr(condition, field)) >= 2, (condition.name, field)
        assert all(symptom in text for symptom in condition.symptoms)
        assert condition.synonym in text
        assert condition.name.upper() in text
        assert "\n- " in text or "\n1. " in text


def test_prose_documents_have_the_agreed_length(tasks):
    counts = [len(example.answer.split()) for example in tasks["prose"]]
    assert min(counts) >= 40
    assert max(counts) <= 90


def test_quotas_follow_their_weights():
    assert quotas(7, {"a": 2, "b": 2, "c": 2}) == {"a": 3, "b": 2, "c": 2}
    assert quotas(9, {"a": 4, "b": 2, "c": 2}) == {"a": 5, "b": 2, "c": 2}


def test_take_never_deals_a_prompt_twice():
    used = {("", "a"): "1"}
    dealt = take([Row(query=q, answer="1") for q in "abbcd"], {"train": 2, "test": 2}, used)
    assert [[row.query for row in rows] for rows in dealt.values()] == [["b", "c"], ["d"]]
