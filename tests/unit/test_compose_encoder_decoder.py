"""Skills of an encoder-decoder: the search reads prompt and answer as T5 does, and mixes what PEFT would."""

import copy

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from pico_language import byte_tokenizer
from torch import nn
from transformers import T5Config, T5ForConditionalGeneration

import workbench as wb
from workbench.records import Example

ROWS = [
    Example(id="a", skill="none", query="What is one and one?", answer="two"),
    Example(id="b", skill="none", query="And three?", context="Count.", answer="three, of course"),
]


@pytest.fixture
def parts(tmp_path):
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=260, d_model=24, d_kv=8, d_ff=36, num_layers=2, num_heads=3, dropout_rate=0.0, pad_token_id=0,
        eos_token_id=1, decoder_start_token_id=0, tie_word_embeddings=False,
    )  # fmt: skip
    model = T5ForConditionalGeneration(config).eval()
    folders = {}
    for name in ("one", "two"):
        adapter = LoraConfig(r=3, target_modules=["q", "v", "wo"], task_type="SEQ_2_SEQ_LM", init_lora_weights=False)
        wrapped = get_peft_model(copy.deepcopy(model), adapter)
        for tensor in wrapped.parameters():
            if tensor.requires_grad:
                nn.init.normal_(tensor, std=0.3)
        wrapped.save_pretrained(folders.setdefault(name, tmp_path / name))
    return model, byte_tokenizer(), folders


def answer_loss(model, tokenizer):
    """Return the mean over answer tokens as T5's own forward forms it, row by row."""
    total = count = 0
    for row in ROWS:
        ids = torch.tensor([tokenizer(row.prompt() + "\n")["input_ids"]])
        labels = torch.tensor([[*tokenizer(row.answer)["input_ids"], tokenizer.eos_token_id]])
        with torch.no_grad():
            total += float(model(input_ids=ids, labels=labels).loss) * labels.numel()
        count += labels.numel()
    return total / count


def test_each_candidate_has_the_loss_of_peft(parts):
    model, tokenizer, folders = parts
    before = answer_loss(model, tokenizer)
    found = wb.compose_skills(model, tokenizer, ROWS, folders, optimizer="cma", budget=4, l1=0.0, strict=False)
    assert found.trace[0].loss == pytest.approx(before, rel=1e-5)
    step = next(step for step in found.trace if all(step.weights.values()))
    names = list(folders)
    wrapped = PeftModel.from_pretrained(copy.deepcopy(model), folders[names[0]], adapter_name=names[0])
    wrapped.load_adapter(folders[names[1]], adapter_name=names[1])
    wrapped.base_model.set_adapter(names)
    for layer in wrapped.modules():
        for name in names if hasattr(layer, "set_scale") else ():
            layer.set_scale(name, step.weights[name])
    assert step.loss == pytest.approx(answer_loss(wrapped.eval(), tokenizer), rel=1e-4)
    assert step.loss != pytest.approx(before, rel=1e-3)
    assert answer_loss(model, tokenizer) == before
