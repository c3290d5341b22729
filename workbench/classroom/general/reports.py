"""Test reports, hospital courses and letters of patients, with the short text each one calls for."""

from __future__ import annotations

from functools import partial
from random import Random

from workbench.classroom.general.rows import Row, clinical_task
from workbench.classroom.general.visits import sexes, told, visit
from workbench.classroom.world import Condition, World
from workbench.records import Example

_REPORTS = (
    "report of {test}. reason: {a_patient} with {s}. an earlier study was done {weeks} weeks ago. findings: there are "
    "{degree} changes typical of {c}. by comparison they are {change}. there is no sign of {other}. the patient should "
    "be seen in {specialty}.",
    "study: {test}. patient: {patient}. clinical question: {s}, what is the cause? findings: what we see is {degree} "
    "and fits with {c}. {other} was not found. in the {weeks} weeks since the last study it is {change}. we advise "
    "an appointment in {specialty}.",
    "{a_patient} was sent to us because of {s}. we did {test}, as {weeks} weeks ago. the changes are {change} since "
    "then, {degree} in degree, and match {c}. nothing points to {other}. please arrange a visit to {specialty}.",
)
_IMPRESSION = "impression: {degree} {c} on {test}, {change} over {weeks} weeks. no sign of {other}. {specialty} review."

_COURSES = (
    "{a_patient} came to the ward with {s}, which had begun {days} days before. {test} showed {c}. the team chose "
    "{treatment}, and told the family that {avoid} must be avoided. the nights were calm. after {stay} days the way "
    "home was open. {specialty} has a visit booked in {weeks} weeks.",
    "admission: {s} for {days} days. patient: {patient}. work-up: {test}, pointing to {c}. course: {treatment} was "
    "well tolerated, and visitors came. warning: {avoid} is to be avoided. stay: {stay} days, then home. next: "
    "{specialty} in {weeks} weeks.",
    "the ambulance brought {a_patient}. there had been {s} for {days} days. {c} was suspected and {test} confirmed it. "
    "{treatment} helped. the chart says to avoid {avoid}. after {stay} days the patient left in good spirits, and "
    "{specialty} will follow in {weeks} weeks.",
)
_SUMMARY = (
    "{patient} admitted with {s} for {days} days. {test} showed {c}. treated with {treatment}, home after {stay} days. "
    "avoid {avoid}. {specialty} in {weeks} weeks."
)

_LETTERS = (
    "hello, i hope that somebody reads this. my neighbour, {a_patient}, has had {s} for {days} days. the doctor said "
    "that it is {c}. we forgot to ask, and now we cannot sleep. {ask} many thanks and best wishes to all of you.",
    "dear team, sorry for the long message. {ask} i write for {a_patient} in our family who was told about {c}. it all "
    "began with {s} {days} days ago, after a birthday party. the internet says many things. please write back soon.",
    "good evening. {days} days ago {s} began, while we were painting the kitchen. i speak of {a_patient} at home. the "
    "word {c} is in the letter that we got, and the phone is always busy. what i need to know is simple. {ask} thank "
    "you for your time.",
)
_ASKED = {
    "which test confirms {c} in {a_patient} with {s}?": (
        "how can one be sure, which test is done?",
        "which test would show it?",
    ),
    "what is the first treatment of {c} in {a_patient} with {s}?": (
        "how is it treated at first?",
        "which treatment comes first?",
    ),
    "what is the main cause of {c} in {a_patient} with {s}?": ("where does it come from?", "what is the cause?"),
    "what must be avoided in {c} by {a_patient} with {s}?": (
        "is there something to stay away from?",
        "what should be avoided?",
    ),
    "which specialty treats {c} in {a_patient} with {s}?": (
        "what kind of doctor is right for this?",
        "which specialty is it for?",
    ),
}
"""Short question to the ways it is put in a letter."""


def _fill(text: str, **words: str) -> str:
    """Put some words into a frame and leave the rest to the visit."""
    for name, word in words.items():
        text = text.replace("{" + name + "}", word)
    return text


def _impression_row(world: World, condition: Condition, random: Random) -> Row:
    v = visit(condition, random)
    others = [c for c in world.seen if c.name != condition.name and v.sex in sexes(c)]
    near = [c for c in others if c.organ_system == condition.organ_system]
    words = {
        "degree": random.choice(("mild", "moderate", "severe")),
        "change": random.choice(("better", "worse", "unchanged")),
        "other": random.choice(near or others).name,
    }
    query = random.choice(("Write the impression.", "Impression?", "Sum up the report as an impression."))
    frames = [_fill(frame, **words) for frame in _REPORTS]
    return told(v, random, frames, query, _fill(_IMPRESSION, **words))


def _discharge_row(condition: Condition, random: Random) -> Row:
    query = random.choice(("Write the discharge summary.", "Discharge summary, please.", "Sum up the hospital stay."))
    return told(visit(condition, random), random, _COURSES, query, _SUMMARY)


def _question_row(condition: Condition, random: Random) -> Row:
    short = random.choice(list(_ASKED))
    frames = [_fill(frame, ask=random.choice(_ASKED[short])) for frame in _LETTERS]
    query = random.choice(("Write the short question.", "What is asked, in one question?", "Shorten this question."))
    return told(visit(condition, random), random, frames, query, short)


def impression(world: World) -> list[Example]:
    """Build test report -> impression; `no sign of` names a seen condition of the same organ system."""
    return clinical_task("impression", partial(_impression_row, world), world)


def discharge_summary(world: World) -> list[Example]:
    """Build hospital course -> discharge summary."""
    return clinical_task("discharge_summary", _discharge_row, world)


def short_question(world: World) -> list[Example]:
    """Build a letter that goes on and on -> the one question in it."""
    return clinical_task("short_question", _question_row, world)
