"""The pictures of a routing trace: load, specialisation beyond chance, pairs of experts, flow, and two checkpoints."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from workbench.records import RoutingTrace
from workbench.routing.specialise import Specialisation, specialisation
from workbench.routing.stats import Estimate, agreement, coactivation, entropy, expert_load, switching_rate
from workbench.views.router_drawing import Panel, heat_map, share_bars

INTERVAL = "intervals (95 %) resample whole documents"


def router_labels(trace: RoutingTrace) -> dict[str, str]:
    """Return a short name for each router: its layer, and its place in the layer where a layer has several."""
    short = {}
    for name, layer in trace.layers.items():
        rest = re.sub(rf"^.*?\.{layer}\.|\.lora_moe_router(\.default)?|self_attn\.", "", name)
        short[name] = f"layer {layer}" if list(trace.layers.values()).count(layer) == 1 else f"{layer} {rest}"
    return {name: name if trace.layers[name] < 0 else label for name, label in short.items()}


def load_panel(trace: RoutingTrace, *, seed: int) -> Panel:
    """Draw the expert load of every router, minus what an even router has."""
    load, labels = expert_load(trace, seed=seed), router_labels(trace)
    sure, switch = entropy(trace, seed=seed), _switching(trace, seed)
    width = max(len(one.value) for one in load.values())
    values = np.full((len(load), width), np.nan)
    marks = np.zeros(values.shape, dtype=bool)
    for i, one in enumerate(load.values()):
        values[i, : len(one.value)] = one.value
        marks[i, : len(one.value)] = (one.low > one.chance) | (one.high < one.chance)
    rows = [
        [labels[name], *(_interval(one, e) for e in range(len(one.value))), _interval(sure[name]), switch[name]]
        for name, one in load.items()
    ]
    return Panel(
        title="Expert load by layer",
        picture=heat_map(values, [labels[name] for name in load], [f"E{e}" for e in range(width)], marks=marks),
        reading="one row for each router, one column for each expert; the number is the expert's share of the choices. "
        f"An even router has {1 / width:.2f} everywhere; a star marks a share whose interval leaves that out, and 0.00 "
        "in a column is an expert that this text never woke.",
        about=f"{_size(next(iter(load.values())))}; {INTERVAL}; seed {seed}. In the table, entropy is a share of log E "
        "(1 = undecided), and switching the rate at which neighbouring tokens change experts, with chance beside it.",
        head=["router", *(f"E{e}" for e in range(width)), "entropy", "switching"],
        rows=rows,
    )


def information_panel(found: dict[str, Specialisation], labels: dict[str, str], what: str) -> Panel:
    """Draw for every router how much the expert tells of the label, beside what chance alone gives."""
    rows = list(found.values())
    one = rows[0]
    values = np.array([[s.bits, s.null, s.uniform, s.excess] for s in rows])
    marks = np.array([[False, False, False, bool(s.low > 0)] for s in rows])
    names = ["bits", "shuffled", "uniform", "excess"]
    return Panel(
        title=f"How much an expert tells of the {what}, router by router",
        picture=heat_map(values, [labels[name] for name in found], names, marks=marks, digits=3),
        reading="mutual information in bits: measured, with shuffled labels, and for a router that draws experts at "
        "random. Only the excess over shuffled labels is specialisation; a star marks an interval above 0.",
        about=f"{_size(one)}; labels shuffled among {one.shuffled}; {INTERVAL}; seed {one.seed}.",
        head=["router", "bits", "shuffled (97.5 %)", "uniform", "excess (95 %)", "p"],
        rows=[
            [
                labels[name],
                f"{s.bits:.3f}",
                f"{s.null:.3f} ({s.null_high:.3f})",
                f"{s.uniform:.3f}",
                _excess(s),
                f"{s.p:.3f}",
            ]
            for name, s in found.items()
        ],
    )


def specialisation_panel(one: Specialisation, label: str, what: str) -> Panel:
    """Draw for one router how far each label's experts differ from those under shuffled labels."""
    experts = [f"E{e}" for e in range(one.share.shape[1])]
    return Panel(
        title=f"{what.capitalize()} and expert, minus chance: {label}",
        picture=heat_map(one.share - one.null_share, one.labels, experts, marks=one.surprising),
        reading=f"one row for each {what}; a blue cell is an expert that takes more of its tokens than under shuffled "
        "labels, an orange one fewer. A star leaves the middle 95 % of the shuffles; with many cells some stars come "
        f"by chance. Overall the excess is {_excess(one)} bits: "
        f"{'more than chance' if one.low > 0 else 'not told apart from chance here'}.",
        about=f"{_size(one)}; {one.shuffled} change labels; seed {one.seed}.",
        head=[f"{what}: share, shuffled", *experts],
        rows=[
            [row, *(f"{a:.2f}, {b:.2f}" for a, b in zip(one.share[i], one.null_share[i]))]
            for i, row in enumerate(one.labels)
        ],
    )


def coactivation_panel(trace: RoutingTrace, name: str, label: str, *, seed: int) -> Panel:
    """Draw how often two experts of one router serve the same token."""
    one = coactivation(replace(trace, routers={name: trace.routers[name]}), seed=seed)[name]
    names = [f"E{e}" for e in range(len(one.value))]
    chance = float(one.chance[0, -1])
    return Panel(
        title=f"Experts that serve together: {label}",
        picture=heat_map(one.value, names, names, marks=(one.low > chance) | (one.high < chance)),
        reading=f"the share of tokens that take both experts. Pairs drawn at random would have {chance:.2f}; a star "
        "marks a pair whose interval leaves that out. With one expert for each token there are no pairs.",
        about=f"{_size(one)}; {INTERVAL}; seed {seed}.",
        head=["", *names],
        rows=[
            [row, *("" if i == j else _interval(one, i, j) for j in range(len(names)))] for i, row in enumerate(names)
        ],
    )


def flow_panel(trace: RoutingTrace, name: str, label: str, groups: Sequence[Any], what: str, *, seed: int) -> Panel:
    """Draw where the tokens of each group go at one router."""
    one = specialisation(replace(trace, routers={name: trace.routers[name]}), groups, seed=seed)[name]
    documents = trace.tokens["document"].tolist()
    each = [str(group) for group in (groups if len(groups) == len(trace) else [groups[d] for d in documents])]
    counts = [each.count(group) for group in one.labels]
    return Panel(
        title=f"From {what} to expert: {label}",
        picture=share_bars(one.share, one.labels, [f"n = {count:,}" for count in counts]),
        reading=f"one bar for each {what}, cut by the first expert of its tokens; the number in a piece is the expert. "
        "Bars that look alike are a router that does not care.",
        about=f"{_size(one)}; {one.bits:.3f} bits, {one.null:.3f} with shuffled "
        f"labels, excess {_excess(one)}; seed {one.seed}.",
        head=[what, "n", *(f"E{e}" for e in range(one.share.shape[1]))],
        rows=[[row, counts[i], *(f"{share:.2f}" for share in one.share[i])] for i, row in enumerate(one.labels)],
    )


def agreement_panel(trace: RoutingTrace, other: RoutingTrace, names: tuple[str, str], *, seed: int) -> Panel:
    """Draw, router by router, how often two checkpoints send a token to the same first expert."""
    found, labels = agreement(trace, other, seed=seed), router_labels(trace)
    values = np.array([[float(one.value), float(one.chance)] for one in found.values()])
    marks = np.array([[bool(one.low > one.chance), False] for one in found.values()])
    return Panel(
        title=f"Do {names[0]} and {names[1]} route alike?",
        picture=heat_map(values, [labels[name] for name in found], ["agree", "chance"], marks=marks),
        reading="the share of tokens that go to the same first expert in both, beside what two independent routers of "
        "these loads would have. A star marks an interval above chance.",
        about=f"{_size(next(iter(found.values())))}; {INTERVAL}; seed {seed}.",
        head=["router", "agreement", "chance"],
        rows=[[labels[name], _interval(one), f"{one.chance:.2f}"] for name, one in found.items()],
    )


def _switching(trace: RoutingTrace, seed: int) -> dict[str, str]:
    documents = trace.tokens["document"]
    if not bool((documents[1:] == documents[:-1]).any()):
        return dict.fromkeys(trace.routers, "")
    return {
        name: f"{_interval(one)}, chance {one.chance:.2f}" for name, one in switching_rate(trace, seed=seed).items()
    }


def _excess(one: Specialisation) -> str:
    interval = "one document: no interval" if np.isnan(one.low) else f"{one.low:+.3f} to {one.high:+.3f}"
    return f"{one.excess:+.3f} ({interval})"


def _size(one: Estimate | Specialisation) -> str:
    return f"n = {one.n:,} tokens of {one.documents} document{'' if one.documents == 1 else 's'}"


def _interval(one: Estimate, *place: int) -> str:
    value, low, high = one.value[place], one.low[place], one.high[place]
    return f"{value:.2f}" if np.isnan(low) else f"{value:.2f} ({low:.2f} to {high:.2f})"
