"""One stage of a curriculum: its data, how long, how fast, and what is mixed in."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from workbench.curriculum.memory import refuse_held_out
from workbench.errors import ConfigError
from workbench.records import Example, Rows, records


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One tier of data and how to train on it.

    Args:
        name: Its name, unlike that of any other stage.
        data: Examples, or rows with their columns, such as a `datasets.Dataset`; the easiest first, if that is known.
        steps: Optimiser steps; None where epochs say it.
        epochs: Passes over the stage's data; 1 where neither is given.
        patience: 'Until no better': end after this many evaluations in a row without a lower validation loss, and at
            the latest after `steps` or `epochs`. `train` needs `validation` for it.
        lr: Peak learning rate; None takes the run's.
        lr_scales: Pattern of an adapter weight's name to the factor of `lr` with which it learns in this stage; 0
            freezes it, and the last pattern that fits counts: `{"*lora_A*": 0}` trains B alone, `{"*.layers.0.*": 0}`
            rests a layer. All stages go on with one adapter of one rank: for another rank it would have to be merged
            into the base, and the run would end in no plain adapter of that base.
        mixture: Name of a stage to its share of this stage's examples, instead of what the pacing opens.

    Raises:
        ConfigError: A value breaks a rule, two rows have one id, or a row is held out from training.
    """

    name: str
    data: Rows = field(repr=False)
    steps: int | None = None
    epochs: float | None = None
    patience: int | None = None
    lr: float | None = None
    lr_scales: Mapping[str, float] | None = None
    mixture: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        examples = tuple(records(self.data))
        if not self.name or not examples:
            raise ConfigError(f"stage {self.name!r} has {len(examples)} examples; it needs a name and at least one")
        seen: set[str] = set()
        for example in examples:
            refuse_held_out(example)
            if example.id in seen:
                raise ConfigError(f"stage {self.name!r} holds id {example.id!r} twice; ids must be unique")
            seen.add(example.id)
        if self.steps is not None and self.epochs is not None:
            raise ConfigError(f"stage {self.name!r} has steps={self.steps} and epochs={self.epochs}; give one of them")
        for name, least in (("steps", 1), ("patience", 1), ("epochs", 0), ("lr", 0)):
            value = getattr(self, name)
            if value is not None and not (value >= least and 0 < value < math.inf):
                rule = "at least 1" if least else "above 0"
                raise ConfigError(f"stage {self.name!r} has {name}={value}; it must be {rule}")
        wrong = {name: scale for name, scale in (self.lr_scales or {}).items() if not 0 <= scale < math.inf}
        if wrong:
            raise ConfigError(f"stage {self.name!r} has lr_scales {wrong}; a factor must be at least 0, and 0 freezes")
        shares = self.mixture
        if shares is not None and not (shares and min(shares.values()) > 0 and math.isclose(sum(shares.values()), 1)):
            raise ConfigError(f"stage {self.name!r} has mixture={dict(shares)}; shares must be above 0 and sum to 1")
        object.__setattr__(self, "data", examples)

    @property
    def examples(self) -> tuple[Example, ...]:
        """The data as records."""
        return self.data  # pyright: ignore[reportReturnType]

    def digest(self) -> str:
        """Return a hash of the data's content."""
        text = repr([(example.id, example.prompt(), example.answer) for example in self.examples])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the data, with their number and digest, as JSON values."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "data"}
        values |= {name: dict(values[name]) for name in ("mixture", "lr_scales") if values[name] is not None}
        return values | {"n": len(self.examples), "digest": self.digest()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], data: Rows) -> Stage:
        """Return the stage that `to_dict` described.

        Raises:
            ConfigError: The data are not those that it was written with.
        """
        stage = cls(data=data, **{name: value for name, value in values.items() if name not in ("n", "digest")})
        if stage.digest() != values["digest"]:
            raise ConfigError(
                f"stage {stage.name!r} was written with {values['n']} examples of digest {values['digest']}, and these "
                f"are {len(stage.examples)} of digest {stage.digest()}; give the same data"
            )
        return stage

    def done(self) -> Callable[[list[dict[str, Any]]], bool] | None:
        """Return what ends the stage early: True once the validation loss is no better; None without `patience`."""
        patience = self.patience
        if patience is None:
            return None

        def no_better(rows: list[dict[str, Any]]) -> bool:
            losses = [row["eval_loss"] for row in rows if "eval_loss" in row]
            if not losses:
                raise ConfigError(
                    f"stage {self.name!r} has patience={patience} and no validation loss was measured; "
                    "give train(..., validation=examples), or steps instead of patience"
                )
            return len(losses) > patience and min(losses[-patience:]) >= min(losses[:-patience])

        return no_better


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """A stage as a trainer reads it: examples in the order in which they come, rehearsal among them.

    Args:
        name: The stage's name.
        examples: The whole sequence; an example may come more than once.
        replayed: For each of them, whether a memory gave it.
        steps: Optimiser steps where the stage says them; None reads the sequence once.
        epochs: 1 where it does not.
        lr: Peak learning rate or None.
        lr_scales: See `Stage`, or None.
        done: Ends the stage early, or None.
        shuffle: Always False: the order is the curriculum's.
    """

    name: str
    examples: list[Example] = field(repr=False)
    replayed: list[bool] = field(repr=False)
    steps: int | None
    epochs: float | None
    lr: float | None
    lr_scales: Mapping[str, float] | None
    done: Callable[[list[dict[str, Any]]], bool] | None
    shuffle: bool = False
