"""The mixture layer: equal to PEFT's LoRA and to a plain loop, without waiting for the device; routes and losses."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from pico_adapters import IDS, TARGETS, gpt2, llama, logits, trained
from torch.utils._python_dispatch import TorchDispatchMode

from workbench.adapters import LoraMoeConfig, auxiliary_losses, keep_sequences
from workbench.adapters.lora_moe.layer import LoraMoeLayer
from workbench.adapters.lora_moe.router import Router
from workbench.errors import ConfigError, ModelError
from workbench.ops.routing import balance_loss
from workbench.records import RouterOutput

MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])


def config(**changes):
    settings = {"r": 4, "num_experts": 3, "queue_size": 5, "queue_dim": 6, "target_modules": TARGETS}
    return LoraMoeConfig(**(settings | {"task_type": "CAUSAL_LM"} | changes))


def layers(model):
    return [module for module in model.modules() if isinstance(module, LoraMoeLayer)]


def test_one_expert_is_lora_forward_and_backward():
    base = llama()
    one = {"num_experts": 1, "num_experts_per_tok": 1, "contrastive_loss_coef": 0.0, "router_aux_loss_coef": 0.0}
    mine = trained(base, config(lora_alpha=6, **one))
    theirs = trained(base, LoraConfig(r=4, lora_alpha=6, target_modules=TARGETS, task_type="CAUSAL_LM"))
    other = dict(theirs.named_parameters())
    pairs = {
        name: other[name.replace("moe_", "").replace(".default", ".default.weight")]
        for name, _ in mine.named_parameters()
        if "moe_A" in name or "moe_B" in name
    }
    for name, tensor in mine.named_parameters():
        if name in pairs:
            tensor.data.copy_(pairs[name])
    for model in (mine.train(), theirs.train()):
        model(input_ids=IDS, labels=IDS).loss.backward()
    assert torch.allclose(logits(mine), logits(theirs), atol=1e-6)
    for name, tensor in mine.named_parameters():
        if name in pairs:
            assert torch.allclose(tensor.grad, pairs[name].grad, atol=1e-6), name


@pytest.mark.parametrize("changes", [{}, {"shared_expert": True, "use_rslora": True}, {"num_experts_per_tok": 1}])
def test_the_grouped_sum_is_the_loop_over_experts(changes):
    layer = layers(trained(llama(), config(**changes)))[0]
    x = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(3))
    settings, down, up = layer.settings["default"], layer.lora_moe_A["default"], layer.lora_moe_B["default"]
    route = layer.lora_moe_router["default"](x.flatten(0, 1))
    wanted = layer.base_layer(x).flatten(0, 1).clone()
    for row, token in enumerate(x.flatten(0, 1)):
        chosen = list(zip(route.selected_experts[row].tolist(), route.routing_weights[row]))
        for expert, weight in chosen + [(3, 1.0)] * settings.shared_expert:
            part = slice(4 * expert, 4 * expert + 4)
            wanted[row] += settings.scaling * weight * (up[:, part] @ (down[part] @ token))
    assert torch.allclose(layer(x).flatten(0, 1), wanted, atol=1e-5)


class NoWaiting(TorchDispatchMode):
    """Fails on what makes the host wait for a device: a number read back, or a size that depends on values."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert not any(word in str(func) for word in ("_local_scalar_dense", "nonzero", "masked_select", "unique"))
        by_mask = "index" in str(func) and len(args) > 1 and isinstance(args[1], list | tuple)
        assert not (by_mask and any(i is not None and i.dtype == torch.bool for i in args[1])), func
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("changes", [{}, {"contrastive": "in_batch"}, {"router": "layer", "router_z_loss_coef": 0.1}])
def test_nothing_waits_for_the_device(changes):
    model = trained(llama(), config(**changes)).train()
    layer, x = layers(model)[0], torch.randn(2, 5, 12)
    with NoWaiting():
        layer(x)
        losses = auxiliary_losses(model)
    assert set(losses) >= {"balance", "contrastive"}
    with NoWaiting(), pytest.raises(AssertionError):
        x[x > 0]


@pytest.mark.parametrize("changes", [{}, {"contrastive": "in_batch"}, {"routing": "sequence"}])
def test_padding_counts_in_no_loss(changes):
    found = []
    for pads in ([0, 7], [11, 3]):
        ids = IDS.clone()
        ids[1, 3:] = torch.tensor(pads)
        model = trained(llama(), config(queue_size=8, **changes)).train()
        for _ in range(9):
            model(input_ids=ids, attention_mask=MASK)
            losses = auxiliary_losses(model)
        found.append(losses)
    assert found[0]["contrastive"] > 0
    for name in found[0]:
        assert torch.allclose(found[0][name], found[1][name], atol=1e-6), name


def test_each_loss_is_the_mean_over_layers_times_its_weight():
    model = trained(llama(), config(router_aux_loss_coef=0.5, contrastive_loss_coef=0.0)).train()
    outputs: list[RouterOutput] = []
    for module in model.modules():
        if isinstance(module, Router):
            module.register_forward_hook(lambda module, args, output: outputs.append(output))
    model(input_ids=IDS)
    each = [balance_loss(output.router_logits, output.selected_experts) for output in outputs]
    assert len(each) == 6
    losses = auxiliary_losses(model)
    assert list(losses) == ["balance"]
    assert torch.allclose(losses["balance"], 0.5 * torch.stack(each).mean())


def test_losses_belong_to_the_last_training_forward():
    model = trained(llama(), config()).train()
    assert auxiliary_losses(model) == {}
    model(input_ids=IDS)
    first = auxiliary_losses(model)
    assert first["balance"] is auxiliary_losses(model)["balance"]
    copied = copy.deepcopy(model)
    assert auxiliary_losses(copied) == {}
    model.eval()
    model(input_ids=IDS)
    assert auxiliary_losses(model) == {}
    copied(input_ids=IDS, attention_mask=MASK)
    assert layers(copied)[0].batch is not layers(model)[0].batch
    assert layers(copied)[0].batch.mask is MASK
    assert layers(model)[0].batch.mask is None
    assert auxiliary_losses(torch.nn.Linear(2, 2)) == {}


def test_the_losses_train_router_and_experts():
    model = trained(llama(), config(router_aux_loss_coef=0.0)).train()
    for _ in range(9):
        model(input_ids=IDS)
        loss = auxiliary_losses(model)["contrastive"]
    loss.backward()
    for kind in ("moe_A", "moe_B", "moe_router"):
        grads = [tensor.grad for name, tensor in model.named_parameters() if kind in name]
        assert all(grad is not None and grad.abs().sum() > 0 for grad in grads), kind


def test_a_shared_router_decides_for_its_decoder_layer():
    model = trained(llama(), config(router="layer")).train()
    assert [name for name, _ in model.named_parameters() if "router" in name] == [
        f"base_model.model.model.layers.{i}.self_attn.q_proj.lora_moe_router.default.weight" for i in range(2)
    ]
    model(input_ids=IDS)
    q, o, down = layers(model)[:3]
    assert o.notes["default"].output is q.notes["default"].output is down.notes["default"].output
    assert (q.notes["default"].decided, o.notes["default"].decided) == (True, False)
    with pytest.raises(ModelError, match=r"router='layer'.*another one ran before.*router='module'"):
        layers(copy.deepcopy(model))[1](torch.randn(1, 2, 12))


def test_a_sequence_takes_the_route_of_its_prompt():
    model = trained(llama(), config(routing="sequence"))
    routes = []
    layers(model)[0].lora_moe_router["default"].register_forward_hook(lambda m, a, output: routes.append(output))
    with torch.no_grad():
        whole = model(input_ids=IDS, labels=torch.tensor([[-100, -100, 9, 2, 16], [-100, 3, 0, 7, 11]])).logits
        changed = IDS.clone()
        changed[:, 4] = 5
        later = model(input_ids=changed, labels=torch.tensor([[-100, -100, 9, 2, 5], [-100, 3, 0, 7, 5]])).logits
    assert routes[0].router_logits.shape == (2, 3)
    assert torch.allclose(whole[:, :4], later[:, :4], atol=1e-6)  # an answer does not change its own route


def test_decoding_keeps_the_prompts_route_and_follows_the_rows_that_stay():
    model = trained(llama(), config(routing="sequence"))
    prompt = {"input_ids": IDS[:, :3], "attention_mask": torch.ones(2, 3)}
    with torch.no_grad():
        cache = model(**prompt, use_cache=True).past_key_values
        both = model(input_ids=IDS[:, 3:4], past_key_values=copy.deepcopy(cache)).logits
        cache.batch_select_indices(torch.tensor([1]))
        with pytest.raises(ModelError, match=r"prompts of 2 sequences were routed and 1 are continued.*keep_sequences"):
            model(input_ids=IDS[1:, 3:4], past_key_values=copy.deepcopy(cache))
        keep_sequences(model, torch.tensor([1]))
        alone = model(input_ids=IDS[1:, 3:4], past_key_values=cache).logits
    assert torch.allclose(both[1:], alone, atol=1e-5)


def test_jitter_is_for_training_only():
    router = Router(12, 3, 2, jitter=0.5)
    x = torch.randn(4, 12)
    assert not torch.equal(router(x).router_logits, router(x).router_logits)
    router.eval()
    assert torch.equal(router(x).router_logits, router(x).router_logits)


def test_gpt2_keeps_its_weights_transposed_and_other_layers_are_refused():
    base = gpt2()
    model = trained(base, config(target_modules=["c_attn", "c_fc"]))
    assert not torch.allclose(logits(model), logits(base))
    with pytest.raises(ConfigError, match=r"matches a Embedding.*linear layers only.*all-linear"):
        get_peft_model(llama(), config(target_modules=["embed_tokens"]))
