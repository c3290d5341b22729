"""What a recipe takes, told and checked before anything is loaded; and the dry run."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import common
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from peft import PeftConfig
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from workbench.errors import ConfigError
from workbench.training.estimate import estimate_training, matmul_rate

TINY = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "d_ff": 128, "d_kv": 16, "num_decoder_layers": 2,
}  # fmt: skip


def announce(
    options: argparse.Namespace,
    models: Sequence[str],
    adapter: PeftConfig | None,
    *,
    steps: int,
    exports: int = 0,
    **more: Any,
) -> None:
    """Read all files, print memory, time and disk, check them; for a dry run, put tiny models in the models' places.

    Args:
        options: The recipe's; a dry run changes it.
        models: Names of the options that hold models of one architecture; the first is estimated.
        adapter: What is trained.
        steps: Optimiser steps in all.
        exports: Whole models of the first one's size that are written.
        **more: Bytes that come to the memory, by what they are: `{name: models of the first one's size}`.
    """
    PartialState(cpu=options.device == "cpu")  # says how many processes train, once for all that ask
    common.check(options)
    name = getattr(options, models[0])
    config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    found = estimate_training(config, adapter, length=options.length, **common.settings(options))
    weights = found.memory["weights"]
    copies = {kind: round(count * weights) for kind, count in more.items()}
    found = replace(found, memory={**found.memory, **copies}, disk=found.disk + exports * weights)
    rate = options.flops or matmul_rate(options.device)
    seconds = found.flops * steps / (rate * options.utilisation)
    common.say(f"{name}, {config.architectures or config.model_type}, before anything is loaded:\n{found}")
    common.say(
        f"  time         about {timedelta(seconds=round(seconds))} for {steps:,} steps of {found.tokens:,} tokens, "
        f"{found.tokens * steps / max(seconds, 1e-9):,.0f} tokens/s on one device, assumed: {options.utilisation:.0%} "
        f"of {rate / 1e12:.2f} TFLOP/s ({'given' if options.flops else f'measured on {options.device}'})"
    )
    try:
        found.check(options.device, options.out)
    except ConfigError as error:
        if not (options.yes or options.dry_run):
            raise SystemExit(f"{error}; or go on with --yes") from error
        common.say(f"Too little here: {error}.")
    if options.dry_run:
        places = [tempfile.mkdtemp(prefix="dry-run-")]
        broadcast_object_list(places)  # where several processes train, they share the first one's
        place = Path(places[0])
        with PartialState().main_process_first():
            tiny = {one: make_tiny(getattr(options, one), place / one, seed) for seed, one in enumerate(models)}
        vars(options).update(tiny, out=str(place / "out"), steps=2, limit=8, batch_size=2, accumulate=1)
        common.say(f"Dry run: two steps of random tiny models, in {place}.")


def make_tiny(name: str, folder: Path, seed: int) -> str:
    """Write a random model of the same architecture with two narrow layers, beside the same tokenizer."""
    if folder.exists():
        return str(folder)
    config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    for key, value in TINY.items():
        if hasattr(config, key):
            setattr(config, key, value)
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:2]
    torch.manual_seed(seed)
    kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    kind.from_config(config, trust_remote_code=False).save_pretrained(folder)
    AutoTokenizer.from_pretrained(name, trust_remote_code=False).save_pretrained(folder)
    return str(folder)
