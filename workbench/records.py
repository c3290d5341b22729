"""The frozen records that cross rooms; standard library only."""

from __future__ import annotations

import html
import json
import math
import os
import string
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

SKILLS = (
    "question_answering",
    "multiple_choice",
    "conversation",
    "classification",
    "reading_comprehension",
    "inference",
    "summarisation",
    "ner",
    "relation_extraction",
    "entity_attribute",
    "entity_synonymy",
    "entity_relation",
)
"""The twelve skills of SA-MDKIF (arXiv 2402.00474), in its order."""

SPLITS = ("train", "validation", "test", "test_unseen")
"""`test_unseen` holds conditions that appear in no task-formatted training example."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """One training or test item; input = context + query, output = answer.

    Args:
        id: Unique within its source.
        skill: Task name, one of `SKILLS` or any other word.
        stage: Tier of a curriculum, `""` where none was given.
        split: One of `SPLITS`, or any word of the user's.
        context: Text that the query is about; may be empty.
        query: The request itself; never empty.
        choices: Options of an exam or preference question, which hold `answer`; else None.
        answer: The wanted output.
        source: Where the row came from, `file:row` or a name.
        meta: A JSON object as text: constraint checks, condition, organ system, entities, further references.

    Source: SA-MDKIF (arXiv 2402.00474), the common instruction format.
    """

    id: str
    skill: str
    query: str
    answer: str
    context: str = ""
    choices: tuple[str, ...] | None = None
    stage: str = ""
    split: str = "train"
    source: str = ""
    meta: str = "{}"

    def to_dict(self) -> dict[str, Any]:
        """Return the record as a plain dict in the column order of `EXAMPLE_COLUMNS`."""
        row = asdict(self)
        row["choices"] = None if self.choices is None else list(self.choices)
        return {name: row[name] for name in EXAMPLE_COLUMNS}

    def prompt(self) -> str:
        """Return what a model is asked: context, query, and one lettered line for each choice."""
        lines = [self.context, self.query] if self.context else [self.query]
        lines += [
            f"{letter}. {choice}" for letter, choice in zip(string.ascii_uppercase, self.choices or (), strict=False)
        ]
        return "\n".join(lines)

    def details(self) -> dict[str, Any]:
        """Return `meta` parsed."""
        return json.loads(self.meta)


EXAMPLE_COLUMNS = ("id", "skill", "stage", "split", "context", "query", "choices", "answer", "source", "meta")
assert set(EXAMPLE_COLUMNS) == {f.name for f in fields(Example)}

Rows = Iterable[Example] | Iterable[Mapping[str, Any]]
"""Examples, or rows with their columns, such as a `datasets.Dataset` from `load_examples`."""


def example_of(row: Mapping[str, Any]) -> Example:
    """Return a row with the example columns as a record; other columns are left aside."""
    values = {f.name: row[f.name] for f in fields(Example) if row.get(f.name) is not None}
    if "choices" in values:
        values["choices"] = tuple(values["choices"])
    return Example(**values)


def records(rows: Rows) -> list[Example]:
    """Return examples, or rows with their columns, as records."""
    return [row if isinstance(row, Example) else example_of(row) for row in rows]


@dataclass(frozen=True, kw_only=True)
class Score:
    """One task's value between 0 and 1 with its 95 % interval.

    Args:
        value: Mean of the per-example metric, 0 to 1.
        low: Lower end of the 95 % interval.
        high: Upper end of the 95 % interval.
        n: Number of examples scored.
        metric: Name of the per-example metric, e.g. `exact_match`.
        group: The axis it counts towards, e.g. `clinical` or `instructions`.
    """

    value: float
    low: float
    high: float
    n: int
    metric: str
    group: str


@dataclass(frozen=True, kw_only=True)
class Output:
    """What a model gave for one example.

    Args:
        id: The example's id.
        text: What the model wrote, or the choice that it found likeliest.
        value: The per-example metric, 0 to 1.
    """

    id: str
    text: str
    value: float


@dataclass(frozen=True, kw_only=True)
class Scores(Mapping[str, Score]):
    """Scores by task, with the macro average of each group.

    Args:
        tasks: Task name to its `Score`.
        settings: What the figures depend on: suite, split, limit, chat template, decoding.
        outputs: Task name to the outputs behind its score, in the order of its examples.
    """

    tasks: Mapping[str, Score]
    settings: Mapping[str, Any] = field(default_factory=dict)
    outputs: Mapping[str, tuple[Output, ...]] = field(default_factory=dict, repr=False)

    def __getitem__(self, task: str) -> Score:
        return self.tasks[task]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tasks)

    def __len__(self) -> int:
        return len(self.tasks)

    def groups(self) -> tuple[str, ...]:
        """Return the names of the groups, in the order of their first task."""
        return tuple(dict.fromkeys(score.group for score in self.values()))

    def mean(self, group: str) -> Score:
        """Return the macro average of a group: each of its tasks counts the same, however many examples it has.

        With task values v_i and intervals (l_i, u_i), the mean v of k tasks has the interval
        (v - sqrt(sum (v_i - l_i)^2) / k, v + sqrt(sum (u_i - v_i)^2) / k), which holds for independent tasks.

        Args:
            group: One of `groups()`.

        Returns:
            A `Score` whose metric is `macro` and whose n is the number of examples of all its tasks.

        Raises:
            ValueError: No task belongs to the group.

        Source: Zou and Donner (2008), Statistics in Medicine 27:1693, the recovery of variances from intervals.
        """
        parts = [score for score in self.values() if score.group == group]
        if not parts:
            raise ValueError(f"group {group!r} has no task here; the groups are {', '.join(self.groups())}")
        value = sum(score.value for score in parts) / len(parts)
        below = math.hypot(*(score.value - score.low for score in parts)) / len(parts)
        above = math.hypot(*(score.high - score.value for score in parts)) / len(parts)
        n = sum(score.n for score in parts)
        return Score(value=value, low=value - below, high=value + above, n=n, metric="macro", group=group)

    def to_frame(self) -> Any:
        """Return a `pandas.DataFrame`: a row for each task, then one for the macro average of each group."""
        import pandas as pd

        rows = [{"task": name, **asdict(score)} for name, score in self.items()]
        rows += [{"task": f"mean of {group}", **asdict(self.mean(group))} for group in self.groups()]
        return pd.DataFrame(rows, columns=["task", "group", "metric", "value", "low", "high", "n"])

    def _repr_html_(self) -> str:
        """Return a table that needs no widget; every name is escaped."""
        rows = [(name, score, "td") for name, score in self.items()]
        rows += [(f"mean of {group}", self.mean(group), "th") for group in self.groups()]
        heads = "".join(f"<th>{head}</th>" for head in ("task", "group", "metric", "value", "95 % interval", "n"))
        body = "".join(_table_row(name, score, tag) for name, score, tag in rows)
        shown = html.escape(", ".join(f"{key}: {self.settings[key]}" for key in _SHOWN if key in self.settings))
        return f"<table><caption>{shown}</caption><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"


@dataclass(frozen=True, kw_only=True, eq=False)
class RouterOutput:
    """What a router decided: every router is an `nn.Module` whose forward returns this.

    A row is a token (N = B * T, batch-major) or, where a whole sequence takes one route, a sequence (N = B).

    Args:
        router_logits: Unnormalised scores of all experts, `(N, E)`.
        routing_weights: Weights of the chosen experts, which sum to 1, `(N, K)`.
        selected_experts: The chosen experts, best first, `(N, K)`, int64.
    """

    router_logits: Tensor
    routing_weights: Tensor
    selected_experts: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class RoutingTrace:
    """Every decision of a model's routers over some forward passes, on the CPU.

    Both dicts are empty until the block of `capture_routing` ends. N counts real tokens, without padding, document by
    document and in reading order; a document is one row of a batch, from its first token to its last.

    Args:
        tokens: int64 tensors `(N,)`: `token_id` (-1 where the model was given embeddings), `document` (0, 1, ...),
            `row` of the batch, `position` in the document, and `step`, the forward pass counted from the one in which
            the document began: 0 while a prompt is read, then 1, 2, ... for each token that was generated and read.
        routers: A router's name to what it decided for each token, in the order in which the routers ran, those of
            one shape together; where whole sequences are routed, each token has the decision of its sequence.
        layers: A router's name to the index of its layer, -1 where its name holds none.
        dropped: Under the key `passes`, how many old forward passes gave way to keep memory bounded.
    """

    tokens: dict[str, Tensor] = field(default_factory=dict)
    routers: dict[str, RouterOutput] = field(default_factory=dict)
    layers: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.tokens["token_id"]) if self.tokens else 0

    def __repr__(self) -> str:
        documents = int(self.tokens["document"].max()) + 1 if len(self) else 0
        return f"RoutingTrace({len(self)} tokens of {documents} documents, {len(self.routers)} routers)"

    def of(self, document: int) -> RoutingTrace:
        """Return the part of the trace that belongs to one document."""
        keep = self.tokens["document"] == document
        routers = {
            name: RouterOutput(**{part: value[keep] for part, value in vars(output).items()})
            for name, output in self.routers.items()
        }
        tokens = {name: column[keep] for name, column in self.tokens.items()}
        return RoutingTrace(tokens=tokens, routers=routers, layers=self.layers, dropped=self.dropped)

    def to_frame(self) -> Any:
        """Return a `pandas.DataFrame` with a row for each router and token.

        Its columns are those of `tokens`, then `router`, `layer`, `expert` (the one of highest weight), and the lists
        `selected_experts`, `routing_weights` and `router_logits`.
        """
        import pandas as pd

        columns = {name: column.numpy() for name, column in self.tokens.items()}
        parts = []
        for name, output in self.routers.items():
            lists = {part: value.tolist() for part, value in reversed(vars(output).items())}
            expert = output.selected_experts.gather(1, output.routing_weights.argmax(1, keepdim=True))[:, 0]
            parts.append(
                pd.DataFrame(columns | {"router": name, "layer": self.layers[name], "expert": expert.numpy()} | lists)
            )
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()

    def to_parquet(self, path: Any) -> None:
        """Write `to_frame` as a Parquet file, in a folder made if need be; it appears only when it is whole."""
        partial = f"{path}.partial"
        os.makedirs(os.path.dirname(partial) or ".", exist_ok=True)
        self.to_frame().to_parquet(partial, index=False)
        os.replace(partial, path)


_SHOWN = ("suite", "split", "limit", "seed", "decoding", "chat_template", "too_long_skipped")


def _table_row(name: str, score: Score, tag: str) -> str:
    cells = (name, score.group, score.metric, f"{score.value:.3f}", f"{score.low:.3f} to {score.high:.3f}", score.n)
    return "<tr>" + "".join(f"<{tag}>{html.escape(str(cell))}</{tag}>" for cell in cells) + "</tr>"
