"""Every answer of the classroom is right: it follows from its prompt, or from the world's facts."""

import re
from collections import Counter

from workbench.classroom.skills.findings import CUES, OPEN


def test_labels_are_balanced(rows):
    for name, labels in (("inference", 3), ("entity_attribute", 4), ("relation_extraction", 5), ("safety_check", 2)):
        for split in ("train", "test"):
            counts = Counter(e.answer.rpartition(": ")[2] for e in rows[name] if e.split == split)
            assert len(counts) == labels
            assert max(counts.values()) <= 1.35 * min(counts.values()), (name, split, counts)


STATUS = {cue: status for status, cues in {**CUES, "open": OPEN}.items() for cue in cues}


def finding(note: str) -> tuple[str, str]:
    """The one finding of a note, and the cue right after it."""
    found = re.findall(rf"\. ([^.]+?) ({'|'.join(STATUS)})(?=\.)", note)
    assert len(found) == 1, note
    return found[0]


def test_inference_labels_follow_from_the_note_and_the_claim(rows):
    seen = set()
    for e in rows["inference"]:
        claim = re.search(r"the patient (has|is free of) ([^.]+)\.", e.query)
        named, cue = finding(e.context)
        assert claim is not None
        assert named == claim[2]
        agrees = (STATUS[cue] == "present") == (claim[1] == "has")
        label = "neutral" if STATUS[cue] == "open" else "entailment" if agrees else "contradiction"
        assert e.answer == f"{named} {cue}: {label}", (e.context, e.query)
        seen.add((claim[1], STATUS[cue]))
    assert len(seen) == 6


def test_the_status_of_an_entity_follows_from_the_words_after_it(rows):
    seen = set()
    for e in rows["entity_attribute"]:
        named, cue = finding(e.context)
        assert named in e.query
        assert e.answer == f"{named} {cue}: {STATUS[cue]}"
        seen.add(cue)
    assert seen == set(STATUS) - set(OPEN)


def test_copied_answers_occur_in_their_context(rows):
    for e in rows["reading_comprehension"]:
        assert re.search(rf"\b{re.escape(e.answer)}\b", e.context)
    for e in rows["ner"]:
        assert all(part.split(": ")[1] in e.context for part in e.answer.split("; "))


def test_summaries_hold_age_sex_condition_test_and_treatment(rows, world):
    by_name = {c.name: c for c in world.conditions}
    for e in rows["summarisation"]:
        c = by_name[e.details()["condition"]]
        pattern = rf"\d\d year old (wo)?man with {c.name}, confirmed by {c.test}, treated with {c.treatment}"
        assert re.fullmatch(pattern, e.answer)


def test_classification_lists_the_systems_of_the_named_conditions_sorted(rows, world):
    systems = {c.name: c.organ_system for c in world.conditions}
    for e in rows["classification"]:
        assert e.answer == ", ".join(sorted({systems[name] for name in e.details()["entities"]}))
        assert all(name in e.context for name in e.details()["entities"])


def test_related_entities_have_one_relation_to_the_condition(rows, world):
    by_name = {c.name: c for c in world.conditions}
    fields = {"treats": "treatment", "causes": "cause", "confirms": "test", "same as": "synonym"}
    for e in (e for e in rows["entity_relation"] if e.answer in fields):
        c = by_name[e.details()["condition"]]
        assert getattr(c, fields[e.answer]) in e.query
        assert c.name in e.query


def test_the_named_entities_of_a_note_cannot_be_guessed_from_its_condition(rows, world):
    by_name = {c.name: c for c in world.conditions}
    for e in rows["ner"]:
        found = dict(part.split(": ") for part in e.answer.split("; "))
        c = by_name[e.details()["condition"]]
        assert found.get("symptom") not in c.symptoms
        assert found.get("treatment") != c.contraindication
        assert ", ".join(found) == e.details()["kind"]


def test_a_choice_between_two_other_names_has_the_right_one(rows, world):
    by_name = {c.name: c for c in world.conditions}
    for e in rows["entity_synonymy"]:
        c = by_name[e.details()["condition"]]
        given, wanted = (c.name, c.synonym) if "synonym" in e.details()["kind"] else (c.synonym, c.name)
        assert e.answer == wanted
        assert given in e.query
        assert (wanted in e.query.replace(given, "", 1)) == e.details()["kind"].startswith("which")


def test_the_preferred_answer_has_the_wished_style(rows):
    for e in rows["preference"]:
        style = e.details()["style"]
        assert e.answer.startswith("thank you") == (style == "polite")
        assert ("organ system" in e.answer) == (style == "detailed")
