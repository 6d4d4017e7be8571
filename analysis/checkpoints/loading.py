"""From a folder to a model ready to be measured: safe, complete, and never silently wrong.

What a plain `from_pretrained` lets pass is an error here: parameters missing from the file (they would be random),
code from the repository, a tokenizer whose ids do not fit.
"""

from __future__ import annotations

import importlib
import json
import logging
import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from safetensors import SafetensorError
from tokenizers import processors
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from analysis.checkpoints.options import Loading, make_ready
from analysis.checkpoints.weights import find_weight_files, load_pickled, select_weights
from babelscope.errors import one_line

if TYPE_CHECKING:
    from transformers import PretrainedConfig

logger = logging.getLogger(__name__)

MOST_LAYERS = 2000
"""Layers beyond which a config is damaged: building ten million of them would take hours."""

PADDED_VOCABULARY = 0.9
"""Embedding matrices are padded for speed (BLOOM 250,680 -> 250,880): a tokenizer may leave up to a tenth unused."""


def read_config(folder: Path, name: str, loading: Loading) -> PretrainedConfig:
    """The configuration in `folder`; code from the repository is refused.

    Raises:
        FileNotFoundError: no config.json.
        ValueError: damaged, of an unknown model type, or pointing to code of its own.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{name}: no config.json in {folder}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{name}: config.json is damaged ({one_line(error)})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{name}: config.json is damaged (expected an object, got {type(content).__name__})")
    if content.get("auto_map") and loading.architecture is None:
        raise ValueError(
            f"{name}: asks to run code from its repository (auto_map in config.json), which is refused; "
            "if transformers has the architecture, name its class in loading.architecture"
        )
    content.pop("auto_map", None)
    try:
        if loading.architecture is not None:
            config_class = model_class(loading.architecture).config_class
            assert config_class is not None, f"{loading.architecture} has no config class"
            content.pop("model_type", None)
            config = config_class.from_dict(content)
        else:
            config = AutoConfig.for_model(content.pop("model_type", ""), **content)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{name}: config.json is of no use: {one_line(error)}") from None
    layers = getattr(config.get_text_config(), "num_hidden_layers", 1)
    if not isinstance(layers, int) or not 0 < layers <= MOST_LAYERS:
        raise ValueError(f"{name}: config.json asks for {layers!r} layers; a model has 1 to {MOST_LAYERS}")
    if getattr(config, "slow_but_exact", False):
        # BLOOM's tensor-parallel replay calls F.linear on weight slices and bypasses the modules that hooks watch.
        config.slow_but_exact = False
    return config


def model_class(architecture: str) -> type[PreTrainedModel]:
    """The class that `architecture` names.

    Raises:
        ValueError: no such class.
    """
    module_name, _, class_name = architecture.rpartition(".")
    try:
        found = getattr(importlib.import_module(module_name or "transformers"), class_name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"loading.architecture {architecture!r}: {one_line(error)}") from None
    if not (isinstance(found, type) and issubclass(found, PreTrainedModel)):
        raise ValueError(f"loading.architecture {architecture!r} is not a transformers model class")
    return found


def load_model(folder: Path, name: str, loading: Loading, *, gguf_file: str | None = None) -> PreTrainedModel:
    """The causal LM in `folder`, in eval mode on its device; `name` is how messages call the checkpoint.

    Raises:
        FileNotFoundError: config or weights are missing.
        ValueError: weights damaged, refused, incomplete or of another shape than the config says.
    """
    options = {name: getattr(loading, name) for name in ("device_map", "max_memory", "offload_folder")}
    options = {name: option for name, option in options.items() if option is not None}
    if gguf_file is not None:
        options["gguf_file"] = gguf_file
        cls: Any = AutoModelForCausalLM if loading.architecture is None else model_class(loading.architecture)
        config = None
    else:
        config = read_config(folder, name, loading)
        cls = _class_for(config, name, loading)
        options["use_safetensors"] = find_weight_files(folder, name)[0].suffix == ".safetensors"
    dtype = "auto" if loading.dtype == "stored" else getattr(torch, loading.dtype)
    try:
        model, report = cls.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            weights_only=True,
            local_files_only=True,
            output_loading_info=True,
            **options,
        )
    except torch.OutOfMemoryError:
        raise
    except SafetensorError as error:
        raise ValueError(
            f"{name}: the weights are truncated or damaged ({one_line(error)}); fetch them again"
        ) from None
    except pickle.UnpicklingError:
        raise ValueError(f"{name}: the weights are refused: the pickle holds more than tensors") from None
    except (OSError, RuntimeError, ValueError, KeyError, EOFError) as error:
        raise ValueError(f"{name}: cannot be loaded: {one_line(error)}") from None
    missing = sorted(report["missing_keys"])
    if missing:
        raise ValueError(
            f"{name}: the weights lack {len(missing)} parameters of {type(model).__name__}, first {missing[0]}; "
            "they would be random (wrong architecture?)"
        )
    if report["mismatched_keys"]:
        raise ValueError(f"{name}: shapes differ from config.json: {one_line(ValueError(report['mismatched_keys']))}")
    if report["unexpected_keys"]:
        logger.warning(
            "%s: weights without a place in the model are ignored: %s", name, sorted(report["unexpected_keys"])[:3]
        )
    # With a device map the weights are where it says, each in its precision, since they were read.
    return make_ready(model, loading) if loading.device_map is None else model.eval().requires_grad_(False)


def load_lightning(
    file: Path, config_folder: Path, name: str, loading: Loading, prefix: str | None = None
) -> PreTrainedModel:
    """The model inside a Lightning checkpoint: the entries of its `state_dict` under `prefix`, see `select_weights`.

    Raises:
        FileNotFoundError: no config.json in `config_folder`.
        ValueError: the file is damaged, refused, or holds another model.
    """
    state = load_pickled(file, name).get("state_dict")
    if not isinstance(state, dict):
        raise ValueError(f"{name}: no 'state_dict' in {file.name}; is it a Lightning checkpoint?")
    model = _draw(config_folder, name, loading, seed=0)
    weights = dict(select_weights(state, prefix))
    tied = set(model.state_dict()) - set(dict(model.named_parameters())) - set(dict(model.named_buffers()))
    try:
        outcome = model.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        raise ValueError(f"{name}: {file.name} holds another model: {one_line(error)}") from None
    missing = sorted(set(outcome.missing_keys) - tied)
    if missing or outcome.unexpected_keys:
        odd = missing or sorted(outcome.unexpected_keys)
        kind = "lacks" if missing else "has unknown"
        raise ValueError(f"{name}: {file.name} {kind} {len(odd)} weights of {type(model).__name__}, first {odd[0]}")
    return make_ready(model, loading)


def build_random(config_folder: Path, name: str, loading: Loading, *, seed: int) -> PreTrainedModel:
    """The untrained network of a suite: its config, transformers' own initialisation, a seed of its own."""
    return make_ready(_draw(config_folder, name, loading, seed=seed), loading)


def _draw(config_folder: Path, name: str, loading: Loading, *, seed: int) -> PreTrainedModel:
    config = read_config(config_folder, name, loading)
    cls = _class_for(config, name, loading)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return cls.from_config(config) if cls is AutoModelForCausalLM else cls(config)


def load_tokenizer(
    reference: Path, name: str, *, prefix_token: str | None = None, **options: str
) -> PreTrainedTokenizerBase:
    """The fast tokenizer in the folder `reference`; `options` go to transformers (`gguf_file`).

    `prefix_token` is put before every text, for suites whose tokenizer adds nothing although training documents were
    separated by it (BLOOM: `</s>`); None keeps the tokenizer's own rule.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: not a fast tokenizer, needs remote code, or does not know `prefix_token`.
    """
    if not reference.is_dir():
        raise FileNotFoundError(f"{name}: no tokenizer folder {reference}; set 'tokenizer' to a folder or hub id")
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(reference), trust_remote_code=False, local_files_only=True, use_fast=True, **options
        )
    except (OSError, ValueError, KeyError, ImportError, TypeError, AttributeError) as error:
        serialised = _serialised_tokenizer(reference)
        if serialised is None:
            raise FileNotFoundError(f"{name}: no usable tokenizer in {reference}: {one_line(error)}") from None
        tokenizer = serialised
        logger.warning("%s: tokenizer.json is used as it is, its settings cannot be: %s", name, one_line(error))
    if not tokenizer.is_fast:
        raise ValueError(f"{name}: the tokenizer in {reference} is not a fast one, which this project needs")
    if prefix_token is not None:
        token_id = tokenizer.convert_tokens_to_ids(prefix_token)
        if token_id is None or tokenizer.convert_ids_to_tokens(token_id) != prefix_token:
            raise ValueError(f"{name}: prefix_token {prefix_token!r} is not in the vocabulary of {reference}")
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{prefix_token} $A",
            pair=f"{prefix_token} $A {prefix_token} $B",
            special_tokens=[(prefix_token, token_id)],
        )
    return tokenizer


def _serialised_tokenizer(folder: Path) -> PreTrainedTokenizerFast | None:
    """The tokenizer in tokenizer.json with the roles that its settings name, and nothing else of the settings.

    transformers adds all special tokens of the settings again, which fails for B-GPT with its 1,200 of them.
    """
    roles: dict[str, str] = {}
    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        try:
            content = json.loads((folder / file).read_text(encoding="utf-8"))
            for role in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"):
                token = content.get(f"{role}_token")
                token = token.get("content") if isinstance(token, dict) else token
                if isinstance(token, str):
                    roles[f"{role}_token"] = token
        except (OSError, ValueError, AttributeError):
            continue
    try:
        return PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), **roles)
    except Exception:  # the library raises bare Exception for a file that it cannot read
        return None


def check_fit(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str, *, strict: bool, shift: int = 0
) -> None:
    """Refuse a tokenizer that cannot belong to the model, whose cloned languages are shifted by up to `shift` ids.

    Raises:
        ValueError: ids beyond the embedding matrix, or (`strict`) a vocabulary much smaller than it.
    """
    rows = model.config.get_text_config().vocab_size
    largest = max(tokenizer.get_vocab().values())
    if largest >= rows:
        raise ValueError(
            f"{name}: the tokenizer has ids up to {largest} but the model only {rows} embeddings; "
            "it is another model's tokenizer: set 'tokenizer'"
        )
    if strict and largest + 1 + shift < PADDED_VOCABULARY * rows:
        raise ValueError(
            f"{name}: the tokenizer has {largest + 1} tokens but the model {rows} embeddings; it looks like another "
            "model's tokenizer: set 'tokenizer', or loading.check_tokenizer: false"
        )


def _class_for(config: PretrainedConfig, name: str, loading: Loading) -> type:
    if loading.architecture is not None:
        return model_class(loading.architecture)
    named = (config.architectures or [""])[0]
    if isinstance(getattr(transformers, named, None), type) and named.endswith(("ForCausalLM", "LMHeadModel")):
        return getattr(transformers, named)
    if type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
        return AutoModelForCausalLM
    raise ValueError(f"{name}: transformers has no causal LM for model type {config.model_type!r}")
