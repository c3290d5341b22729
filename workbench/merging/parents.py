"""The pristine parents of a merge: opened, laid side by side, and checked to fit."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel

from workbench.deltas.weights import check_same_tensors, open_weights
from workbench.errors import ConfigError, MergeError
from workbench.merging.weights import stack_depths

# These differ between relatives without changing what the weights compute.
_HARMLESS = ("max_position_embeddings", "initializer_range", "use_cache", "pretraining_tp", "vocab_size")


def weight_tensors(model: torch.nn.Module) -> dict[str, list[str]]:
    """Return the tensors that a checkpoint of the model holds, each once, with all its names.

    Returns:
        First name to all names; two names stand together where they are one tensor (a tied lm_head).
    """
    names: dict[int, list[str]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        names.setdefault(id(tensor), []).append(name)
    return {group[0]: group for group in names.values()}


def place(model: PreTrainedModel, device: torch.device | None, dtype: torch.dtype | None) -> PreTrainedModel:
    """Return the model itself where it already has this device and dtype, else a copy that does.

    Only checkpoint tensors change their dtype; what a model computes by itself, such as rotary frequencies, does not.
    """
    tensors = list(model.state_dict(keep_vars=True).values())
    same_device = device is None or all(t.device == device for t in tensors)
    if same_device and (dtype is None or all(t.dtype == dtype for t in tensors if t.is_floating_point())):
        return model
    model = copy.deepcopy(model)
    for tensor in model.state_dict(keep_vars=True).values():
        if dtype is not None and tensor.is_floating_point():
            tensor.data = tensor.data.to(dtype)
    return model if device is None else model.to(device)  # pyright: ignore[reportArgumentType]


def check_fit(parents: Mapping[str, PreTrainedModel]) -> None:
    """Compare each parent with the first: architecture, tensors, what is tied, and the settings of the computation.

    Raises:
        MergeError: Two parents do not fit; the message names the tensor with both shapes, or the setting with both
            values.
    """
    (first_name, first), *others = parents.items()
    for name, model in others:
        _check_architecture(first_name, first, name, model)
        _check_tensors(first_name, first, name, model)
        check_settings(first_name, first.config, name, model.config)


def _check_architecture(first_name: str, first: PreTrainedModel, name: str, model: PreTrainedModel) -> None:
    if type(first) is not type(model):
        raise MergeError(
            f"{first_name!r} is a {type(first).__name__}, {name!r} a {type(model).__name__}; merging needs parents of "
            "one architecture. Choose two models of one family."
        )


def _check_tensors(first_name: str, first: PreTrainedModel, name: str, model: PreTrainedModel) -> None:
    ties = [[group for group in weight_tensors(each).values() if len(group) > 1] for each in (first, model)]
    if ties[0] != ties[1]:
        tensor = [*ties[0], *ties[1]][0][-1]
        raise MergeError(
            f"Tensor {tensor!r} is tied to another one in only one of {first_name!r} and {name!r}; a merge would lose "
            "the untied one. Load the tied parent with tie_word_embeddings=False and save it first."
        )
    one, other = (replace(open_weights(each), label=label) for each, label in ((first, first_name), (model, name)))
    check_same_tensors(one, other, "Choose models of one family and size")
    mine, theirs = first.state_dict(), model.state_dict()
    for tensor, mine_, theirs_ in ((tensor, mine[tensor], theirs[tensor]) for tensor in mine):
        if mine_.dtype != theirs_.dtype:
            raise MergeError(
                f"Tensor {tensor!r} is {mine_.dtype} in {first_name!r} and {theirs_.dtype} in {name!r}; merging needs "
                "one number format. Pass dtype=, e.g. dtype='bfloat16'."
            )
        if not mine_.is_floating_point() and not torch.equal(mine_, theirs_):
            raise MergeError(
                f"Tensor {tensor!r} holds {mine_.dtype} numbers that differ between {first_name!r} and {name!r}; such "
                "tensors cannot be averaged. Load both models unquantised, in a floating-point format."
            )


def check_settings(first_name: str, first: PretrainedConfig, name: str, config: PretrainedConfig) -> None:
    """Compare the settings under which two models compute with their weights.

    Raises:
        MergeError: One differs that changes what the same weights compute; the message names it with both values.
    """
    general = PretrainedConfig().to_dict()
    mine, theirs = first.to_dict(), config.to_dict()
    for key in type(first)().to_dict():
        if key in general or key in _HARMLESS or "dropout" in key or key.endswith("_token_id"):
            continue
        if mine.get(key) != theirs.get(key):
            raise MergeError(
                f"The setting {key!r} is {mine.get(key)!r} in {first_name!r} and {theirs.get(key)!r} in {name!r}; the "
                "same weights would then compute different things. Choose models of one family and size."
            )


def check_tokenizers(tokenizers: Mapping[str, Any]) -> None:
    """Compare the vocabularies of the parents, token by token.

    Raises:
        MergeError: Two vocabularies differ in size or in a token's id; the message names both.
    """
    (first_name, first), *others = tokenizers.items()
    mine: dict[str, int] = first.get_vocab()
    for name, tokenizer in others:
        theirs: dict[str, int] = tokenizer.get_vocab()
        if mine == theirs:
            continue
        token = min(
            (t for t in {*mine, *theirs} if mine.get(t) != theirs.get(t)), key=lambda t: (mine.get(t, len(mine)), t)
        )
        raise MergeError(
            f"The tokenizers of {first_name!r} ({len(mine)} tokens) and {name!r} ({len(theirs)} tokens) differ: token "
            f"{token!r} has id {mine.get(token)} in the first and {theirs.get(token)} in the second, so row by row the "
            "embeddings mean different things. Choose parents with one tokenizer, or vocabulary='union' or 'base'."
        )


def check_depth(names: Iterable[str], num_layers: int | None) -> None:
    """Compare the number of layers with what the recipe expects.

    Raises:
        ConfigError: The parents have another number of layers.
    """
    depths = stack_depths(names)
    if num_layers is not None and num_layers not in depths.values():
        raise ConfigError(
            f"The recipe is for {num_layers} layers, the parents have {max(depths.values(), default=0)}; a merge "
            "covers whole models. Set num_layers to None, or to the parents' number."
        )
