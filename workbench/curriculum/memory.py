"""What training has seen: a ring of recent examples, and a store with a fair sample of each stage."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from workbench.errors import ConfigError
from workbench.records import Example

_HELD_OUT = ("test", "val", "dev", "eval")


def refuse_held_out(example: Example) -> None:
    """Keep test and validation examples out of everything that training repeats.

    Raises:
        ConfigError: The example's split is, by its name, not for training.
    """
    if example.split.lower().startswith(_HELD_OUT):
        raise ConfigError(
            f"example {example.id!r} is of split {example.split!r}; stages and memories hold training examples only: "
            "load with split='train', or filter the others out"
        )


class ShortTermMemory:
    """A ring of the most recent examples, each with its last loss; how often each was seen outlives the ring.

    Args:
        size: Most examples held, at least 1; the one seen longest ago gives way.

    Raises:
        ConfigError: `size` is below 1.

    Source: MaLP (arXiv 2309.11696), short-term memory and its table of occurrences. Our reading: examples are seen in
    training batches, and the drawing of rehearsal by last loss.
    """

    def __init__(self, size: int = 256) -> None:
        self.size = _at_least_one("size", size)
        self.clear()

    def settings(self) -> dict[str, Any]:
        """Return the arguments that make such a memory, empty."""
        return {"size": self.size}

    def clear(self) -> None:
        """Forget everything."""
        self._ring: dict[str, tuple[Example, str, float]] = {}
        self._counts: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._ring)

    def add(self, example: Example, stage: str, loss: float) -> int:
        """Put an example at the newest place and return how often it has been seen.

        Raises:
            ConfigError: The example is held out from training.
        """
        refuse_held_out(example)
        self._ring.pop(example.id, None)
        self._ring[example.id] = (example, stage, float(loss))
        if len(self._ring) > self.size:
            del self._ring[next(iter(self._ring))]
        self._counts[example.id] = self._counts.get(example.id, 0) + 1
        return self._counts[example.id]

    def examples(self) -> list[Example]:
        """Return what is held, the oldest first."""
        return [example for example, _, _ in self._ring.values()]

    def draw(self, n: int, rng: random.Random) -> list[Example]:
        """Draw n examples with replacement, each with probability in proportion to its last loss."""
        losses = [loss for _, _, loss in self._ring.values()]
        return rng.choices(self.examples(), losses if sum(losses) > 0 else None, k=n) if losses else []

    def rows(self) -> list[dict[str, Any]]:
        """Return the memory as a table, the newest example first."""
        return [
            {"id": example.id, "stage": stage, "skill": example.skill, "loss": loss, "seen": self._counts[example.id],
             "query": example.query, "answer": example.answer}
            for example, stage, loss in reversed(self._ring.values())
        ]  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """Return the content as JSON values; examples by their id."""
        ring = [[id, stage, loss] for id, (_, stage, loss) in self._ring.items()]
        return {"ring": ring, "counts": dict(self._counts)}

    def load_state_dict(self, state: Mapping[str, Any], examples: Mapping[str, Example]) -> None:
        """Bring back what `state_dict` returned; `examples` maps ids to examples."""
        self._ring = {id: (examples[id], stage, loss) for id, stage, loss in state["ring"]}
        self._counts = dict(state["counts"])


class LongTermMemory:
    """A store with a quota for each stage, filled by reservoir sampling: every offered example is as likely to stay.

    Args:
        size: Most examples held, at least 1.
        theta: How often an example must have been seen before it is offered, at least 1; without a short-term memory
            nobody counts, and each is offered at once.
        quotas: Stage to its places; None divides `size` evenly among the stages.
        seed: Of the sampling.

    Raises:
        ConfigError: A number is below 1, or the quotas exceed `size`.

    Source: MaLP (arXiv 2309.11696), promotion when the count reaches theta; Vitter (1985), algorithm R. Deviates:
    MaLP's store is unbounded; the example stays in the short-term memory too.
    """

    def __init__(
        self, size: int = 1024, *, theta: int = 1, quotas: Mapping[str, int] | None = None, seed: int = 0
    ) -> None:
        self.size, self.theta = _at_least_one("size", size), _at_least_one("theta", theta)
        self.given = None if quotas is None else {k: _at_least_one(f"quotas[{k!r}]", v) for k, v in quotas.items()}
        if self.given and sum(self.given.values()) > size:
            raise ConfigError(f"quotas {self.given} sum to {sum(self.given.values())}; they must fit into size={size}")
        self.quotas, self.seed = dict(self.given or {}), seed
        self.clear()

    def settings(self) -> dict[str, Any]:
        """Return the arguments that make such a memory, empty."""
        return {"size": self.size, "theta": self.theta, "quotas": self.given, "seed": self.seed}

    def clear(self) -> None:
        """Forget everything but the quotas."""
        self._held: dict[str, list[Example]] = {}
        self._offered: dict[str, set[str]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._held.values()))

    def divide(self, stages: Sequence[str]) -> None:
        """Give each stage its quota.

        Raises:
            ConfigError: A stage would get no place.
        """
        self.quotas = self.given or dict.fromkeys(stages, self.size // len(stages))
        without = [stage for stage in stages if self.quotas.get(stage, 0) < 1]
        if without:
            raise ConfigError(
                f"long-term memory of size {self.size} with quotas {self.quotas} has no place for stage {without[0]!r}"
                "; give every stage at least one"
            )

    def offer(self, example: Example, stage: str) -> bool:
        """Take an example in with the chance that keeps the stage's sample uniform; a second offer changes nothing.

        The n-th offer stays with probability quota / n, in the place of a random earlier one once the quota is full.
        Chance depends on seed, stage and n alone, so that no generator's state needs saving.

        Raises:
            ConfigError: The example is held out from training, or the stage has no quota.
        """
        refuse_held_out(example)
        if stage not in self.quotas:
            raise ConfigError(f"stage {stage!r} has no quota; those with one are {[*self.quotas]}: call divide")
        offered, held = self._offered.setdefault(stage, set()), self._held.setdefault(stage, [])
        if example.id in offered:
            return False
        offered.add(example.id)
        place = random.Random(f"{self.seed}/{stage}/{len(offered)}").randrange(len(offered))
        if len(held) < self.quotas[stage]:
            held.append(example)
        elif place < len(held):
            held[place] = example
        else:
            return False
        return True

    def examples(self, *, without: Iterable[str] = ()) -> list[Example]:
        """Return what is held, stage by stage, but for the stages named."""
        # In the order of the quotas: that of `_held` is lost where JSON is written with sorted keys.
        stages = [stage for stage in self.quotas if stage not in set(without)]
        return [example for stage in stages for example in self._held.get(stage, [])]

    def rows(self) -> list[dict[str, Any]]:
        """Return the memory as a table, stage by stage."""
        return [
            {"id": example.id, "stage": stage, "skill": example.skill, "query": example.query, "answer": example.answer}
            for stage in self.quotas
            for example in self._held.get(stage, [])
        ]

    def state_dict(self) -> dict[str, Any]:
        """Return the content as JSON values; examples by their id."""
        return {
            stage: {"held": [example.id for example in held], "offered": sorted(self._offered[stage])}
            for stage, held in self._held.items()
        }

    def load_state_dict(self, state: Mapping[str, Any], examples: Mapping[str, Example]) -> None:
        """Bring back what `state_dict` returned; `examples` maps ids to examples."""
        self._held = {stage: [examples[id] for id in part["held"]] for stage, part in state.items()}
        self._offered = {stage: set(part["offered"]) for stage, part in state.items()}


def _at_least_one(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{name}={value!r}: it must be a whole number of at least 1")
    return value
