"""A byte-level tokenizer and models of two layers, which know nothing but behave like large ones."""

from types import SimpleNamespace

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

EOS = 1
CHAT = "{% for m in messages %}<user>{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}<answer>{% endif %}"


def byte_tokenizer(*, chat: bool = False) -> PreTrainedTokenizerFast:
    """One token for each byte, so that every length and every broken character can be told by hand."""
    special = ["<pad>", "<eos>", "<user>", "<answer>"]
    vocabulary = {name: i for i, name in enumerate([*special, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>", additional_special_tokens=special[2:]
    )
    fast.chat_template = CHAT if chat else None
    return fast


def pico(*, seed: int = 0, context: int = 64) -> LlamaForCausalLM:
    """A random model whose next tokens vary: the default range would repeat one token for ever."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=260,
        hidden_size=24,
        intermediate_size=36,
        num_hidden_layers=2,
        num_attention_heads=3,
        num_key_value_heads=1,
        max_position_embeddings=context,
        initializer_range=0.4,
        bos_token_id=None,
        eos_token_id=EOS,
    )
    return LlamaForCausalLM(config).eval()


class Scripted:
    """Stands in for a model of one row: it writes the tokens it was given, whatever it reads."""

    def __init__(self, tokens: list[int], *, context: int = 64, eos: int | list[int] | None = EOS):
        self.tokens, self.calls, self.training = tokens, 0, False
        self.device, self.dtype = torch.device("cpu"), torch.float32
        self.config = LlamaConfig(vocab_size=260, max_position_embeddings=context)
        self.generation_config = SimpleNamespace(eos_token_id=eos)

    def __call__(self, **_) -> SimpleNamespace:
        logits = torch.zeros(1, 1, 260)
        logits[0, 0, self.tokens[self.calls]] = 1.0
        self.calls += 1
        return SimpleNamespace(logits=logits)
