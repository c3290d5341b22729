"""What an adapter or a checkpoint adds to a base, in update space: one type, exact sums."""

from workbench.deltas.delta import Delta, combine

__all__ = ["Delta", "combine"]
