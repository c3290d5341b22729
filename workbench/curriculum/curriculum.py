"""The curriculum itself: stages in, sequences of examples out, with what both memories give back."""

from __future__ import annotations

import json
import math
import random
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, fields
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from workbench.curriculum import losses, pacing
from workbench.curriculum.memory import LongTermMemory, ShortTermMemory
from workbench.curriculum.stage import Rows, Stage, StagePlan
from workbench.errors import ConfigError
from workbench.ops.processes import average, gather_objects, sharded
from workbench.records import Example

_SHORT_TERM_PART = 4
"""One rehearsed example in so many comes from the short-term memory, where both memories hold some."""


@dataclass(eq=False)
class Curriculum:
    """Stages from general to specialist, a pacing, and two memories that rehearse what came before.

    `train(..., curriculum=c)` trains on it: a stage's sequence is drawn when the stage before is over, and both
    memories are filled from the batches. L_total = L_consistency + L_task + L_fine-tune: the trainer's cross-entropy
    is the mean of L_task and L_fine-tune once the specialist tier is open (disjoint halves of it), and L_task before;
    the other terms come from `extra_losses` at the same scale.

    Where processes train side by side, losses, costs and memories are those of the batches of all, in one order, so
    that every process holds the same memories and a checkpoint holds them once.

    Args:
        stages: From the easiest to the specialist.
        pacing: `cumulative` (earlier stages stay open), `sequential` (each stage alone), or `competence` (from all
            data, in the order of stages and within them of rows, a share that grows with time; stages say how long).
        order: `given`; the controls are `anti`, hardest first, and `shuffled`, all data at any time.
        short_term: Memory of the most recent examples, or None.
        long_term: Memory with a quota for each stage, or None.
        replay_ratio: Share of rehearsed examples from the second stage on, at least 0 and below 1; one in four is from
            the short-term memory, by its last loss, the others are long-term ones of other stages. They are drawn when
            a stage begins: rehearsal gives a stage what the stages before it left, and what is promoted within it is
            among its own open data, so that later stages are the first to need it back.
        consistency_coef: Weight of L_consistency, at least 0; it reads the rehearsed long-term examples of a batch, so
            that without them it is 0.
        consistency: `kl` or `hidden`, see `losses.consistency_loss`.
        fine_tune_coef: Weight of L_fine-tune, at least 0; 0 gives L_task the whole specialist tier. L_task's own is 1.
        specialist: The stage whose data are the specialist tier; empty takes the last.
        batch_size: Examples of one optimiser step over all devices, as `train` will read them; needed where a stage
            says `steps`, and checked against what is read.
        seed: Of every draw.

    Raises:
        ConfigError: A value breaks a rule, two stages share a name, or one id stands for two different examples.

    Source: ICFT (arXiv 2502.00832) for the three parts and the sum; everything else is our reading of it.
    Deviates: the mean of L_task and L_fine-tune stands for their sum, which AdamW cannot tell apart.
    """

    stages: Sequence[Stage]
    _: KW_ONLY
    pacing: str = "cumulative"
    order: str = "given"
    short_term: ShortTermMemory | None = None
    long_term: LongTermMemory | None = None
    replay_ratio: float = 0.2
    consistency_coef: float = 1.0
    consistency: str = "kl"
    fine_tune_coef: float = 1.0
    specialist: str = ""
    batch_size: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        self.specialist = self.specialist or (self.stages[-1].name if self.stages else "")
        self._way = list(self.stages[::-1] if self.order == "anti" else self.stages)
        self._names = [stage.name for stage in self._way]
        self._check()
        self._tier: dict[str, str] = {}
        self._examples: dict[str, Example] = {}
        for stage in self._way:
            for example in stage.examples:
                if self._examples.setdefault(example.id, example) != example:
                    raise ConfigError(f"id {example.id!r} stands for two different examples; give each its own id")
                self._tier.setdefault(example.id, stage.name)
        if self.long_term is not None:
            self.long_term.divide(self._names)
        self._reset()

    def __iter__(self) -> Iterator[StagePlan]:
        """Yield each stage's plan when it is asked for, which must be after the stage before was trained."""
        for index, stage in enumerate(self._way):
            if index and not self.history and self._memories != (None, None):
                raise ConfigError(
                    f"no batch was reported before stage {stage.name!r}, so the memories are empty; an "
                    "on_batch given to train must call curriculum.on_batch, or leave it out"
                )
            yield self.plan(index)

    def plan(self, index: int) -> StagePlan:
        """Return a stage's sequence as the memories now stand; the same state and seed give the same sequence."""
        stage, lengths = self._way[index], [self._length(k) for k in range(len(self._way))]
        own = self._own(index, sum(lengths[:index]), sum(lengths))
        again = self._rehearsal(index, lengths[index])
        marks = [again is not None and mark for mark in pacing.replays(lengths[index], self.replay_ratio)]
        examples = [next(again if mark and again is not None else own) for mark in marks]
        return StagePlan(
            name=stage.name, examples=examples, replayed=marks, steps=stage.steps, lr=stage.lr,
            lr_scales=stage.lr_scales, done=stage.done(), epochs=1.0 if stage.steps is None else None,
        )  # fmt: skip

    def extra_losses(self, model: torch.nn.Module, batch: Any) -> dict[str, Tensor]:
        """Return what a batch adds to the cross-entropy: `consistency`, and `fine_tune` where its weight is not 1.

        In a stage's first batch it keeps a copy of the trainable weights, which are still those of the stage before.

        Args:
            model: The model under training.
            batch: With `stage`, `step`, `ids` and `inputs`, as `workbench.training.Batch`.
        """
        self._enter(batch)
        index, terms = self._names.index(batch.stage), {}
        if self._at != batch.stage:
            teaches = index > 0 and self.consistency_coef > 0 and self.long_term is not None
            self._previous = losses.snapshot(model) if teaches else None
            held = self.long_term.examples(without=[batch.stage]) if self.long_term is not None else []
            self._anchored, self._at, self._noisy = {example.id for example in held}, batch.stage, None
        opened = self.order == "shuffled" or self.specialist in self._names[: index + 1]
        scale = 0.5 if opened and self.fine_tune_coef > 0 else 1.0
        # Of a model in shards every process must run its part when one does: of a row that weighs 0 then.
        dummy = [0] if sharded(model) else []
        rows = [i for i, id in enumerate(batch.ids) if id in self._anchored]
        share = None if self._previous is None else _share((batch.inputs["labels"][rows, 1:] != -100).sum())
        if share is not None:
            read = self._consistency(model, batch, rows or dummy, share)
            terms["consistency"] = scale * self.consistency_coef * read
        rows = [i for i, id in enumerate(batch.ids) if self._fine_tunes(id)]
        share = None if self.fine_tune_coef == 1 else _share(batch.inputs["labels"].new_tensor(len(rows)))
        if share is not None:
            read = self._fine_tune(model, batch, rows or dummy, share)
            terms["fine_tune"] = scale * (self.fine_tune_coef - 1) * read
        return terms

    def on_batch(self, batch: Any) -> None:
        """Put a batch's examples into the memories, and note what it cost and held in `costs` and `history`.

        A row of `history` has `stage`, `step`, the unweighted losses `task`, `fine_tune` and `consistency` (0 where
        they read nothing), and `mix`: how many examples were of which stage.

        Raises:
            ConfigError: The batches are not of the size that the curriculum was made for, or `extra_losses` was not
                called although consistency asks for it.
        """
        self._enter(batch)
        if self.long_term is not None and self.consistency_coef > 0 and self._at != batch.stage:
            raise ConfigError(
                f"consistency_coef={self.consistency_coef} and extra_losses was not called; an "
                "extra_losses given to train must call curriculum.extra_losses: do so, leave it out, or set "
                "consistency_coef=0"
            )
        # In one order everywhere, so that the memories of all processes stay the same.
        mine = list(zip(batch.ids, batch.losses.tolist(), strict=True))
        parts: Any = gather_objects((mine, int(batch.inputs["attention_mask"].sum()), *self._read))
        seen = [pair for part in parts for pair in part[0]]
        self._check_size(batch, len(seen))
        for id, loss in seen:
            example, tier = self._examples[id], self._tier[id]
            count = self.short_term.add(example, tier, loss) if self.short_term is not None else None
            if self.long_term is not None and (count is None or count >= self.long_term.theta):
                self.long_term.offer(example, tier)
        groups = {half: [loss for id, loss in seen if self._fine_tunes(id) is half] for half in (False, True)}
        task, fine = (sum(values) / len(values) if values else 0.0 for values in groups.values())
        gap, self._gap = 0.0 if self._gap is None else float(average(self._gap)), None
        row = {"stage": batch.stage, "step": batch.step, "task": task, "fine_tune": fine, "consistency": gap}
        self.history.append(row | {"mix": dict(Counter(self._tier[id] for id, _ in seen))})
        cost, now = self._cost(batch.stage), time.monotonic()
        cost["examples"] += len(seen)
        for place, name in enumerate(("tokens", "extra_tokens", "extra_trained"), start=1):
            cost[name] += sum(part[place] for part in parts)
        self._read = [0, 0]
        cost["seconds"] += 0.0 if self._clock is None else now - self._clock
        self._clock = now

    def state_dict(self) -> dict[str, Any]:
        """Return memories, losses and costs as JSON values, for a checkpoint; see `state_tensors` for the rest."""
        return {
            "at": self._at, "step": self._step, "anchored": sorted(self._anchored), "history": list(self.history),
            "costs": {name: dict(cost) for name, cost in self.costs.items()},
            "memories": [None if memory is None else memory.state_dict() for memory in self._memories],
        }  # fmt: skip

    def state_tensors(self) -> dict[str, Tensor]:
        """Return the adapter of the stage before, which consistency is measured against; empty where there is none."""
        return self._previous or {}

    def load_state_dict(self, state: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None) -> None:
        """Bring back what `state_dict` and `state_tensors` returned, with the same stages and memories."""
        self._reset()
        self._at, self._step, self._anchored = state["at"], list(state["step"]), set(state["anchored"])
        self.history, costs = list(state["history"]), state["costs"]
        self.costs = {name: dict(costs[name]) for name in self._names if name in costs}
        self._previous = dict(tensors) if tensors else None
        for memory, held in zip(self._memories, state["memories"], strict=True):
            if memory is not None:
                memory.load_state_dict(held, self._examples)

    def to_json(self) -> str:
        """Return the settings as a small JSON text; of the data it holds number and digest only."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values["stages"] = [stage.to_dict() for stage in self.stages]
        for name, memory in zip(("short_term", "long_term"), self._memories, strict=True):
            values[name] = None if memory is None else memory.settings()
        return json.dumps(values, indent=1)

    @classmethod
    def from_json(cls, text: str, data: Mapping[str, Rows]) -> Curriculum:
        """Return the curriculum that `to_json` described, with empty memories.

        Args:
            text: What `to_json` returned.
            data: Name of a stage to its examples.

        Raises:
            ConfigError: The text is no such description, a stage's data are missing, or they are others.
        """
        try:
            values = json.loads(text)
            missing = [stage["name"] for stage in values["stages"] if stage["name"] not in data]
            if missing:
                raise ConfigError(f"data has {sorted(data)}; it lacks the examples of stage {missing[0]!r}")
            stages = [Stage.from_dict(stage, data[stage["name"]]) for stage in values.pop("stages")]
            short, long = values.pop("short_term"), values.pop("long_term")
            memories = {"short_term": short and ShortTermMemory(**short), "long_term": long and LongTermMemory(**long)}
            return cls(stages, **memories, **values)
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"the text is no curriculum ({error!r}); write it with Curriculum.to_json()") from error

    @property
    def _memories(self) -> tuple[ShortTermMemory | None, LongTermMemory | None]:
        return self.short_term, self.long_term

    def _check(self) -> None:
        if not self._names or len(set(self._names)) < len(self._names):
            raise ConfigError(f"the stages are named {self._names}; there must be at least one, each with its own name")
        for name, known in (("pacing", pacing.PACINGS), ("order", pacing.ORDERS), ("consistency", losses.KINDS)):
            if getattr(self, name) not in known:
                raise ConfigError(f"{name}={getattr(self, name)!r} is unknown; use one of {', '.join(known)}")
        if not 0 <= self.replay_ratio < 1:
            raise ConfigError(f"replay_ratio={self.replay_ratio}; it is a share, at least 0 and below 1")
        for name, least in (("consistency_coef", 0), ("fine_tune_coef", 0), ("batch_size", 1)):
            if not getattr(self, name) >= least:
                raise ConfigError(f"{name}={getattr(self, name)}; it must be at least {least}")
        strange = sorted(
            {name for stage in self._way for name in (*(stage.mixture or ()), self.specialist)} - {*self._names}
        )
        if strange:
            raise ConfigError(f"there is no stage {strange[0]!r}; the stages are {self._names}")

    def _reset(self) -> None:
        for memory in self._memories:
            if memory is not None:
                memory.clear()
        self.history: list[dict[str, Any]] = []
        self.costs: dict[str, dict[str, float]] = {}
        self._at, self._step, self._anchored = "", [0, 0], set[str]()
        self._previous: dict[str, Tensor] | None = None
        self._noisy: bool | None = None
        self._gap: Tensor | None = None
        self._read = [0, 0]
        self._clock: float | None = None

    def _enter(self, batch: Any) -> None:
        if batch.step < self._step[0]:  # the same object in another run
            self._reset()

    def _length(self, index: int) -> int:
        stage = self._way[index]
        if stage.steps is not None:
            return stage.steps * self.batch_size
        opened = self._way[: index + 1] if self.pacing == "cumulative" and self.order != "shuffled" else [stage]
        own = math.ceil((stage.epochs or 1) * sum(len(each.examples) for each in opened))
        return math.ceil(own / (1 - self.replay_ratio)) if index and self._memories != (None, None) else own

    def _own(self, index: int, first: int, total: int) -> Iterator[Example]:
        stage, key = self._way[index], f"{self.seed}/{self._names[index]}"
        if stage.mixture is not None:
            return pacing.mixed({each.name: each.examples for each in self._way}, stage.mixture, key)
        if self.order == "shuffled":
            return islice(pacing.passes(list(self._examples.values()), f"{self.seed}/shuffled"), first, None)
        if self.pacing == "competence":
            step = -1 if self.order == "anti" else 1
            return pacing.by_competence([e for each in self._way for e in each.examples[::step]], first, total, key)
        opened = self._way[: index + 1] if self.pacing == "cumulative" else [stage]
        return pacing.passes([example for each in opened for example in each.examples], key)

    def _rehearsal(self, index: int, length: int) -> Iterator[Example] | None:
        """Return a draw from what the memories hold now, or None at the first stage or where both are empty."""
        key = f"{self.seed}/{self._names[index]}/again"
        rng = random.Random(key)
        old = self.long_term.examples(without=[self._names[index]]) if self.long_term is not None else []
        recent = self.short_term.draw(length, rng) if self.short_term is not None else []
        streams = [pacing.passes(old, key)] * bool(old) + [iter(recent)] * bool(recent)
        if index == 0 or not streams:
            return None
        return (next(streams[-1 if rng.randrange(_SHORT_TERM_PART) == 0 else 0]) for _ in range(length))

    def _fine_tunes(self, id: str) -> bool:
        return self.fine_tune_coef > 0 and self._tier[id] == self.specialist and losses.in_fine_tune_half(id)

    def _consistency(self, model: torch.nn.Module, batch: Any, rows: list[int], share: float) -> Tensor:
        """Return this process's part of the unweighted L_consistency, and note it; 0 where it has none of its rows."""
        gap = batch.inputs["labels"].new_zeros((), dtype=torch.float32)
        if rows and self._previous is not None:
            self._noisy = losses.noisy(model) if self._noisy is None else self._noisy
            now = None if self.consistency == "hidden" or self._noisy else _answers(batch, rows)
            inputs = self._part(batch, rows, read=1, trained=int(now is None))
            gap = share * losses.consistency_loss(model, self._previous, inputs, kind=self.consistency, now=now)
        self._gap = gap.detach()
        return gap

    def _fine_tune(self, model: torch.nn.Module, batch: Any, rows: list[int], share: float) -> Tensor:
        """Return this process's part of the unweighted L_fine-tune."""
        if not rows:
            return batch.inputs["labels"].new_zeros((), dtype=torch.float32)
        inputs = self._part(batch, rows, trained=1)
        logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
        return share * losses.answer_losses(logits, inputs["labels"]).mean()

    def _part(self, batch: Any, rows: list[int], *, read: int = 0, trained: int = 0) -> dict[str, Tensor]:
        """Return the inputs of some rows, and note the forwards that they are for: without and with a backward."""
        # These rows may be shorter than the batch: padding at the right is cut.
        width = int(batch.inputs["attention_mask"][rows].sum(-1).max())
        inputs = {name: value[rows, :width] for name, value in batch.inputs.items()}
        tokens = int(inputs["attention_mask"].sum())
        self._read = [self._read[0] + (read + trained) * tokens, self._read[1] + trained * tokens]
        return inputs

    def _cost(self, stage: str) -> dict[str, float]:
        names = ("examples", "tokens", "extra_tokens", "extra_trained", "seconds")
        return self.costs.setdefault(stage, dict.fromkeys(names, 0))

    def _check_size(self, batch: Any, count: int) -> None:
        step, seen = self._step
        self._step = [batch.step, (seen if step == batch.step else 0) + count]
        inside = bool(self.history) and self.history[-1]["stage"] == batch.stage
        timed = self._way[self._names.index(batch.stage)].steps is not None
        if timed and inside and step != batch.step and seen != self.batch_size:
            raise ConfigError(
                f"train reads {seen} examples in an optimiser step, and the curriculum was made for batch_size="
                f"{self.batch_size}; give Curriculum(..., batch_size={seen})"
            )


def _answers(batch: Any, rows: list[int]) -> Tensor | None:
    """Return what the batch's own forward said at the answers of some rows, where the trainer shows it."""
    logits = getattr(batch, "logits", None)
    if logits is None:
        return None
    row = (batch.inputs["labels"][:, 1:] != -100).nonzero()[:, 0]
    return logits[torch.isin(row, torch.tensor(rows, device=row.device))]


def _share(mine: Tensor) -> float | None:
    """Return what the mean over this process's things weighs, so that averaged over processes it is that of all.

    None where no process has any.
    """
    mean = float(average(mine.float()))
    return float(mine) / mean if mean else None
