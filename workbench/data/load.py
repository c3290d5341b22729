"""load_examples: any tabular file, folder or hub dataset -> one `datasets.Dataset` of examples."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, overload

import datasets

from workbench.data.build import Builder
from workbench.data.files import RawRow, ReadOptions, read_rows
from workbench.data.report import LoadReport
from workbench.data.sources import find_files, read_hub
from workbench.data.specs import Choice, Constant, Spec
from workbench.errors import ConfigError, DataError
from workbench.records import EXAMPLE_COLUMNS

_TEXT = datasets.Value("string")
FEATURES = datasets.Features({name: datasets.List(_TEXT) if name == "choices" else _TEXT for name in EXAMPLE_COLUMNS})


@overload
def load_examples(source: str | Path, *, on_error: Literal["raise"] = "raise", **settings: Any) -> datasets.Dataset: ...


@overload
def load_examples(
    source: str | Path, *, on_error: Literal["collect"], **settings: Any
) -> tuple[datasets.Dataset, LoadReport]: ...


def load_examples(  # pyright: ignore[reportInconsistentOverload]
    source: str | Path,
    *,
    skill: Spec = None,
    query: Spec = None,
    answer: Spec | Choice = None,
    context: Spec = None,
    choices: Spec | list[str] = None,
    id: Spec = None,
    stage: Spec = None,
    split: Spec = None,
    meta: Spec | list[str] = None,
    format: str | None = None,
    header: bool | None = None,
    columns: list[str] | None = None,
    delimiter: str | None = None,
    quote: str | None = '"',
    encoding: str = "utf-8",
    config: str | None = None,
    on_error: str = "raise",
    limit: int | None = None,
) -> datasets.Dataset | tuple[datasets.Dataset, LoadReport]:
    """Turn a file, a folder of files or a hub dataset into examples of the one record format.

    What goes into each of our columns is said by the argument of that name:

    - a string is the name of a column; an unknown one raises and names the nearest;
    - `Constant("text")` is the same text in every row. A `query` that reads like a sentence (it has a space, or ends in
      a mark such as `?` or `:`) may stand bare, unless a column has a similar name;
    - a function gets the row as a dict and returns the value;
    - None takes the file's column of the same name, if there is one. A file in our own format needs no argument.

    `skill`, `stage` and `split` are words: a plain string labels every row, or, if the file has a column `skill`,
    `stage` or `split`, keeps the rows that have this value. `Column("name")` takes them from another column.

    Args:
        source: `classroom`, `classroom/<name>`, a file (.jsonl, .json, .csv, .tsv, .parquet), a folder, in which all
            such files are read in order of their path, or a hub id `org/name`.
        skill: What the rows teach, one of `workbench.records.SKILLS` or any other word.
        query: The request itself.
        answer: The wanted output; `Choice("cop", first=1)` where a column marks one of `choices`; `""` for none.
        context: Text that the query is about; may be empty.
        choices: A list of columns, a column that holds a list or dict, or a function. Empty last ones are dropped.
        id: Unique; None takes the file's column `id`, or makes `file:row`. In a folder, an id given here
            has the file's path put before it.
        stage: Tier of a curriculum; default `""`.
        split: Default `train`; for a hub dataset, the split to open.
        meta: A list of columns to keep, a column that holds an object, or a function that returns a dict.
        format: `jsonl`, `json`, `csv`, `tsv` or `parquet`, where the ending does not say it.
        header: Whether row 1 of a CSV or TSV names its columns; None means yes, unless `columns` is given.
        columns: Names for the columns of a CSV or TSV; without them and without a header: column1, column2, ...
        delimiter: Character between the cells of a CSV or TSV.
        quote: Its quote character; None where quotes are ordinary text.
        encoding: Encoding of text files.
        config: Configuration of a hub dataset.
        on_error: `raise` stops at bad rows and lists them; `collect` keeps the good rows and adds a `LoadReport`.
        limit: Take at most this many examples; rows after them are read but not checked.

    Returns:
        A dataset with the columns `EXAMPLE_COLUMNS`, all text but `choices` (a list of text, or null); with
        `on_error="collect"` also the report.

    Raises:
        DataError: No such source; an unreadable, empty or unknown file; a column that is not there; bad rows under
            `raise`; no good row at all; or a `Choice` whose `first` contradicts the column.
        ConfigError: An argument has a value outside what is said above.

    Source: SA-MDKIF (arXiv 2402.00474), the common instruction format: input = context + query, output = answer.
    """
    if on_error not in ("raise", "collect"):
        raise ConfigError(f"on_error={on_error!r} is unknown. Use 'raise' or 'collect'.")
    if limit is not None and limit < 1:
        raise ConfigError(f"limit={limit} is below 1. Leave it out to take all examples.")
    if isinstance(columns, str):
        raise ConfigError(f"columns={columns!r} is one text. Pass a list of names, e.g. columns=['q', 'answer'].")
    specs: dict[str, Any] = {
        "id": id, "skill": skill, "stage": stage, "split": split, "context": context, "query": query,
        "choices": choices, "answer": answer, "source": None, "meta": meta,
    }  # fmt: skip
    options = ReadOptions(
        format=format,
        header=header,
        columns=tuple(columns) if columns else None,
        delimiter=delimiter,
        quote=quote,
        encoding=encoding,
    )
    files, ignored = find_files(source)
    if files:
        rows = {label: read_rows(path, label, options) for label, path in files.items()}
    else:
        wanted = split if isinstance(split, str) else "train"
        rows = {f"{source}/{wanted}": read_hub(str(source), config, wanted)}
        specs["split"] = Constant(wanted) if split is None or isinstance(split, str) else split
    return _build(rows, specs, str(source), tuple(ignored), on_error, limit)


def _build(
    rows: dict[str, list[RawRow]],
    specs: dict[str, Any],
    source: str,
    ignored: tuple[str, ...],
    on_error: str,
    limit: int | None,
) -> datasets.Dataset | tuple[datasets.Dataset, LoadReport]:
    builder = Builder(specs, len(rows) > 1, limit)
    for label, raws in rows.items():
        builder.add_file(label, raws)
    kept, left_out = len(builder.ids), builder.left_out
    report = LoadReport(
        source=source, kept=kept, filtered=sum(left_out.values()), bad=tuple(builder.bad), ignored=ignored
    )
    if report.bad and (on_error == "raise" or not kept):
        remedy = "Mend the rows, or the mapping if they are right." + (
            f" on_error='collect' keeps the {kept} good rows and returns the report." if kept else ""
        )
        raise DataError(f"{report.complaint()}\n{remedy}")
    if not kept:
        seen = ", ".join(f"{value} ({n})" for value, n in left_out.most_common(8))
        raise DataError(f"{source}: no row is left with the labels asked for. The rows have {seen}.")
    dataset = datasets.Dataset.from_dict(builder.records, features=FEATURES)
    return (dataset, report) if on_error == "collect" else dataset
