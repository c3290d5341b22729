"""What is recorded: every real token once, in its document, with the decision that the model really took."""

import pandas as pd
import pytest
import torch
from peft import get_peft_model
from pico_language import byte_tokenizer, pico
from pico_mixtures import EXPERTS, NATIVE, TOP, mixture, xlora
from torch import nn

from workbench.errors import ConfigError, ModelError
from workbench.generation import generate_batch
from workbench.records import RouterOutput, RoutingTrace
from workbench.routing.capture import capture_routing

IDS = torch.tensor([[0, 0, 5, 6, 7], [9, 8, 7, 6, 5]])
MASK = (IDS > 0).long()


def hooks(model) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


@pytest.mark.parametrize("kind", NATIVE)
def test_the_parts_of_a_generation_are_those_of_one_reading(kind) -> None:
    model = mixture(kind)
    before = hooks(model)
    with capture_routing(model) as trace:
        written = model.generate(input_ids=IDS, attention_mask=MASK, max_new_tokens=4, do_sample=False)
    assert hooks(model) == before
    assert list(trace.routers) == ["layers.0.mlp.gate", "layers.1.mlp.gate"]
    assert trace.layers == {"layers.0.mlp.gate": 0, "layers.1.mlp.gate": 1}
    assert len(trace) == 3 + 3 + 5 + 3  # the last token is written, never read
    second = trace.of(1)
    assert second.tokens["token_id"].tolist() == written[1, :-1].tolist()
    assert second.tokens["position"].tolist() == list(range(8))
    assert second.tokens["step"].tolist() == [0] * 5 + [1, 2, 3]
    with capture_routing(model) as read:
        model(input_ids=written[1:, :-1])
    for name, output in read.routers.items():
        assert output.router_logits.shape == (8, EXPERTS)
        assert output.selected_experts.shape == output.routing_weights.shape == (8, TOP)
        torch.testing.assert_close(second.routers[name].router_logits, output.router_logits, atol=1e-4, rtol=1e-4)
        assert torch.equal(second.routers[name].selected_experts, output.selected_experts)


def test_padding_on_either_side_has_no_decision() -> None:
    model = mixture()
    ids = torch.tensor([[5, 6, 7, 0, 0], [9, 8, 7, 6, 5]])
    with capture_routing(model) as trace:
        model(input_ids=ids, attention_mask=(ids > 0).long())
        model(input_ids=ids[:1, :3])
    assert trace.tokens["document"].tolist() == [0] * 3 + [1] * 5 + [2] * 3
    assert trace.tokens["position"].tolist() == [0, 1, 2, 0, 1, 2, 3, 4, 0, 1, 2]
    assert trace.tokens["row"].tolist() == [0] * 3 + [1] * 5 + [0] * 3
    torch.testing.assert_close(*(trace.of(i).routers["layers.1.mlp.gate"].router_logits for i in (0, 2)))


def test_answers_that_have_ended_are_not_filled_up() -> None:
    model = mixture()
    first = int(model.generate(input_ids=IDS, attention_mask=MASK, max_new_tokens=1, do_sample=False)[0, -1])
    model.generation_config.eos_token_id = first
    with capture_routing(model) as trace:
        model.generate(input_ids=IDS, attention_mask=MASK, max_new_tokens=6, do_sample=False)
    assert trace.of(0).tokens["token_id"].tolist() == [5, 6, 7, first]


def test_rows_that_leave_a_batch_begin_new_documents() -> None:
    model, tokenizer = mixture(), byte_tokenizer()
    model.generation_config.eos_token_id = None
    first = generate_batch(model, tokenizer, ["abc", "defgh"], max_new_tokens=1)[1]
    model.generation_config.eos_token_id = tokenizer(first)["input_ids"][0]
    with capture_routing(model) as trace:
        generate_batch(model, tokenizer, ["abc", "defgh"], max_new_tokens=4)
    assert trace.tokens["document"].unique().tolist() == [0, 1, 2]
    assert trace.of(2).tokens["position"].tolist() == [4, 5, 6]  # after "abc" and a line feed


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_training_step_is_recorded_once_and_holds_no_graph(checkpointing) -> None:
    model = mixture(output_router_logits=True).train()
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    with capture_routing(model) as trace:
        model(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
    assert len(trace) == IDS.numel()
    assert all(not output.router_logits.requires_grad for output in trace.routers.values())
    assert model.model.layers[0].mlp.gate.weight.grad is not None


def lora_moe(**changes):
    from workbench.adapters import LoraMoeConfig

    settings = {"r": 2, "num_experts": 4, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"}
    model = get_peft_model(pico(), LoraMoeConfig(**settings, **changes)).eval()
    for name, tensor in model.named_parameters():
        if "lora_moe" in name:
            tensor.data.normal_(0, 0.5)
    return model


@pytest.mark.parametrize("changes", [{}, {"router": "layer"}, {"routing": "sequence"}, {"shared_expert": True}])
def test_lora_mixtures_are_read_whatever_they_share(changes) -> None:
    model = lora_moe(**changes)
    with capture_routing(model) as trace:
        written = model.generate(input_ids=IDS, attention_mask=MASK, max_new_tokens=4, do_sample=False)
    each = ("self_attn.q_proj",) if "router" in changes else ("self_attn.q_proj", "mlp.down_proj")
    assert list(trace.routers) == [f"layers.{i}.{part}.lora_moe_router.default" for i in range(2) for part in each]
    assert trace.of(1).tokens["token_id"].tolist() == written[1, :-1].tolist()
    assert trace.of(1).tokens["step"].tolist() == [0] * 5 + [1, 2, 3]
    for output in trace.of(1).routers.values():
        assert (len(output.router_logits.unique(dim=0)) == 1) == (changes == {"routing": "sequence"})


def test_passes_without_the_adapter_have_no_routing() -> None:
    model = lora_moe()
    with capture_routing(model) as trace:
        model(input_ids=IDS)
        with model.disable_adapter():
            model.generate(input_ids=IDS, max_new_tokens=3, do_sample=False)
        model(input_ids=IDS)
    assert len(trace) == 20


def test_hooks_come_off_after_an_error_and_whole_passes_stay() -> None:
    model = mixture()
    before = hooks(model)
    trace = RoutingTrace()

    def broken() -> None:
        nonlocal trace
        with capture_routing(model) as trace:
            model(input_ids=IDS)
            model(input_ids=torch.tensor([[9999]]))

    with pytest.raises(IndexError):
        broken()
    assert hooks(model) == before
    assert len(trace) == IDS.numel()


def test_captures_may_stand_within_each_other() -> None:
    model = mixture()
    with capture_routing(model) as outer:
        model(input_ids=IDS)
        with capture_routing(model) as inner:
            model(input_ids=IDS)
    assert (len(outer), len(inner)) == (20, 10)


def test_memory_is_bounded_by_dropping_the_oldest_passes() -> None:
    model = mixture()
    with capture_routing(model, max_tokens=12) as trace:
        for start in range(3):
            model(input_ids=IDS[:, start : start + 3])
    assert len(trace) == 12
    assert trace.dropped == {"passes": 1}
    with pytest.raises(ConfigError, match=r"max_tokens=0 must be at least 1, or None"):
        capture_routing(model, max_tokens=0).__enter__()


def test_a_model_without_router_is_refused() -> None:
    with pytest.raises(ModelError, match=r"LlamaForCausalLM has no router; take a mixture"), capture_routing(pico()):
        pass


def test_an_unused_trace_is_empty() -> None:
    with capture_routing(mixture()) as trace:
        assert len(trace) == 0
    assert repr(trace) == "RoutingTrace(0 tokens of 0 documents, 0 routers)"
    assert trace.to_frame().empty


@pytest.mark.parametrize("layerwise", [True, False])
def test_xlora_reads_its_scalings_layer_by_layer(tmp_path, layerwise) -> None:
    model = xlora(tmp_path, layerwise_scalings=layerwise, top_k_lora=None)
    with capture_routing(model) as trace:
        model(input_ids=IDS)
    names = [f"layers.{i}.self_attn.{part}_proj" for i in range(2) for part in "qv"]
    assert list(trace.routers) == (names if layerwise else ["internal_xlora_classifier"])
    scalings = model.internal_xlora_scalings.flatten(0, 1)
    for i, output in enumerate(trace.routers.values()):
        torch.testing.assert_close(torch.softmax(output.router_logits, -1), scalings[:, i])
        assert output.selected_experts[:, 0].tolist() == scalings[:, i].argmax(-1).tolist()


def test_xlora_reads_again_for_each_token_and_each_is_recorded_once(tmp_path) -> None:
    model = xlora(tmp_path)
    with capture_routing(model) as trace:
        written = model.generate(input_ids=IDS[1:], max_new_tokens=3, do_sample=False)
    assert trace.tokens["token_id"].tolist() == written[0, :-1].tolist()
    assert trace.tokens["step"].tolist() == [0] * 5 + [1, 2]
    assert trace.tokens["document"].unique().tolist() == [0]


class Router(nn.Module):
    """Scores the first two features; for each token, or for each sequence by its mean."""

    def __init__(self, *, sequences: bool) -> None:
        super().__init__()
        self.sequences = sequences

    def forward(self, hidden: torch.Tensor) -> RouterOutput:
        scores = hidden.mean(1)[:, :2] if self.sequences else hidden.flatten(0, 1)[:, :2]
        weights, selected = torch.softmax(scores, -1).topk(1)
        return RouterOutput(router_logits=scores, routing_weights=weights / weights, selected_experts=selected)


class Shared(nn.Module):
    """Two layers with one router, and a table as embedding."""

    def __init__(self, *, sequences: bool = False, calls: int = 2) -> None:
        super().__init__()
        router = Router(sequences=sequences)
        self.layers = nn.ModuleList(nn.ModuleDict({"router": router}) for _ in range(2))
        self.calls = calls

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        hidden = torch.stack([input_ids, 4 - input_ids, input_ids], -1).float()
        for layer in list(self.layers)[: self.calls]:
            layer["router"](hidden)
            hidden = -hidden
        return hidden


def test_a_shared_router_is_told_apart_by_layer() -> None:
    model = Shared()
    with capture_routing(model) as trace:
        model(torch.tensor([[1, 3, 4]]))
    assert [output.selected_experts[:, 0].tolist() for output in trace.routers.values()] == [[1, 0, 0], [0, 1, 1]]
    assert trace.layers == {"layers.0.router": 0, "layers.1.router": 1}


def test_a_route_of_a_whole_sequence_is_that_of_its_tokens() -> None:
    model = Shared(sequences=True)
    ids = torch.tensor([[1, 1, 1], [4, 4, 4]])
    with capture_routing(model) as trace:
        model(ids, attention_mask=torch.tensor([[0, 1, 1], [1, 1, 1]]))
    assert trace.routers["layers.0.router"].selected_experts[:, 0].tolist() == [1] * 2 + [0] * 3


def test_a_router_that_rests_in_some_passes_is_refused() -> None:
    model = Shared()
    message = r"the router layers.1.router ran in 1 of 2 forward passes, or in another order; capture"

    def change() -> None:
        with capture_routing(model):
            model(torch.tensor([[1, 3, 4]]))
            model.calls = 1
            model(torch.tensor([[1, 3, 4]]))

    with pytest.raises(ModelError, match=message):
        change()


def test_tables_and_files_hold_a_row_for_each_router_and_token(tmp_path) -> None:
    model = mixture()
    with capture_routing(model) as trace:
        model(input_ids=IDS, attention_mask=MASK)
    trace.to_parquet(tmp_path / "trace.parquet")
    table = pd.read_parquet(tmp_path / "trace.parquet")
    assert [path.name for path in tmp_path.iterdir()] == ["trace.parquet"]
    assert len(table) == 2 * 8
    assert {"token_id", "document", "row", "position", "step", "router", "layer", "expert"} <= set(table.columns)
    second = table[(table["layer"] == 1) & (table["document"] == 1)]
    output = trace.of(1).routers["layers.1.mlp.gate"]
    assert second["expert"].tolist() == output.selected_experts[:, 0].tolist()
    assert [list(row) for row in second["selected_experts"]] == output.selected_experts.tolist()
    assert isinstance(trace, RoutingTrace)
