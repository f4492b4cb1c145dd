"""Load, check and export models and tokenizers."""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lightning_dpo.errors import ConfigError
from lightning_dpo.models.checks import check_weights
from lightning_dpo.models.layers import checkpoint_activations, compile_layers, without_dropout

Dtype = Literal["float32", "bfloat16", "float16", "float64"]
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


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

    Errors: ConfigError for a path that does not exist, a model that is not a causal one, is quantised or lacks
    weights, and an option that the model does not support.
    """
    config = load_config(path, trust_remote_code)
    stored = config.dtype or torch.float32
    options = {"trust_remote_code": trust_remote_code, "use_safetensors": True, "ignore_mismatched_sizes": True}
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        check_path(path), config=config, dtype=getattr(torch, dtype), output_loading_info=True, **options
    )
    model, found = loaded
    check_weights(model, found, f"model.path={path}")
    model.stored_dtype = stored
    model.eval()
    if router_aux_loss_coef is not None:
        _balance_experts(model, router_aux_loss_coef)
    if activation_checkpointing:
        checkpoint_activations(model)
    if compile:
        compile_layers(model)
    return model


def load_config(path: str | Path, trust_remote_code: bool = False) -> PreTrainedConfig:
    """The configuration of a folder or hub id.

    Errors: ConfigError for a model that cannot be trained: not a causal language model, or with quantised weights.
    """
    found = check_path(path)
    if Path(found, "adapter_config.json").is_file() and not Path(found, "config.json").is_file():
        raise ConfigError(f"model.path={path}: an adapter without its model; type a model with the adapter merged")
    config = AutoConfig.from_pretrained(found, trust_remote_code=trust_remote_code)
    remote = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    if type(config) not in AutoModelForCausalLM._model_mapping and not remote:
        kind = "an encoder-decoder model" if config.is_encoder_decoder else "no causal language model"
        kind = "a model of images and text" if hasattr(config, "vision_config") else kind
        raise ConfigError(
            f"model.path={path}: {config.model_type} is {kind} in transformers; preferences are trained on causal "
            "language models of text: type the path of one, such as the text model saved by itself"
        )
    if (quantised := getattr(config, "quantization_config", None)) is not None:
        method = dict(quantised if isinstance(quantised, dict) else quantised.to_dict()).get("quant_method")
        raise ConfigError(
            f"model.path={path}: its weights are quantised ({method}) and take no gradient; type the path of the "
            "model that it was made from"
        )
    return config


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


def load_tokenizer(path: str | Path, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or hub id."""
    return AutoTokenizer.from_pretrained(check_path(path), trust_remote_code=trust_remote_code)


def check_path(path: str | Path, key: str = "model.path") -> str:
    """The path, if it is a folder or can only be a hub id.

    Errors: ConfigError for a mistyped folder. As a hub id it would cost a minute of retries.
    """
    text = str(path)
    folder = Path(text).expanduser()
    if folder.is_dir():
        return str(folder)
    if not HUB_ID.fullmatch(text) or text.startswith(".") or ("/" in text and folder.parent.is_dir()):
        raise ConfigError(f"{key}={text}: no such folder; type a folder with config.json or a hub id like org/name")
    return text


def plain_config(model: PreTrainedModel) -> dict:
    """The model's configuration as plain JSON values."""
    return json.loads(model.config.to_json_string(use_diff=False))


def from_plain_config(config: dict) -> PreTrainedModel:
    """A model of this configuration with fresh weights, in evaluation mode."""
    settings = AutoConfig.for_model(**{k: v for k, v in config.items() if k != "transformers_version"})
    return AutoModelForCausalLM.from_config(settings).eval()


def export(
    policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, card: str, dtype: Dtype | None = None
) -> None:
    """Write the policy in Hugging Face format: safetensors, configuration, tokenizer and a model card.

    A mixture of experts is written with the `output_router_logits` that it came with, so that the result generates.

    Args:
        card: its text, in which {dtype} stands for that of the weights.
        dtype: of the weights in the file; None: as in the folder that the model came from.
    """
    kept: Any = getattr(torch, dtype) if dtype else getattr(policy, "stored_dtype", policy.dtype)
    shown = str(kept).removeprefix("torch.")
    asked = getattr(policy.config.get_text_config(), "output_router_logits", False)
    with router_logits(policy, getattr(policy, "_own_router_logits", asked)):
        policy.save_pretrained(folder, state_dict=None if kept == policy.dtype else _cast(policy, kept))
    if kept != policy.dtype:  # save_pretrained writes that of the policy into the configuration
        path = folder / "config.json"
        keys = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps(keys | {"dtype": shown}, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    if (backend := getattr(tokenizer, "backend_tokenizer", None)) is not None:
        backend.no_padding()  # settings of earlier calls, which a resumed run may not have made
        backend.no_truncation()
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(card.replace("{dtype}", shown), encoding="utf-8")


def _cast(policy: PreTrainedModel, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The weights in this dtype, on the CPU. Tied weights stay one tensor, and what the model keeps in float32, such as
    the gates of experts, stays so."""
    names = {*(policy._keep_in_fp32_modules or ()), *(policy._keep_in_fp32_modules_strict or ())}
    kept = re.compile("|".join(rf"(?:^|\.){re.escape(name)}(?:\.|$)" for name in names) or r"(?!)")
    cast: dict[Any, torch.Tensor] = {}
    for name, t in policy.state_dict().items():
        wanted = dtype if t.is_floating_point() and not kept.search(name) else t.dtype
        cast[name] = cast.setdefault((t.data_ptr(), t.shape), t.to("cpu", wanted))
    return {name: tensor for name, tensor in cast.items() if isinstance(name, str)}


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
