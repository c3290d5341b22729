import pytest

from workbench.data import Choice, load_examples
from workbench.errors import DataError

EXAM = {"skill": "exam", "query": "question", "choices": ["A", "B", "C"]}
ROW = {"question": "Which?", "A": "heart", "B": "lung", "C": "liver"}


class TestChoices:
    @pytest.mark.parametrize(
        ("mark", "first"),
        [("B", "A"), ("b", "A"), (" B ", "A"), (1, 0), ("1", 0), (2, 1), (2.0, 1), ("2.0", 1)],
    )
    def test_mark_of_a_choice(self, write, mark, first):
        path = write("v.jsonl", [ROW | {"gold": mark}])
        row = load_examples(path, answer=Choice("gold", first=first), **EXAM)[0]
        assert row["choices"] == ["heart", "lung", "liver"]
        assert row["answer"] == "lung"

    def test_text_of_a_choice(self, write):
        path = write("v.jsonl", [ROW | {"B": "lung ", "gold": "lung"}])
        assert load_examples(path, answer="gold", **EXAM)[0]["answer"] == "lung "

    def test_dict_of_choices_goes_by_key(self, write):
        path = write("v.jsonl", [{"q": "Which?", "options": {"B": "lung", "A": "heart"}, "idx": "A"}])
        row = load_examples(path, skill="exam", query="q", choices="options", answer=Choice("idx", first="A"))[0]
        assert (row["choices"], row["answer"]) == (["lung", "heart"], "heart")

    def test_choices_split_by_a_function(self, write):
        path = write("v.csv", 'q,Options,Answer\nWhich?,"A heart\nB lung",B\n')
        options = lambda row: [line[2:] for line in row["Options"].splitlines()]  # noqa: E731
        row = load_examples(path, skill="exam", query="q", choices=options, answer=Choice("Answer", first="A"))[0]
        assert (row["choices"], row["answer"]) == (["heart", "lung"], "lung")

    def test_empty_last_choices_are_dropped(self, write):
        path = write("v.jsonl", [ROW | {"C": " ", "gold": "B"}])
        assert load_examples(path, answer=Choice("gold", first="A"), **EXAM)[0]["choices"] == ["heart", "lung"]

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ({"gold": "D"}, "marks none of the 3 choices, of which the first is 'A'"),
            ({"gold": "AB"}, "marks none of the 3 choices"),
            ({"gold": 1}, "marks none of the 3 choices"),
            ({"gold": None}, "is missing"),
            ({"B": ""}, "is empty"),
            ({"B": "", "C": None}, "has fewer than two choices"),
        ],
    )
    def test_bad_choice(self, write, change, reason):
        path = write("v.jsonl", [ROW | {"gold": "A"}, ROW | {"gold": "A"} | change])
        with pytest.raises(DataError, match=rf"v.jsonl, row 2, column '[^']+': {reason}"):
            load_examples(path, answer=Choice("gold", first="A"), **EXAM)

    def test_missing_choices_never_leave_the_mark_as_answer(self, write):
        rows = [{"q": "Which?", "choices": ["x", "y"], "gold": 0}, {"q": "Which?", "choices": None, "gold": 0}]
        with pytest.raises(DataError, match=r"row 2, column 'choices': is missing, and the answer marks a choice"):
            load_examples(write("v.jsonl", rows), skill="exam", query="q", answer=Choice("gold", first=0))
        with pytest.raises(DataError, match=r"row 2, column 'choices': is missing"):
            load_examples(write("v.jsonl", rows), skill="exam", query="q", answer="q", choices="choices")

    @pytest.mark.parametrize(("marks", "told", "right"), [((1, 2, 3), 0, 1), ((0, 1, 2), 1, 0)])
    def test_wrong_base_is_refused_even_when_collecting(self, write, marks, told, right):
        path = write("v.jsonl", [ROW | {"gold": mark} for mark in marks])
        with pytest.raises(DataError, match=rf"not seem to count from {told}.*Choice\('gold', first={right}\)"):
            load_examples(path, answer=Choice("gold", first=told), on_error="collect", **EXAM)

    def test_single_wrong_mark_is_only_a_bad_row(self, write):
        path = write("v.jsonl", [ROW | {"gold": mark} for mark in (0, 1, 2, 3)])
        _, report = load_examples(path, answer=Choice("gold", first=0), on_error="collect", **EXAM)
        assert [row.row for row in report.bad] == [4]

    def test_letters_taken_for_text_are_refused_even_when_one_fits(self, write):
        rows = [ROW | {"gold": "B"}, ROW | {"gold": "C"}, ROW | {"A": "B", "gold": "B"}]
        with pytest.raises(DataError, match=r"in 2 of 3 rows 'gold' is no choice.*answer=Choice\('gold', first='A'\)"):
            load_examples(write("v.jsonl", rows), answer="gold", on_error="collect", **EXAM)
