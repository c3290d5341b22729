"""compose_skills on pico skills: its losses are those of PEFT and of dense sums, and its results go on into others."""

import copy
import math
import sys
import threading
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

from pico_adapters import adalora, llama, lora, saved
from pico_language import byte_tokenizer, pico

from workbench.adapters import SkillBank, SkillRouterConfig, set_skill_weights
from workbench.adapters.skill_mix import SkillMix
from workbench.deltas import Delta, combine
from workbench.errors import ConfigError, DataError, MergeError, ModelError, WorkbenchWarning
from workbench.merging.live import LiveMerge
from workbench.merging.recipe import MergeRecipe
from workbench.records import Example
from workbench.training.compose import compose_skills
from workbench.training.encode import encode

pytestmark = pytest.mark.filterwarnings("ignore::workbench.errors.WorkbenchWarning")

TOKENIZER = byte_tokenizer(chat=True)
EXAMPLES = [Example(id=f"e{i}", skill="qa", query="ask " * (1 + i % 3), answer="ab" * (1 + i)) for i in range(5)]
SKILLS = {"ner": lora(), "exam": lora(r=2, lora_alpha=3, use_rslora=True), "chat": adalora()}


@pytest.fixture(scope="module")
def base():
    return pico()


@pytest.fixture(scope="module")
def folders(base, tmp_path_factory):
    places = {name: tmp_path_factory.mktemp(name) for name in SKILLS}
    for seed, (name, config) in enumerate(SKILLS.items()):
        saved(base, config, places[name], seed)
    return places


def compose(base, skills, examples=EXAMPLES, **options):
    return compose_skills(base, TOKENIZER, examples, skills, **{"budget": 4} | options)


def answer_losses(model):
    """Return the summed loss and the tokens of each example's answer, one example at a time, by transformers itself."""
    rows = encode(model, TOKENIZER, EXAMPLES).data
    found = []
    for row in rows:
        ids = torch.tensor([row["input_ids"]])
        labels = ids.clone()
        labels[:, : row["start"]] = -100
        count = ids.shape[1] - row["start"]
        with torch.no_grad():
            found.append((float(model(input_ids=ids, labels=labels).loss) * count, count))
    return found


def mean_loss(model):
    losses = answer_losses(model)
    return sum(total for total, _ in losses) / sum(count for _, count in losses)


@pytest.mark.parametrize("skill", SKILLS)
def test_one_skill_at_weight_w_has_the_loss_of_pefts_own_adapter(base, folders, skill):
    found = compose(base, {skill: folders[skill]}, batch_size=2)
    peft = PeftModel.from_pretrained(copy.deepcopy(base), folders[skill])
    inner = peft.get_base_model()  # PEFT's AdaLoRA takes no labels where it is only read
    layers = [module for module in inner.modules() if isinstance(module, BaseTunerLayer)]
    scales = [layer.scaling["default"] for layer in layers]
    for row in found.trace:
        for layer, scale in zip(layers, scales):
            layer.scaling["default"] = scale * row.weights[skill]
        assert row.loss == pytest.approx(mean_loss(inner), rel=1e-5)


def test_several_skills_have_the_loss_of_their_dense_sum(base, folders):
    deltas = [Delta.from_adapter(folder, base=base) for folder in folders.values()]
    found, model = compose(base, folders, optimizer="ngopt", budget=5), copy.deepcopy(base)
    for row in found.trace:
        combine(deltas, list(row.weights.values())).apply_to(model)
        assert row.loss == pytest.approx(mean_loss(model), rel=1e-5)


def test_factor_mix_has_the_loss_of_the_written_out_product(base, folders):
    deltas = [Delta.from_adapter(folder, base=base) for folder in folders.values()]
    found = compose(base, folders, optimizer="ngopt", mix="factor")
    for row in found.trace[1:]:
        model = copy.deepcopy(base)
        for name in deltas[0].names:
            up, down = torch.zeros(len(base.state_dict()[name]), 4), torch.zeros(4, base.state_dict()[name].shape[1])
            for weight, (left, right) in zip(row.weights.values(), (delta.factors(name) for delta in deltas)):
                up[:, : left.shape[1]] += weight * left
                down[: len(right)] += weight * right
            model.state_dict()[name].add_(up @ down)
        assert row.loss == pytest.approx(mean_loss(model), rel=1e-5)


@pytest.mark.parametrize("batch_size", [2, 5])
def test_the_references_loss_is_the_sum_of_batch_means_over_the_examples(base, folders, batch_size):
    start = compose(base, folders, faithful_scaling=True, batch_size=batch_size).trace[0]
    losses = answer_losses(base)
    batches = [losses[i : i + batch_size] for i in range(0, 5, batch_size)]
    means = [sum(total for total, _ in batch) / sum(count for _, count in batch) for batch in batches]
    assert start.loss == pytest.approx(sum(means) / 5, rel=1e-5)


def test_the_base_is_as_it_was_and_the_tokens_are_counted(base, folders):
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    loss = mean_loss(base)
    base.train()
    found = compose(base, folders)
    assert base.training
    base.eval()
    assert mean_loss(base) == loss
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.state_dict().items())
    assert found.tokens == 4 * sum(len(row["input_ids"]) for row in encode(base, TOKENIZER, EXAMPLES).data)
    assert found.about["examples"] == [example.id for example in EXAMPLES]
    assert list(found.weights) == list(SKILLS)


def test_a_composition_goes_into_a_router_and_into_a_recipe(base, folders, tmp_path):
    weights = {"ner": 0.5, "exam": -0.25, "chat": 0.75}
    bank = SkillBank.open(folders, base)
    ids = torch.tensor([[5, 9, 40, 7]])
    with torch.no_grad(), SkillMix(bank).on(base) as put:
        put(weights)
        mixed = base(input_ids=ids).logits
    router = get_peft_model(copy.deepcopy(base), SkillRouterConfig(skills={k: str(v) for k, v in folders.items()}))
    set_skill_weights(router, weights)
    recipe = MergeRecipe(
        parents=[str(folder) for folder in folders.values()],
        base=str(tmp_path / "base"),
        method="task_arithmetic",
        weights=list(weights.values()),
    )
    base.save_pretrained(tmp_path / "base")
    TOKENIZER.save_pretrained(tmp_path / "base")
    with torch.no_grad():
        for model in (router, LiveMerge(recipe).model):
            assert torch.allclose(model(input_ids=ids).logits, mixed, atol=1e-4)


def test_shots_are_drawn_by_the_seed(base, folders):
    drawn = [compose(base, folders, shots=2, seed=seed, budget=2).about["examples"] for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(drawn[0]) == 2
    with pytest.raises(DataError, match="shots=6 of 5 examples; there must be at least as many examples as shots"):
        compose(base, folders, shots=6)
    with pytest.raises(DataError, match="shots=1 of 0 examples"):
        compose(base, folders, [], shots=1)


def test_a_mix_that_overflows_is_passed_over(base, folders, tmp_path):
    huge = copy.deepcopy(base)
    huge.model.layers[0].mlp.down_proj.weight.data *= 0
    saved(huge, lora(), tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    save_file({name: tensor * 1e20 for name, tensor in tensors.items()}, tmp_path / "adapter_model.safetensors")
    with pytest.warns(WorkbenchWarning, match="candidates gave a loss that is no number"):
        found = compose(huge, {"huge": tmp_path})
    assert math.isfinite(found.trace[0].loss)
    assert not found.found_better


def test_a_stop_from_another_thread(base, folders):
    stop = threading.Event()
    found = compose(base, folders, budget=50, stop=stop, on_step=lambda row: row.step == 2 and stop.set())
    assert len(found.trace) == 3
    assert found.about["stopped"]


def test_what_does_not_fit_is_one_clear_message(base, folders, tmp_path):
    with pytest.raises(ConfigError, match="there is no skill"):
        compose(base, {})
    with pytest.raises(ConfigError, match=r"mix='sum'; it is one of update, factor"):
        compose(base, folders, mix="sum")
    with pytest.raises(ConfigError, match="batch_size=0: at least 1"):
        compose(base, folders, batch_size=0)
    with pytest.raises((ConfigError, ModelError), match="nowhere"):
        compose(base, {"lost": tmp_path / "nowhere"})
    saved(base, lora(target_modules=["q_proj"]), tmp_path / "narrow")
    with pytest.raises(ConfigError, match="adapt different layers"):
        compose(base, folders | {"narrow": tmp_path / "narrow"})
    with pytest.raises(MergeError):
        compose(llama(vocab_size=260, max_position_embeddings=64), folders)
    with pytest.raises(ConfigError, match="the model carries an adapter already"):
        compose(get_peft_model(copy.deepcopy(base), lora()), folders)
