"""Open a language model and its tokenizer by classroom name, folder or hub id; safetensors only, never remote code."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging
from transformers.utils.import_utils import is_flash_attn_2_available

from workbench.errors import ConfigError, ModelError, WorkbenchWarning
from workbench.paths import adapter_folder, data_samples_root, read_json_object, shipped

CLASSROOM_MODELS = ("base", "instruct", "clinical")

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]
# `original/` and `consolidated*` repeat the same weights in another layout.
_HUB_SKIPPED = ["original/*", "consolidated*", "*/*.safetensors"]
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_CONVERT = (
    "On a machine where you trust the file, convert it once with transformers: "
    "AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder), then load new_folder."
)


def model_folder(name: str | Path) -> Path | str:
    """Say where a model name points, without opening it.

    Args:
        name: `classroom/base`, `classroom/instruct`, `classroom/clinical`, or the adapter `classroom/skills/<skill>`; a
            folder; or a hub id `org/name`.

    Returns:
        A folder as `Path`, or the hub id as `str` when no such folder exists and the name has the form `org/name`.

    Raises:
        ModelError: The name is neither a classroom model, nor an existing folder, nor of the form of a hub id.
    """
    text = str(name)
    if isinstance(name, str) and text.startswith("classroom/"):
        return _classroom_folder(text)
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        raise ModelError(f"{text!r} is a file; a model is a folder with config.json. Pass the folder {path.parent}.")
    # "runs/moe" with an existing "runs" is a mistyped folder, and nobody wants that sent over the network.
    if isinstance(name, str) and _HUB_ID.fullmatch(text) and not path.parent.is_dir():
        return text
    raise ModelError(
        f"No model at {text!r}: it is not an existing folder. Pass a folder that holds config.json and safetensors, "
        f"a hub id of the form 'org/name', or one of {_classroom_names()}."
    )


def load_tokenizer(name: str | Path) -> PreTrainedTokenizerBase:
    """Open the tokenizer of a model, with a padding token and padding on the left.

    Padding stands on the left because a decoder continues from the last position of the row. A tokenizer without a
    padding token borrows its end-of-text token; padded positions are masked, so the choice changes no result.

    Args:
        name: As in `load_model`.

    Returns:
        A transformers tokenizer.

    Raises:
        ModelError: As in `load_model`, or the folder has no readable tokenizer.
    """
    return _open_tokenizer(_local_folder(name), name)


def open_folder(name: str | Path) -> tuple[Path, Any]:
    """Find a model's files, fetched if need be, and look at them without loading the weights.

    Args:
        name: As in `load_model`.

    Returns:
        The folder, and its transformers configuration.

    Raises:
        ModelError: The model is missing, has only pickled weights, is damaged or incomplete, or has an architecture
            that transformers does not know or that needs its own code.
    """
    folder = _local_folder(name)
    config = _open_config(folder, name)
    _check_weights(folder, name)
    return folder, config


def load_model(
    name: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    attn_implementation: str | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Open a causal language model and its tokenizer, ready to generate.

    Args:
        name: `classroom/base`, `classroom/instruct` or `classroom/clinical`; a folder in the transformers layout; or
            a hub id `org/name`, fetched into the hub cache unless it is already there. Classroom names and folders
            need no network.
        device: Where the weights go; None takes the first of cuda, mps, cpu that is there.
        dtype: Number format of the weights, e.g. `torch.bfloat16` or `"bfloat16"`; None takes bfloat16 on a CUDA
            device that computes in it, else float32 (CPUs are slow or inexact in half formats).
        attn_implementation: `sdpa`, `eager`, or `flash_attention_2` (package flash-attn, CUDA, a half format); None
            takes sdpa where the architecture has it.

    Returns:
        model, in `eval()` mode, and tokenizer, as `load_tokenizer` gives it.

    Raises:
        ConfigError: `device`, `dtype` or `attn_implementation` is unknown or not available here.
        ModelError: The model is missing, has only pickled weights, is damaged or incomplete, has an architecture that
            transformers does not know or that needs its own code, or lacks a tokenizer that fits it.
    """
    device = _choose_device(device)
    dtype = _choose_dtype(dtype, device)
    _check_attention(attn_implementation, device, dtype)
    folder, config = open_folder(name)
    tokenizer = _open_tokenizer(folder, name)
    # transformers leaves the choice to the model where it is told none.
    config._attn_implementation = attn_implementation
    model = _open_model(folder, name, config, device, dtype)
    rows = int(model.get_input_embeddings().weight.shape[0])  # pyright: ignore[reportIndexIssue]
    if len(tokenizer) > rows:
        raise ModelError(
            f"The tokenizer of {str(name)!r} has {len(tokenizer)} tokens, its model only {rows} embedding rows. "
            "Each token needs a row: put the tokenizer that belongs to these weights into the folder."
        )
    if model.generation_config is not None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model.eval(), tokenizer


def chat_prompt(tokenizer: PreTrainedTokenizerBase, text: str | list[dict[str, str]]) -> str:
    """Wrap a request the way the model was taught to read one.

    Args:
        tokenizer: Its chat template is used when it has one.
        text: One user message, or a list of `{"role": ..., "content": ...}` messages.

    Returns:
        With a chat template, the filled template up to where the answer starts; encode it with
        `add_special_tokens=False`, since the template holds the special tokens. Otherwise the text and a line break.
    """
    messages = [{"role": "user", "content": text}] if isinstance(text, str) else text
    if tokenizer.chat_template:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    return "\n".join(message["content"] for message in messages) + "\n"


def _classroom_names() -> str:
    return ", ".join(f"'classroom/{name}'" for name in CLASSROOM_MODELS)


def _classroom_folder(name: str) -> Path:
    short = name.removeprefix("classroom/")
    if short.startswith("skills/"):
        return adapter_folder(name)
    if short not in CLASSROOM_MODELS:
        raise ModelError(f"There is no classroom model {name!r}. The classroom has {_classroom_names()}.")
    return shipped(name, data_samples_root() / "models" / short, "make classroom")


def _local_folder(name: str | Path) -> Path:
    place = model_folder(name)
    return place if isinstance(place, Path) else _fetch(place)


def _fetch(hub_id: str) -> Path:
    try:
        return Path(snapshot_download(hub_id, allow_patterns=_HUB_FILES, ignore_patterns=_HUB_SKIPPED))
    except GatedRepoError as error:
        raise ModelError(
            f"{hub_id!r} asks for an agreement before it is given out. Accept it on the model's page, then log in "
            "with `hf auth login`."
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"{hub_id!r} is neither a folder here nor a model on the hub. Check the spelling; for a private model log "
            f"in with `hf auth login`. Without a hub, use one of {_classroom_names()}."
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError) as error:
        raise ModelError(
            f"{hub_id!r} is not a folder here, and the model hub cannot be reached for it ({type(error).__name__}). "
            f"Check the path or the network, pass a downloaded folder, or use one of {_classroom_names()}."
        ) from error


def _check_weights(folder: Path, name: str | Path) -> None:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
        if pickles:
            raise ModelError(
                f"{str(name)!r} has its weights only as pickle ({', '.join(pickles[:3])}), which can run code when "
                f"opened; only safetensors are read. {_CONVERT}"
            )
        raise ModelError(f"{str(name)!r} has no *.safetensors file. Copy the weights into the folder.")
    _check_shards(folder, name)
    for path in files:
        try:
            with safe_open(path, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise ModelError(
                f"{path} is damaged or cut short ({path.stat().st_size:,} bytes; {error}). A safetensors file must be "
                "whole: copy or download it again."
            ) from error


def _check_shards(folder: Path, name: str | Path) -> None:
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return
    try:
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{index} is not a readable shard index ({error!r}). Copy or download it again.") from error
    lost = sorted(shard for shard in shards if not (folder / shard).is_file())
    if lost:
        raise ModelError(
            f"{str(name)!r} lacks {len(lost)} of the {len(shards)} weight files that its index names, "
            f"e.g. {lost[0]}. Copy or download them all."
        )


def _open_tokenizer(folder: Path, name: str | Path) -> PreTrainedTokenizerBase:
    if not any((folder / file).is_file() for file in _TOKENIZER_FILES):
        raise ModelError(
            f"{str(name)!r} has no tokenizer (none of {', '.join(_TOKENIZER_FILES)}). Save the model's own tokenizer "
            "into the folder: tokenizer.save_pretrained(folder)."
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises bare Exception on a broken file
        raise ModelError(
            f"The tokenizer of {str(name)!r} cannot be read ({_first_line(error)}). Save it again with "
            "tokenizer.save_pretrained(folder), or copy its files anew."
        ) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token or tokenizer.convert_ids_to_tokens(0)
    tokenizer.padding_side = "left"
    return tokenizer


def _open_config(folder: Path, name: str | Path) -> Any:
    path = folder / "config.json"
    if not path.is_file() and (folder / "adapter_config.json").is_file():
        raise ModelError(
            f"{str(name)!r} holds an adapter, not a whole model. Load its base model, then the adapter with "
            "peft.PeftModel.from_pretrained(model, folder)."
        )
    if not path.is_file():
        raise ModelError(f"{str(name)!r} has no config.json. A model folder holds one; check the path.")
    raw = read_json_object(path)
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        own_code = " and brings its own code, which is never run" if "auto_map" in raw else ""
        raise ModelError(
            f"{str(name)!r} has model_type {raw.get('model_type')!r}, which the installed transformers does not know"
            f"{own_code} ({_first_line(error)}). Update transformers, or choose a model of an architecture that it "
            "contains."
        ) from error
    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise ModelError(
            f"{str(name)!r} is a {config.model_type!r} model, which does not continue text. Choose a causal language "
            "model, e.g. of the Llama, Mistral, Qwen, Gemma or Phi family."
        )
    return config


def _open_model(
    folder: Path, name: str | Path, config: Any, device: torch.device, dtype: torch.dtype
) -> PreTrainedModel:
    placed: dict[str, Any] = {"device_map": {"": device}} if device.type == "cuda" else {}
    try:
        with _quiet(folder):
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder,
                config=config,
                dtype=dtype,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
                **placed,
            )
    except Exception as error:
        raise ModelError(
            f"{str(name)!r} does not load: its config.json and its weights do not fit each other "
            f"({_first_line(error)}). Copy both from the same model."
        ) from error
    model, report = loaded
    _check_report(report, name)
    return model.to(device)


@contextmanager
def _quiet(folder: Path) -> Iterator[None]:
    """Hide the progress bar of a load that takes a moment, which would stay in every saved notebook."""
    small = sum(path.stat().st_size for path in folder.glob("*.safetensors")) < 500_000_000
    if not (small and transformers_logging.is_progress_bar_enabled()):
        yield
        return
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.enable_progress_bar()


def _check_report(report: dict[str, Any], name: str | Path) -> None:
    # transformers fills missing weights with random numbers and only warns.
    missing = sorted(map(str, report.get("missing_keys") or ()))
    if missing:
        raise ModelError(
            f"{str(name)!r} lacks {len(missing)} weights that its config.json asks for, e.g. {missing[0]!r}. "
            "A model must be whole: copy the weights and config.json from the same model."
        )
    extra = sorted(map(str, report.get("unexpected_keys") or ()))
    if extra:
        warnings.warn(
            f"{str(name)!r} holds {len(extra)} weights that its architecture does not use, e.g. {extra[0]!r}.",
            WorkbenchWarning,
            stacklevel=4,
        )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def _choose_device(device: str | torch.device | None) -> torch.device:
    if device is None:
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ConfigError(
            f"device={device!r} is not available here ({_first_line(error)}). Leave device out to let it be chosen, "
            "or pass 'cpu'."
        ) from error
    return chosen


def _check_attention(wanted: str | None, device: torch.device, dtype: torch.dtype) -> None:
    if wanted not in (None, "sdpa", "eager", "flash_attention_2"):
        raise ConfigError(
            f"attn_implementation={wanted!r} is unknown. Use 'sdpa', 'eager' or 'flash_attention_2', or leave it out."
        )
    if wanted != "flash_attention_2":
        return
    fits = device.type == "cuda" and dtype in (torch.bfloat16, torch.float16)
    if not fits or not is_flash_attn_2_available():
        raise ConfigError(
            f"attn_implementation='flash_attention_2' needs a CUDA device, bfloat16 or float16, and the package "
            f"flash-attn; here are {device}, {dtype} and {'it' if is_flash_attn_2_available() else 'no such package'}. "
            "Install it (pip install flash-attn), or use 'sdpa', which needs nothing."
        )


def _choose_dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    if dtype is None:
        return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
    chosen = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(chosen, torch.dtype) or not chosen.is_floating_point:
        raise ConfigError(
            f"dtype={dtype!r} is not a floating-point format. Pass e.g. 'float32', 'bfloat16', 'float16' or the "
            "torch dtype itself."
        )
    return chosen
