"""Parents with different tokenizers: their embeddings are laid under one vocabulary, token by token."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from workbench.errors import ConfigError, MergeError, ModelError
from workbench.merging.parents import check_tokenizers
from workbench.paths import read_json_object

VOCABULARIES = ("union", "base")
_UNITE = "Use vocabulary='base', which keeps the first tokenizer as it is."


@dataclass(frozen=True, kw_only=True, eq=False)
class Vocabulary:
    """Which row of each parent's embeddings belongs to each token of the result.

    Args:
        tokenizer: The result's.
        rows: `(parents, V)`, int64: the parent's row for the token, -1 where it lacks the token.
        givers: `(parents, V)`, boolean: the parents whose rows' mean stands in where a parent lacks the token.
    """

    tokenizer: Any
    rows: Tensor
    givers: Tensor

    @property
    def size(self) -> int:
        """V, the number of rows of the result."""
        return self.rows.shape[1]

    def align(self, read: Sequence[Callable[[], Tensor]]) -> list[Tensor]:
        """Return the parents' embeddings, or output weights, under the one vocabulary.

        Args:
            read: One function per parent, which returns its tensor `(rows, ...)`; called when it is needed.

        Returns:
            One new tensor `(V, ...)` per parent, in its format; an id without a token has zeros.
        """
        lacking = (self.rows < 0).any(0).nonzero().flatten()
        givers, rows = self.givers[:, lacking], self.rows[:, lacking]
        shares = givers / givers.sum(0).clamp_min(1)
        stand_in: Any = 0.0
        for share, row, function in zip(shares, rows.clamp_min(0), read):
            found = function()[row].float()
            found[share == 0] = 0.0
            stand_in = stand_in + found * share.view(-1, *[1] * (found.ndim - 1)).to(found.device)
        aligned = []
        for own, function in zip(self.rows, read):
            aligned.append(function()[own.clamp_min(0)])
            gaps = own[lacking] < 0
            aligned[-1][lacking[gaps]] = stand_in[gaps].to(aligned[-1].dtype)
        return aligned


def align_vocabularies(
    tokenizers: Mapping[str, Any], sizes: Mapping[str, int], how: str | None, *, base: str | None
) -> Vocabulary | None:
    """Decide on one vocabulary for parents whose tokenizers differ.

    A token that a parent lacks takes the base's row where the base has it, else the row of the only parent that has
    it, else the mean of the rows of all that have it. Rows that no token has, as padding leaves them, are dropped.

    Args:
        tokenizers: The parents' by name, the base among them where there is one.
        sizes: The number of rows of each parent's embedding.
        how: `"base"`: the tokenizer of the base. `"union"`: the same, and the tokens of all others after it; of
            byte-pair tokenizers the merges that make those tokens too, so that text reaches them. None wants equal
            ones.
        base: The name of the base; None is the first parent for `"base"`, and for `"union"` no parent's rows go first.

    Returns:
        The vocabulary, or None where all have the same tokens and rows already.

    Raises:
        ConfigError: `how` is none of these.
        MergeError: The tokenizers differ and nothing was asked for, or cannot be united.
        ModelError: A tokenizer has tokens for which its model has no row.

    Source: mergekit 0.1.5, `tokenizer: {source: union | base}`. Deviates: ordinary tokens of a union become part of the
    tokenizer's own vocabulary, where mergekit adds them as literal text, which the tokenizer then cuts out of any word.
    """
    if how is not None and how not in VOCABULARIES:
        raise ConfigError(f"vocabulary={how!r}; it is one of {', '.join(map(repr, VOCABULARIES))}, or None.")
    for name, tokenizer in tokenizers.items():
        if max(tokenizer.get_vocab().values()) >= sizes[name]:
            raise ModelError(
                f"The tokenizer of {name!r} has tokens up to id {max(tokenizer.get_vocab().values())}, its model only "
                f"{sizes[name]} embedding rows. Put the tokenizer that belongs to these weights into the folder."
            )
    if how is None:
        check_tokenizers(tokenizers)
        return None
    vocabularies = [tokenizer.get_vocab() for tokenizer in tokenizers.values()]
    if all(vocab == vocabularies[0] for vocab in vocabularies) and len(set(sizes.values())) == 1:
        return None
    lead = base or next(iter(tokenizers))
    others = [tokenizer for name, tokenizer in tokenizers.items() if name != lead]
    tokenizer = tokenizers[lead] if how == "base" else union_tokenizer(tokenizers[lead], others)
    tokens: dict[str, int] = tokenizer.get_vocab()
    rows = torch.full((len(tokenizers), max(tokens.values()) + 1), -1)
    rows[:, list(tokens.values())] = torch.tensor(
        [[vocab.get(token, -1) for token in tokens] for vocab in vocabularies]
    )
    givers = rows >= 0
    if base or how == "base":
        index = list(tokenizers).index(lead)
        alone = torch.arange(len(tokenizers)).view(-1, 1) == index
        givers = torch.where(givers[index], alone, givers)
    return Vocabulary(tokenizer=tokenizer, rows=rows, givers=givers)


def union_tokenizer(lead: Any, others: Sequence[Any]) -> PreTrainedTokenizerBase:
    """Return a copy of a tokenizer that also has the tokens of others; ids of its own tokens stay.

    Raises:
        MergeError: The others have ordinary tokens that this kind of tokenizer cannot take.
    """
    if not all(getattr(tokenizer, "is_fast", False) for tokenizer in (lead, *others)):
        raise MergeError(f"A tokenizer without a tokenizer.json cannot be united with another. {_UNITE}")
    with tempfile.TemporaryDirectory() as folder:
        lead.save_pretrained(folder)
        path = Path(folder) / "tokenizer.json"
        state = read_json_object(path)
        for other in others:
            _extend(state, json.loads(other.backend_tokenizer.to_str()), other.get_vocab())
        path.write_text(json.dumps(state, ensure_ascii=False), encoding="utf-8")
        result = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    result.padding_side = lead.padding_side
    ids, own = result.get_vocab(), lead.get_vocab()
    lost = [token for vocab in (own, *(other.get_vocab() for other in others)) for token in vocab if token not in ids]
    if lost or any(ids[token] != place for token, place in own.items()):
        raise MergeError(f"The union would move or lose tokens, e.g. {(lost or list(own))[0]!r}. {_UNITE}")
    return result


def _extend(state: dict[str, Any], theirs: dict[str, Any], vocab: Mapping[str, int]) -> None:
    model, added = state["model"], {entry["content"]: entry for entry in theirs["added_tokens"]}
    known = {entry["content"]: entry["id"] for entry in state["added_tokens"]}
    known |= model["vocab"] if isinstance(model["vocab"], dict) else {t: i for i, (t, _) in enumerate(model["vocab"])}
    new = [token for token in sorted(vocab, key=lambda token: vocab[token]) if token not in known]
    ordinary = [token for token in new if token not in added]
    start = max(known.values()) + 1
    places = {token: place for place, token in enumerate([*ordinary, *(t for t in new if t in added)], start)}
    if ordinary:
        if not isinstance(model["vocab"], dict) or model["type"] != theirs["model"]["type"]:
            raise MergeError(
                f"{len(ordinary)} ordinary tokens, e.g. {ordinary[0]!r}, of a {theirs['model']['type']} tokenizer "
                f"cannot join a {model['type']} tokenizer. {_UNITE}"
            )
        # All tokens stand in the vocabulary itself, since added ones are otherwise numbered after it anew.
        model["vocab"] = known | places
        if "merges" in model:
            wanted = set(ordinary)
            model["merges"] += [merge for merge in theirs["model"]["merges"] if _merged(merge) in wanted]
    state["added_tokens"] += [{**added[token], "id": places[token]} for token in new if token in added]


def _merged(merge: Any) -> str:
    return "".join(merge.split(" ") if isinstance(merge, str) else merge)


def vocabulary_tensors(model: Any) -> frozenset[str]:
    """Return the names of a model's tensors that have one row per token: embedding and output weights."""
    modules = [module for module in (model.get_input_embeddings(), model.get_output_embeddings()) if module is not None]
    own = {id(parameter) for module in modules for parameter in module.parameters()}
    return frozenset(name for name, tensor in model.state_dict(keep_vars=True).items() if id(tensor) in own)


def align_models(
    models: Mapping[str, PreTrainedModel], tokenizers: Mapping[str, Any], how: str | None, *, base: str | None
) -> Any:
    """Give loaded models one vocabulary, in place, so that they fit each other row by row.

    Args:
        models: By name, the base among them where there is one.
        tokenizers: Theirs, by the same names.
        how: As in `align_vocabularies`.
        base: As there.

    Returns:
        The common tokenizer.

    Raises:
        ConfigError: As in `align_vocabularies`.
        MergeError: As there.
        ModelError: As there.
    """
    sizes = {name: len(model.get_input_embeddings().weight) for name, model in models.items()}  # pyright: ignore
    vocabulary = align_vocabularies(tokenizers, sizes, how, base=base)
    if vocabulary is None:
        return next(iter(tokenizers.values()))
    states = [model.state_dict() for model in models.values()]
    names = vocabulary_tensors(next(iter(models.values())))
    aligned = {name: vocabulary.align([partial(dict.__getitem__, s, name) for s in states]) for name in names}
    lead: Any = models[base] if base else next(iter(models.values()))
    for parent, model in enumerate(models.values()):
        model.resize_token_embeddings(vocabulary.size, mean_resizing=False)
        for name, tensor in model.state_dict().items():
            if name in names:
                tensor.copy_(aligned[name][parent])
        for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
            # In the parent's own numbers they would now be other tokens.
            setattr(model.config, key, getattr(lead.config, key, None))
            setattr(model.generation_config, key, getattr(lead.generation_config, key, None))
    return vocabulary.tokenizer
