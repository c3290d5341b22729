"""The classroom world and its skill rows, generated once."""

from pathlib import Path

import pytest

from workbench.classroom.skills import TASKS
from workbench.classroom.world import World, load_world
from workbench.records import Example


@pytest.fixture(scope="session")
def world() -> World:
    return load_world(Path(__file__).parents[2] / "data_samples" / "world" / "conditions.json")


@pytest.fixture(scope="session")
def rows(world: World) -> dict[str, list[Example]]:
    return {name: examples(world) for name, examples in TASKS.items()}
