"""Load and check models."""

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from lightning_dpo.errors import ConfigError
from lightning_dpo.models.checks import check_weights
from lightning_dpo.models.layers import checkpoint_activations, compile_layers, without_dropout
from lightning_dpo.models.paths import check_path, reading
from lightning_dpo.models.tokenizers import largest_id

log = logging.getLogger(__name__)

Dtype = Literal["float32", "bfloat16", "float16", "float64"]


def load_model(
    path: str,
    dtype: Dtype = "float32",
    trust_remote_code: bool = False,
    activation_checkpointing: bool = False,
    compile: bool = False,
    router_aux_loss_coef: Annotated[float, "[0, inf)"] | None = None,
) -> PreTrainedModel:
    """A causal language model in evaluation mode, without dropout. Every weight comes from the folder, and is finite.

    Args:
        path: a folder, or a hub id such as `Qwen/Qwen3-0.6B`. Weights are read from safetensors only.
        dtype: of the parameters; the trainer's precision sets autocast.
        trust_remote_code: run Python code that comes with the model.
        activation_checkpointing: recompute each layer in the backward pass to save memory.
        compile: torch.compile each layer in place; the first steps are slow.
        router_aux_loss_coef: weight of the load-balancing loss of a mixture of experts; None keeps the setting of the
            model's configuration, which is usually off.

    Errors: ConfigError for a path that does not exist or cannot be had, a model that is not a causal one, is quantised
    or lacks weights, and an option that the model does not support.
    """
    model = _read(path, dtype, trust_remote_code)
    if router_aux_loss_coef is not None:
        _balance_experts(model, router_aux_loss_coef)
    if activation_checkpointing:
        checkpoint_activations(model)
    if compile:
        compile_layers(model)
    return model


def _read(path: str, dtype: str, trust_remote_code: bool, key: str = "model.path") -> PreTrainedModel:
    """The checked model of a folder or hub id, in evaluation mode."""
    config = load_config(path, trust_remote_code, key)
    stored = config.dtype or torch.float32
    options = {"trust_remote_code": trust_remote_code, "use_safetensors": True, "ignore_mismatched_sizes": True}
    with reading("weights", path, key):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            check_path(path, key), config=config, dtype=getattr(torch, dtype), output_loading_info=True, **options
        )
    model, found = loaded
    check_weights(model, found, f"{key}={path}")
    model.stored_dtype = stored
    return model.eval()


def load_config(path: str | Path, trust_remote_code: bool = False, key: str = "model.path") -> PreTrainedConfig:
    """The configuration of a folder or hub id.

    Errors: ConfigError for one that cannot be had, and for a model that cannot be trained: not a causal language model,
    or with quantised weights.
    """
    found, where = check_path(path, key), f"{key}={path}"
    if Path(found, "adapter_config.json").is_file() and not Path(found, "config.json").is_file():
        raise ConfigError(f"{where}: an adapter without its model; type a model with the adapter merged")
    with reading("configuration", path, key):
        config = AutoConfig.from_pretrained(found, trust_remote_code=trust_remote_code)
    remote = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    if type(config) not in AutoModelForCausalLM._model_mapping and not remote:
        kind = "an encoder-decoder model" if config.is_encoder_decoder else "no causal language model"
        kind = "a model of images and text" if hasattr(config, "vision_config") else kind
        raise ConfigError(
            f"{where}: {config.model_type} is {kind} in transformers; preferences are trained on causal language "
            "models of text: type the path of one, such as the text model saved by itself"
        )
    if (quantised := getattr(config, "quantization_config", None)) is not None:
        method = dict(quantised if isinstance(quantised, dict) else quantised.to_dict()).get("quant_method")
        raise ConfigError(
            f"{where}: its weights are quantised ({method}) and take no gradient; type the path of the model that it "
            "was made from"
        )
    return config


def resize_embeddings(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Add an embedding for each id of the tokenizer that the model has none for; it is never made smaller.

    A new row is the mean of the old ones (Hewitt 2021, https://nlp.stanford.edu/~johnhew/vocab-expansion.html). Nothing
    is drawn: a resumed run and `reference=cached` build the same rows again.
    """
    _resize(model, largest_id(tokenizer) + 1)


def _resize(model: PreTrainedModel, rows: int) -> None:
    before = model.get_input_embeddings().weight.shape[0]  # type: ignore[union-attr]
    if rows <= before:
        return
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        model.resize_token_embeddings(rows, mean_resizing=False)  # which draws what the next lines replace
        for layer in filter(None, (model.get_input_embeddings(), model.get_output_embeddings())):
            for values in layer.parameters():  # a weight, and a bias of some heads
                values[before:] = values[:before].float().mean(0)
    model.resized_to = rows  # type: ignore[assignment]
    log.info("embeddings resized from %d to %d rows", before, rows)


def loader_like(policy: PreTrainedModel, trust_remote_code: bool) -> Callable[[str], PreTrainedModel]:
    """Loads a reference as the policy was loaded: in its dtype, and with as many embeddings if those were resized."""
    dtype = str(policy.dtype).removeprefix("torch.")
    return partial(_load_like, policy.name_or_path, dtype, trust_remote_code, getattr(policy, "resized_to", 0))


def _load_like(own: str | None, dtype: str, trust_remote_code: bool, rows: int, path: str) -> PreTrainedModel:
    model = _read(path, dtype, trust_remote_code, "model.path" if path == own else "reference.path")
    _resize(model, rows)
    return model


def _balance_experts(model: PreTrainedModel, weight: float) -> None:
    config = model.config.get_text_config()
    if not hasattr(config, "router_aux_loss_coef"):
        raise ConfigError(f"model.router_aux_loss_coef={weight}: {type(model).__name__} has no experts; leave it out")
    model._own_router_logits = getattr(config, "output_router_logits", False)  # type: ignore[assignment]
    config.router_aux_loss_coef, config.output_router_logits = weight, weight > 0


@contextmanager
def router_logits(model: PreTrainedModel, value: bool) -> Iterator[None]:
    """Whether a mixture of experts computes its load-balancing loss, inside the block.

    With it, transformers cannot generate from padded prompts: the loss expects as many tokens as the mask has.
    """
    config = model.config.get_text_config()
    before = getattr(config, "output_router_logits", None)
    if before is not None:
        config.output_router_logits = value
    try:
        yield
    finally:
        if before is not None:
            config.output_router_logits = before


def plain_config(model: PreTrainedModel) -> dict:
    """The model's configuration as plain JSON values."""
    return json.loads(model.config.to_json_string(use_diff=False))


def from_plain_config(config: dict) -> PreTrainedModel:
    """A model of this configuration with fresh weights, in evaluation mode."""
    settings = AutoConfig.for_model(**{k: v for k, v in config.items() if k != "transformers_version"})
    return AutoModelForCausalLM.from_config(settings).eval()


def as_model(model: PreTrainedModel | str | Path | Mapping[str, Any], trust_remote_code: bool) -> PreTrainedModel:
    """A given model, one loaded from a folder or hub id, or one with fresh weights from a plain configuration."""
    if isinstance(model, Mapping):
        return from_plain_config(dict(model))
    if isinstance(model, str | Path):
        return load_model(str(model), trust_remote_code=trust_remote_code)
    if hasattr(model, "peft_config"):
        raise ConfigError(
            f"{type(model).__name__}: a checkpoint of an adapter could not be loaded again; pass the model with the "
            "adapter merged, model.merge_and_unload()"
        )
    return without_dropout(model)
