"""Dropout, checkpointing and compilation of a model's layers."""

from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from lightning_dpo.errors import ConfigError


def without_dropout(model: PreTrainedModel) -> PreTrainedModel:
    """The model in evaluation mode. Checkpointed layers stay in training mode, which they need, with dropout 0."""
    model.eval()
    if model.is_activation_checkpointing:
        for layer in _layers(model):
            layer.training = True  # for the layer itself, not for the modules in it
            for name in [n for n, value in vars(layer).items() if "drop" in n and isinstance(value, float)]:
                setattr(layer, name, 0.0)
    return model


def checkpoint_activations(model: PreTrainedModel) -> None:
    """Keep only each layer's input and recompute the layer in the backward pass: less memory, a third more compute.

    Errors: ConfigError for a model whose layers do not support it.
    """
    if not model.supports_gradient_checkpointing or not _layers(model):
        name = type(model).__name__
        raise ConfigError(f"model.activation_checkpointing=true: the layers of {name} do not support it; leave it out")
    model.activation_checkpointing_enable({"use_reentrant": False})
    without_dropout(model)


def compile_layers(model: PreTrainedModel, backend: str = "inductor") -> None:
    """Compile each layer in place: parameters keep their names, and all sequence lengths share a graph.

    Errors: ConfigError for a model without such layers.
    """
    layers = _layers(model)
    if not layers:
        raise ConfigError(f"model.compile=true: {type(model).__name__} has no layers to compile; leave it out")
    for layer in layers:
        layer.compile(dynamic=True, backend=backend)


def _layers(model: PreTrainedModel) -> list[torch.nn.Module]:
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def base_model(model: Any) -> Any:
    """The transformers model without its adapter wrapper."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
