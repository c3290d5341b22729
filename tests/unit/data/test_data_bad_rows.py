import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.data import LoadReport, load_examples
from workbench.errors import DataError

QA = {"skill": "question_answering", "query": "q", "answer": "a"}


class TestBadRows:
    def test_strict_lists_the_first_and_the_total(self, write):
        rows = [{"q": "ok?", "a": "yes"}] * 3 + [{"q": "ok?", "a": ""}] * 8
        with pytest.raises(DataError) as caught:
            load_examples(write("v.jsonl", rows), **QA)
        text = str(caught.value)
        assert "v.jsonl: 8 of 11 rows cannot become examples" in text
        assert "v.jsonl, row 4, column 'a': is empty" in text
        assert text.count("row ") == 5
        assert "... and 3 more." in text
        assert "on_error='collect' keeps the 3 good rows" in text

    @pytest.mark.parametrize(
        ("line", "column", "reason"),
        [
            ('{"q": "x?"}', "a", "is not in this row"),
            ('{"q": null, "a": "x"}', "q", "is missing"),
            ('{"q": " ", "a": "x"}', "q", "is empty"),
            ('{"q": ["x", "y"], "a": "x"}', "q", "is a list, not text; pass a function, e.g. lambda row: ' '.join"),
            ('{"q": "x?", "a": true}', "a", "is a bool, not text"),
            ('{"q": "x?", "a": NaN}', "a", "is missing"),
            ('{"q": "x?", "a": "\\ud83d"}', "a", "holds a broken Unicode escape"),
            ('{"q": "x?", "a"', "", "is not readable JSON"),
            ('["x?", "a"]', "", "is a JSON list; a row is an object"),
            (b'{"q": "caf\xe9", "a": "x"}', "", "holds byte 0xe9, which is not UTF-8"),
        ],
    )
    def test_json_lines(self, write, line, column, reason):
        raw = line if isinstance(line, bytes) else line.encode()
        path = write("v.jsonl", b'{"q": "ok?", "a": "yes"}\n\n' + raw + b"\n")
        dataset, report = load_examples(path, on_error="collect", **QA)
        assert len(dataset) == report.kept == 1
        (bad,) = report.bad
        assert (bad.file, bad.row, bad.line, bad.column) == ("v.jsonl", 3, 3, column)
        assert reason in bad.reason

    @pytest.mark.parametrize(
        ("row", "column", "reason"),
        [
            (b"only one cell", "", "has 1 cells where 2 columns are named (['q', 'a'])"),
            (b"a,b,c", "", "has 3 cells"),
            (b"caf\xe9,x", "", "pass encoding='latin-1'"),
            (b"x,", "a", "is empty"),
            (b'"open,x', "", "is not readable (unexpected end of data); if quotes are ordinary text"),
        ],
    )
    def test_table(self, write, row, column, reason):
        path = write("v.csv", b'q,a\n"two\nlines",yes\n\n' + row)
        _, report = load_examples(path, on_error="collect", **QA)
        (bad,) = report.bad
        assert (bad.row, bad.line, bad.column) == (4, 5, column)
        assert reason in bad.reason
        assert "v.csv, row 4 (line 5)" in str(bad)

    def test_quotes_may_be_ordinary_text(self, write):
        path = write("v.tsv", 'q\ta\n"open\tyes\nsaid "no"\tno\n')
        assert load_examples(path, quote=None, **QA)["query"][:] == ['"open', 'said "no"']

    def test_function_that_raises(self, write):
        path = write("v.jsonl", [{"q": "ok?", "a": "yes"}, {"q": "ok?", "a": ""}])
        _, report = load_examples(path, on_error="collect", **QA | {"answer": lambda row: row["a"][0]})
        assert "the function raised IndexError: string index out of range" in report.bad[0].reason
        assert report.bad[0].column == "answer (function)"

    def test_function_cannot_change_the_row(self, write):
        mapping = QA | {"query": lambda row: row.pop("a") + "?"}
        assert load_examples(write("v.jsonl", [{"q": "x", "a": "y"}]), **mapping)[0]["answer"] == "y"

    @pytest.mark.parametrize("meta", ["[1]", "no json", 5, {"n": math.inf}])
    def test_meta_that_is_no_object(self, write, meta):
        with pytest.raises(DataError, match=r"column 'meta': (is no object|cannot be written as JSON)"):
            load_examples(write("v.jsonl", [{"q": "x", "a": "y", "meta": meta}]), **QA)

    def test_repeated_id(self, write):
        rows = [{"q": "x", "a": "y", "id": 7}] * 2
        with pytest.raises(DataError, match=r"row 2, column 'id': repeats an earlier id; .*; seen: '7'"):
            load_examples(write("v.jsonl", rows), **QA)

    def test_nothing_good_is_an_error_even_when_collecting(self, write):
        with pytest.raises(DataError, match="2 of 2 rows cannot become examples"):
            load_examples(write("v.jsonl", "{\n}\n"), on_error="collect", **QA)

    def test_report_as_a_table(self, write):
        path = write("v.jsonl", [{"q": "ok?", "a": "yes"}, {"q": "<b>" + "x" * 99, "a": None}])
        _, report = load_examples(path, on_error="collect", **QA)
        assert isinstance(report, LoadReport)
        (row,) = report.to_frame().to_dict("records")
        assert row == {"file": "v.jsonl", "row": 2, "line": 2, "column": "a", "reason": "is missing", "value": ""}
        assert list(LoadReport(source="x", kept=1).to_frame().columns) == list(row)
        assert "1 examples, 1 bad rows, 0 rows filtered out" in str(report)

    def test_limit_stops_early(self, write):
        path = write("v.jsonl", [{"q": "ok?", "a": "yes"}] * 3 + [{"q": "", "a": ""}])
        assert len(load_examples(path, limit=3, **QA)) == 3

    @settings(max_examples=25, deadline=None)
    @given(st.lists(st.tuples(st.text(), st.text()), min_size=1, max_size=8))
    def test_every_row_is_kept_or_reported(self, tmp_path_factory, rows):
        path = tmp_path_factory.mktemp("p") / "v.jsonl"
        path.write_text("".join(json.dumps({"q": q, "a": a}) + "\n" for q, a in rows))
        good = [row for row in rows if row[0].strip() and row[1].strip()]
        if not good:
            with pytest.raises(DataError):
                load_examples(path, on_error="collect", **QA)
            return
        dataset, report = load_examples(path, on_error="collect", **QA)
        assert list(zip(dataset["query"], dataset["answer"])) == good
        assert len(dataset) + len(report) == len(rows)
        numbers = [int(source.rpartition(":")[2]) for source in dataset["source"]] + [row.row for row in report.bad]
        assert sorted(numbers) == list(range(1, len(rows) + 1))
