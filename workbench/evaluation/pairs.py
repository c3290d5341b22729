"""Examples with what a model wrote for them, as `evaluate` or the user has it."""

from __future__ import annotations

from collections.abc import Sequence

from workbench.errors import DataError
from workbench.records import Example, Output, Rows, records


def paired(examples: Rows, outputs: Sequence[str] | Sequence[Output]) -> list[tuple[Example, str]]:
    """Return each output's example with its text, in the order of the outputs.

    Args:
        examples: Examples, or rows with their columns.
        outputs: One text for each example, in their order; or the records of `Scores.outputs[task]`, which are paired
            by id, so that examples which `evaluate` left out need not be taken away.

    Raises:
        DataError: There is no output, texts are not as many as examples, or an id is not that of exactly one example.
    """
    rows = records(examples)
    texts = [output for output in outputs if isinstance(output, str)]
    if not outputs or (texts and len(texts) != len(rows)):
        raise DataError(
            f"{len(texts)} outputs for {len(rows)} examples; give one text for each example in their order, or the "
            "records of scores.outputs[task]"
        )
    if texts:
        return list(zip(rows, texts, strict=True))
    by_id = {row.id: row for row in rows}
    found = [(by_id.get(output.id), output.text) for output in outputs if isinstance(output, Output)]
    strange = [output.id for output in outputs if isinstance(output, Output) and output.id not in by_id]
    if strange or len(by_id) < len(rows):
        raise DataError(
            f"outputs are paired by id, and {strange[:3] or 'some examples'} have none of their own among "
            f"{len(rows)} examples with {len(by_id)} ids; give the examples that were evaluated, each with its own id"
        )
    return [(row, text) for row, text in found if row is not None]
