import hashlib
import json
import os
import re
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest

from workbench.classroom.skills import TASKS
from workbench.classroom.skills.courses import identifying
from workbench.classroom.skills.task import Draft, Pool, Task, held_out_names
from workbench.classroom.skills.wording import (
    Person,
    apart,
    condition_choices,
    listed,
    person,
    strangers,
    value_choices,
)
from workbench.classroom.world import Condition, World
from workbench.records import SKILLS, SPLITS

ROOT = Path(__file__).parents[2]
WORLD_FILE = ROOT / "data_samples" / "world" / "conditions.json"
UNSEEN_TASKS = ("abbreviation", "referral", "safety_check")


def condition(name: str, **changes: object) -> Condition:
    facts = {
        "synonym": f"{name} disease",
        "abbreviation": "",
        "organ_system": f"{name} system",
        "specialty": f"{name} medicine",
        "symptoms": (f"{name} pain", f"{name} rash", f"{name} ache"),
        "test": f"{name} scan",
        "treatment": f"{name} drops",
        "drug_class": f"{name} drug",
        "contraindication": f"{name} food",
        "cause": f"{name} germ",
    }
    return Condition(**{"name": name, **facts, **changes})


def pool(*conditions: Condition) -> Pool:
    return Pool(world=World(conditions), conditions=conditions, others=conditions)


def test_the_table_holds_every_skill_and_the_unseen_tasks():
    assert set(TASKS) == {*SKILLS, "exam_forward", "exam_backward", "preference", *UNSEEN_TASKS}


def test_every_task_has_all_splits_in_the_agreed_sizes(rows):
    for name, examples in rows.items():
        sizes = Counter(e.split for e in examples)
        assert list(sizes) == list(SPLITS), name
        fewest = 240 if name in UNSEEN_TASKS or name == "preference" else 400
        assert fewest <= sizes["train"] <= fewest + 80, name
        assert (sizes["validation"], sizes["test"], sizes["test_unseen"]) == (60, 120, 60), name


def test_ids_say_task_split_and_number_and_are_unique(rows):
    everything = [e for examples in rows.values() for e in examples]
    assert len({e.id for e in everything}) == len(everything)
    assert rows["question_answering"][7].id == "question_answering-train-0007"
    assert all(e.id.startswith(f"{e.skill}-{e.split}-") for e in everything)


def test_no_prompt_of_validation_or_test_occurs_in_train_of_any_task(rows):
    train = {e.prompt() for examples in rows.values() for e in examples if e.split == "train"}
    rest = [e.prompt() for examples in rows.values() for e in examples if e.split != "train"]
    assert not train & set(rest)


def test_test_questions_of_one_condition_are_worded_unlike_train_whatever_the_choices(rows):
    for name, examples in rows.items():
        asked = {(e.context, e.query, e.details()["condition"]) for e in examples if e.split == "train"}
        assert not [
            e for e in examples if e.split != "train" and (e.context, e.query, e.details()["condition"]) in asked
        ], name


def test_train_holds_every_fact_that_validation_and_test_ask_for(rows):
    for name, examples in rows.items():
        facts = {(e.details()["condition"], e.details()["kind"]) for e in examples if e.split == "train"}
        asked = {(e.details()["condition"], e.details()["kind"]) for e in examples if e.split in ("validation", "test")}
        assert asked <= facts, name


def test_training_covers_every_fact_of_every_seen_condition(rows, world):
    for name in ("question_answering", "multiple_choice"):
        facts = {(e.details()["condition"], e.details()["kind"]) for e in rows[name] if e.split == "train"}
        assert {c for c, _ in facts} == {c.name for c in world.seen}
        assert len(facts) == 6 * len(world.seen)


def test_held_out_conditions_are_named_in_test_unseen_alone(rows, world):
    names = [n for c in world.unseen for n in (c.name, c.synonym)]
    short = [c.abbreviation for c in world.unseen if c.abbreviation]
    pattern = re.compile(
        "|".join([rf"(?i:\b{re.escape(n)}\b)" for n in names] + [rf"\b{re.escape(s)}\b" for s in short])
    )
    for examples in rows.values():
        for e in examples:
            text = " | ".join([e.context, e.query, e.answer, *(e.choices or ()), e.meta])
            assert e.split == "test_unseen" or not pattern.search(text), text


def test_no_seen_row_shows_the_symptoms_that_identify_a_held_out_condition(rows, world):
    for e in (e for e in rows["conversation"] + rows["referral"] if e.split != "test_unseen"):
        for c in world.unseen:
            assert not all(symptom in e.context for symptom in c.symptoms), e.context


def test_test_unseen_is_about_held_out_conditions_only(rows, world):
    unseen = {c.name for c in world.unseen}
    for examples in rows.values():
        for e in examples:
            assert (e.details()["condition"] in unseen) == (e.split == "test_unseen"), e.id


def test_choices_of_seen_rows_come_from_seen_conditions(rows, world):
    fields = ("name", "test", "treatment", "cause", "drug_class", "organ_system", "contraindication")
    known = {value for field in fields for value in world.values(field, world.seen)}
    for name in ("multiple_choice", "exam_forward", "exam_backward"):
        for e in rows[name]:
            assert e.split == "test_unseen" or set(e.choices or ()) <= known


def test_the_answer_is_one_of_the_choices_and_choices_differ(rows):
    for name, examples in rows.items():
        for e in examples:
            if e.choices is not None:
                assert e.answer in e.choices, e.id
                assert len(set(e.choices)) == (2 if name == "preference" else 4), e.id


def test_the_right_choice_stands_at_every_place(rows):
    for name in ("multiple_choice", "exam_forward", "exam_backward"):
        places = Counter((e.choices or ()).index(e.answer) for e in rows[name])
        assert min(places.values()) > 0.2 * len(rows[name]), places


def test_exactly_one_choice_is_right(rows, world):
    by_name = {c.name: c for c in world.conditions}
    for e in rows["multiple_choice"] + rows["exam_forward"]:
        right = getattr(by_name[e.details()["condition"]], e.details()["kind"])
        assert [choice for choice in e.choices or () if choice == right] == [e.answer]
    for e in rows["exam_backward"]:
        kind = e.details()["kind"]
        value = getattr(by_name[e.answer], kind)
        for choice in set(e.choices or ()) - {e.answer}:
            other = getattr(by_name[choice], kind)
            assert not (set(value) <= set(other) if kind == "symptoms" else value == other), e.id


def test_the_same_prompt_never_has_two_answers(rows):
    for name, examples in rows.items():
        answers: dict[str, str] = {}
        for e in examples:
            assert answers.setdefault(e.prompt(), e.answer) == e.answer, e.prompt()
        if name not in ("multiple_choice", "exam_forward", "exam_backward"):
            assert len(answers) == len(examples), name


def test_named_symptoms_identify_their_condition(rows, world):
    symptoms = sorted(world.values("symptoms"), key=len, reverse=True)
    for e in rows["conversation"]:
        said, named = e.context, set()
        for symptom in symptoms:  # longest first: "upper abdominal pain" is no mention of "abdominal pain"
            if symptom in said:
                named.add(symptom)
                said = said.replace(symptom, "")
        fits = [c.name for c in world.conditions if named <= set(c.symptoms)]
        assert fits == [e.details()["condition"]], e.context


def test_answers_are_short_and_lower_case_but_for_abbreviations(rows):
    for name, examples in rows.items():
        for e in examples:
            limit = {"summarisation": 22, "preference": 18}.get(name, 14)
            assert 1 <= len(e.answer.split()) <= limit, e.answer
            assert name == "abbreviation" or e.answer == e.answer.lower()
            assert len(e.prompt().split()) <= 60


def test_rows_stay_small(rows):
    sizes = [len(json.dumps(e.to_dict())) for examples in rows.values() for e in examples]
    assert sum(sizes) / len(sizes) < 480


def test_meta_says_condition_organ_system_and_kind(rows, world):
    systems = {c.name: c.organ_system for c in world.conditions}
    for examples in rows.values():
        for e in examples:
            assert e.details()["organ_system"] == systems[e.details()["condition"]]
            assert e.details()["kind"]
            assert (e.stage in ("general", "broad", "specialist"), e.source) == (True, "classroom")


def test_the_world_identifies_conditions_by_symptoms_and_names(world):
    for c in world.conditions:
        assert not [o.name for o in world.conditions if o is not c and set(c.symptoms) <= set(o.symptoms)]
    names = [n for c in world.conditions for n in (c.name, c.synonym, c.abbreviation) if n]
    assert len(names) == len(set(names))


_DIGEST = """
import hashlib, json, sys
from pathlib import Path
from workbench.classroom.skills import TASKS
from workbench.classroom.world import load_world
world = load_world(Path(sys.argv[1]))
text = json.dumps([e.to_dict() for examples in TASKS.values() for e in examples(world)])
print(hashlib.sha256(text.encode()).hexdigest())
"""


def test_bytes_do_not_depend_on_the_hash_seed(rows):
    text = json.dumps([e.to_dict() for examples in rows.values() for e in examples])
    digests = {hashlib.sha256(text.encode()).hexdigest()}
    for seed in ("1", "4242"):
        run = subprocess.run(
            [sys.executable, "-c", _DIGEST, str(WORLD_FILE)],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        )
        digests.add(run.stdout.strip())
    assert len(digests) == 1


def test_a_fact_that_names_a_held_out_condition_is_left_out():
    conditions = (condition("alpha", cause="beta"), condition("beta", held_out=True), condition("gamma"))
    rows = TASKS["question_answering"](World(conditions))
    assert not [e for e in rows if e.split != "test_unseen" and "beta" in e.prompt() + e.answer]
    assert "cause" not in {e.details()["kind"] for e in rows if e.details()["condition"] == "alpha"}


def test_held_out_abbreviations_match_in_capitals_only():
    pattern = held_out_names(World((condition("sclerosis", abbreviation="AS", held_out=True),)))
    assert pattern.search("what is AS?")
    assert pattern.search("Sclerosis.")
    assert not pattern.search("as before")
    assert not held_out_names(World(())).search("anything")


def test_a_small_world_gives_fewer_rows_and_no_questions_without_enough_choices():
    small = World((condition("alpha"), condition("gamma")))
    assert TASKS["multiple_choice"](small) == []
    assert {e.split for e in TASKS["question_answering"](small)} == {"train"}


def test_a_task_draws_its_kinds_equally_often():
    task = Task(
        name="toy",
        stage="broad",
        kinds=("a", "b"),
        draft=lambda r, c, kind, _: Draft(query=f"{kind} {c.name} {r.random()}", answer=kind),
    )
    rows = task.examples(World((condition("alpha"), condition("gamma"), condition("delta"))))
    assert Counter(e.answer for e in rows if e.split == "test") == {"a": 60, "b": 60}
    assert all(one.answer != two.answer for one, two in pairwise(rows[:6]))


def test_wrong_choices_share_no_word_with_the_right_one_nor_the_class_of_a_treatment():
    own = condition("alpha", treatment="prednisone", drug_class="corticosteroid")
    near = condition("beta", treatment="prednisolone", drug_class="oral corticosteroid")
    far = [condition(name) for name in ("gamma", "delta", "epsilon")]
    right, wrong = "prednisone", {"gamma drops", "delta drops", "epsilon drops"}
    assert set(value_choices(Random(0), own, "treatment", pool(own, near, *far)) or ()) == {right, *wrong}
    assert set(condition_choices(Random(0), own, "treatment", pool(own, near, *far)) or ()) == {
        "alpha",
        "gamma",
        "delta",
        "epsilon",
    }
    assert value_choices(Random(0), own, "treatment", pool(own, near)) is None


def test_pairs_of_symptoms_identify_over_the_whole_world():
    one = condition("one", symptoms=("rash", "fever", "cough"))
    two = condition("two", symptoms=("fever", "rash", "thirst"))
    assert identifying(one, (one, two)) == [("rash", "cough"), ("fever", "cough")]


def test_wordings_that_share_a_word_do_not_count_as_strangers():
    assert not apart("dry cough", "cough")
    assert apart("dry cough", "fever")
    lone = condition("alpha", symptoms=("dry cough", "rash"))
    close = condition("beta", symptoms=("cough", "rash"))
    assert strangers(Random(0), lone, pool(lone, close), "symptoms", 1) is None


@pytest.mark.parametrize(("age", "noun"), [(54, "a 54 year old man"), (80, "an 80 year old man")])
def test_a_person_is_named_with_the_right_article(age, noun):
    assert Person(age=age, sex="man").noun == noun


def test_a_condition_of_one_sex_gets_a_patient_of_it():
    sexes = {person(Random(seed), condition("enlarged prostate")).sex for seed in range(20)}
    assert sexes == {"man"}
    women = [person(Random(seed), condition("x", symptoms=("missed periods",))) for seed in range(20)]
    assert {who.sex for who in women} == {"woman"}
    assert all(20 <= who.age < 50 for who in women)


def test_lists_read_as_sentences():
    assert (listed(["a"]), listed(["a", "b", "c"])) == ("a", "a, b and c")
