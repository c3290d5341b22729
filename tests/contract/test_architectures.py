"""One code path opens every decoder family: random two-layer checkpoints, saved to disk, loaded, continued."""

import pytest
import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import AutoModelForCausalLM as Auto
from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PhiConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from workbench.models import chat_prompt, load_model

SHAPE = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
HEAD = {"head_dim": 8}
FAMILIES = {
    "llama": LlamaConfig(vocab_size=264, **SHAPE),
    "llama-tied": LlamaConfig(vocab_size=264, **SHAPE, tie_word_embeddings=True),
    "mistral": MistralConfig(vocab_size=264, **SHAPE, sliding_window=8),
    "qwen2": Qwen2Config(vocab_size=264, **SHAPE),
    "qwen3": Qwen3Config(vocab_size=264, **SHAPE, **HEAD),
    "gemma": GemmaConfig(vocab_size=264, **SHAPE, **HEAD),
    "gemma2": Gemma2Config(vocab_size=264, **SHAPE, **HEAD, sliding_window=8),
    "gemma3_text": Gemma3TextConfig(vocab_size=264, **SHAPE, **HEAD, sliding_window=8),
    "phi": PhiConfig(vocab_size=264, **(SHAPE | {"num_key_value_heads": 3})),
    "phi3": Phi3Config(vocab_size=264, **SHAPE),
}


@pytest.fixture(scope="module")
def tokenizer():
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(["chest pain"], vocab_size=260, special_tokens=["<eos>"], show_progress=False)
    return PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, eos_token="<eos>")


@pytest.mark.parametrize("family", FAMILIES)
def test_family_loads_and_generates(family, tokenizer, tmp_path):
    torch.manual_seed(0)
    original = Auto.from_config(FAMILIES[family]).eval()
    original.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)

    model, loaded = load_model(tmp_path, device="cpu")
    batch = loaded(chat_prompt(loaded, "chest pain"), return_tensors="pt", return_token_type_ids=False)
    with torch.no_grad():
        torch.testing.assert_close(model(**batch).logits, original(**batch).logits)
    new = model.generate(**batch, max_new_tokens=3, min_new_tokens=3, do_sample=False)
    assert new.shape[1] == batch["input_ids"].shape[1] + 3
    assert model.config.model_type == family.removesuffix("-tied")
