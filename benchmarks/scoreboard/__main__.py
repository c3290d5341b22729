"""Every idea's headline claim beside our figure: one page, from the committed result tables.

    python benchmarks/scoreboard              # writes docs/scoreboard.md and docs/scoreboard.html, in seconds
    python benchmarks/scoreboard --rebuild    # says what it costs, then makes all tables anew (hours)

A table that is not there leaves its claims open, and the page says so.
"""

from __future__ import annotations

import argparse
import datetime
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from claims import CLAIMS, Claim, Tables
from page import Row, headline, markdown, page

from workbench.models import data_samples_root

ROOT = Path(__file__).parents[2]
COMMANDS: dict[str, tuple[str, ...]] = {
    "curriculum_effect": ("curriculum_effect.py --trials 6 --seeds 5 --threads 1 --save",),
    "ratio_sweep": ("classroom.py --split test --save",),
    "few_shot_effect": ("few_shot_effect.py --search", "few_shot_effect.py --split test --save"),
    "lora_moe_effect": ("lora_moe_effect.py --search", "lora_moe_effect.py --split test --save --steps 120"),
    "skills_effect": ("skills_effect.py --search", "skills_effect.py --split test --save"),
}
"""Table to the commands, within `benchmarks`, that make it."""

SECONDS = ("seconds", "cell_s", "train_s")
"""The columns that say what a row took."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rebuild", action="store_true", help="make the tables anew first; what is done is kept")
    parser.add_argument("--results", type=Path, default=data_samples_root() / "results")
    parser.add_argument("--out", type=Path, default=ROOT / "docs")
    options = parser.parse_args(arguments)
    if options.rebuild:
        rebuild(read(options.results))
    tables = read(options.results)
    rows = [row_of(claim, tables) for claim in CLAIMS]
    made = [made_by(name, tables.get(name)) for name in COMMANDS]
    today = str(datetime.date.today())
    options.out.mkdir(parents=True, exist_ok=True)
    for name, write in (("scoreboard.md", markdown), ("scoreboard.html", page)):
        path = options.out / name
        path.with_suffix(".part").write_text(write(rows, made, today), encoding="utf-8")
        path.with_suffix(".part").replace(path)
    print(f"{headline(rows)}\nWritten to {options.out}/scoreboard.md and scoreboard.html.")


def read(folder: Path) -> dict[str, pd.DataFrame]:
    """Return the tables that are there, by name."""
    paths = {name: folder / f"{name}.csv" for name in COMMANDS}
    return {name: pd.read_csv(path) for name, path in paths.items() if path.is_file()}


def row_of(claim: Claim, tables: Tables) -> Row:
    """Return a claim with its figure, or with what is lacking for one."""
    if claim.table not in tables:
        return Row(claim, None, f"{claim.table}.csv is not made yet")
    return Row(claim, claim.measure(tables))


def made_by(name: str, table: pd.DataFrame | None) -> str:
    """Return the commands of a table, with its date and machine where it says them."""
    commands = "; ".join(f"python benchmarks/{command}" for command in COMMANDS[name])
    if table is None:
        return f"{name}.csv, not made yet: {commands}"
    told = table["made"].iloc[0].partition(": python")[0] if "made" in table else "no date in the table"
    return f"{name}.csv ({told}; {len(table)} rows): {commands}"


def rebuild(tables: Tables) -> None:
    """Say what all tables cost, by what their rows took last time, then run their commands."""
    for name in COMMANDS:
        table = tables.get(name)
        known = [column for column in SECONDS if table is not None and column in table]
        cost = f"{table[known[0]].sum() / 60:.0f} minutes of one core for its rows" if known else "not known"
        print(f"{name}: {cost}")
    print("The cells of a table are kept as they are done; the same command goes on where it was interrupted.")
    for commands in COMMANDS.values():
        for command in commands:
            script, *rest = command.split()
            print(f"\n== benchmarks/{command}", flush=True)
            subprocess.run([sys.executable, str(ROOT / "benchmarks" / script), *rest], check=True, cwd=ROOT)


if __name__ == "__main__":
    main()
