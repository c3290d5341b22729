"""Figures worked by hand, and the promise that chance alone is not called specialisation."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.errors import ConfigError
from workbench.records import RouterOutput, RoutingTrace
from workbench.routing.specialise import specialisation, word_classes
from workbench.routing.stats import (
    agreement,
    coactivation,
    dead_experts,
    entropy,
    expert_load,
    over_seeds,
    switching_rate,
)


def trace_of(*documents: list[int], experts: int = 3, second: list[int] | None = None) -> RoutingTrace:
    """One router, whose first expert of each token is given, document by document."""
    first = torch.tensor([expert for document in documents for expert in document])
    selected = first[:, None] if second is None else torch.stack([torch.tensor(second), first], 1)
    weights = torch.ones(len(first), 1) if second is None else torch.tensor([[0.2, 0.8]]).expand(len(first), 2)
    logits = torch.zeros(len(first), experts)
    output = RouterOutput(router_logits=logits, routing_weights=weights, selected_experts=selected)
    numbers = torch.tensor([i for i, document in enumerate(documents) for _ in document])
    tokens = {"document": numbers, "token_id": torch.arange(len(first))}
    return RoutingTrace(tokens=tokens, routers={"gate": output}, layers={"gate": 0})


def test_load_counts_choices_and_finds_the_dead() -> None:
    trace = trace_of([0, 0, 1], [0], experts=3)
    load = expert_load(trace)["gate"]
    assert load.value.tolist() == [0.75, 0.25, 0]
    assert load.chance.tolist() == pytest.approx([1 / 3] * 3)
    assert (load.n, load.documents) == (4, 2)
    assert (load.low[0], load.high[0]) == (pytest.approx(2 / 3), 1)
    assert dead_experts(trace) == {"gate": [2]}
    assert dead_experts(trace, least=0.25) == {"gate": [1, 2]}


def test_every_selected_expert_counts_in_the_load_and_the_best_leads() -> None:
    trace = trace_of([0, 1, 1], [1], second=[2, 2, 0, 2])
    assert expert_load(trace)["gate"].value.tolist() == [2 / 8, 3 / 8, 3 / 8]
    pairs = coactivation(trace)["gate"]
    assert pairs.value[0, 2] == 0.25
    assert pairs.value[1, 2] == pairs.value[2, 1] == 0.5
    assert np.isnan(np.diag(pairs.value)).all()
    assert pairs.chance[0, 1] == pytest.approx(1 / 3)


def test_a_single_document_has_no_interval() -> None:
    load = expert_load(trace_of([0, 1, 2]))["gate"]
    assert np.isnan(load.low).all()
    assert np.isnan(load.high).all()


def test_entropy_is_one_where_all_are_equal_and_falls_with_confidence() -> None:
    trace = trace_of([0, 1], [2])
    assert entropy(trace)["gate"].value == pytest.approx(1)
    sure = RouterOutput(**{**vars(trace.routers["gate"]), "router_logits": torch.tensor([[50.0, 0, 0]] * 3)})
    trace.routers["gate"] = sure
    assert entropy(trace)["gate"].value == pytest.approx(0, abs=1e-6)


def test_switches_are_counted_within_documents() -> None:
    rate = switching_rate(trace_of([0, 1, 1], [2, 0], [1]))["gate"]
    assert rate.value == pytest.approx(2 / 3)
    assert (rate.n, rate.documents) == (3, 2)
    assert rate.chance == pytest.approx(1 - (4 + 9 + 1) / 36)
    with pytest.raises(ConfigError, match=r"the 2 documents of the trace have one token each"):
        switching_rate(trace_of([0], [1]))


def test_agreement_compares_the_same_tokens() -> None:
    first, second = trace_of([0, 1], [2, 2]), trace_of([0, 2], [2, 1])
    found = agreement(first, second)["gate"]
    assert found.value == 0.5
    assert found.chance == pytest.approx((1 * 1 + 1 * 1 + 2 * 2) / 16)
    with pytest.raises(ConfigError, match=r"hold 4 and 1 tokens and must hold the same ones"):
        agreement(first, trace_of([0]))
    second.routers["other"] = second.routers.pop("gate")
    with pytest.raises(ConfigError, match=r"\['gate'\] and \['other'\]: none is in both"):
        agreement(first, second)


def test_seeds_have_a_t_interval() -> None:
    found = over_seeds([0.4, 0.6, 0.5], chance=0.1)
    assert found.value == pytest.approx(0.5)
    assert found.high - found.value == pytest.approx(4.303 * 0.1 / math.sqrt(3))
    assert found.n == 3
    with pytest.raises(ConfigError, match=r"needs at least two; train another seed"):
        over_seeds([0.4])


def test_an_empty_trace_says_what_to_do() -> None:
    with pytest.raises(ConfigError, match=r"the trace is empty; run the model within"):
        expert_load(RoutingTrace())


def test_experts_that_follow_the_documents_topic_stand_out_from_chance() -> None:
    documents = [[i % 2] * 5 for i in range(20)]
    found = specialisation(trace_of(*documents, experts=2), ["heart" if i % 2 else "skin" for i in range(20)])["gate"]
    assert found.labels == ("heart", "skin")
    assert found.bits == pytest.approx(1)
    assert found.share.tolist() == [[0, 1], [1, 0]]
    assert found.shuffled == "documents"
    assert found.p == pytest.approx(1 / 201)
    assert found.null < 0.2
    assert found.uniform < 0.05
    assert found.low > 0.5
    assert found.surprising.all()


def test_documents_with_favourites_of_their_own_are_not_called_specialists() -> None:
    """Tokens are alike within a document: shuffled tokens would call this a discovery, shuffled documents do not."""
    rng = np.random.default_rng(1)
    documents = [[int(rng.integers(3))] * 40 for _ in range(12)]
    found = specialisation(trace_of(*documents), ["a", "b", "c"] * 4, seed=3)["gate"]
    assert found.bits > 5 * found.uniform
    assert found.p > 0.05
    assert found.low < 0 < found.high


def test_labels_of_tokens_change_places_within_their_document() -> None:
    rng = np.random.default_rng(0)
    labels = [rng.choice(["noun", "verb"], 30) for _ in range(8)]
    experts = [[int(word == "verb") if rng.random() < 0.8 else 2 for word in one] for one in labels]
    found = specialisation(trace_of(*experts), np.concatenate(labels))["gate"]
    assert found.shuffled == "tokens"
    assert found.low > 0.2
    assert found.share[0, 1] == found.share[1, 0] == 0
    assert found.n == 240


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000))
def test_information_is_never_negative_and_shuffles_share_its_margins(seed) -> None:
    rng = np.random.default_rng(seed)
    documents = [rng.integers(0, 4, rng.integers(1, 9)).tolist() for _ in range(6)]
    found = specialisation(trace_of(*documents, experts=4), ["x", "y", "z"] * 2, draws=20)["gate"]
    assert 0 <= found.bits <= math.log2(3)
    assert found.null >= -1e-12
    np.testing.assert_allclose(found.share.sum(1), 1)
    np.testing.assert_allclose(found.null_share.sum(1), 1)


def test_unfit_labels_are_refused() -> None:
    trace = trace_of([0, 1], [2, 2])
    with pytest.raises(ConfigError, match=r"there are 3 labels, and the trace has 4 tokens of 2 documents"):
        specialisation(trace, ["a", "b", "c"])
    with pytest.raises(ConfigError, match=r"all labels are 'a'; specialisation needs at least two"):
        specialisation(trace, ["a", "a"])
    with pytest.raises(ConfigError, match=r"draws=5 must be at least 20"):
        specialisation(trace, ["a", "b"], draws=5)


def test_words_are_sorted_without_a_parser() -> None:
    pieces = ["The", " pat", "ient", " took", " 2.5", " mg", ".", "\n", "And"]
    kinds = ["function word", "content word", "rest of a word", "content word", "number", "content word"]
    assert word_classes(pieces) == [*kinds, "punctuation", "space", "function word"]
