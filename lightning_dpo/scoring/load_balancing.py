"""The load-balancing loss of a mixture of experts, independent of the batch's layout."""

import sys
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lightning_dpo.errors import ConfigError
from lightning_dpo.models.layers import base_model

COUNTS = ("num_local_experts", "num_experts", "n_routed_experts")
"""Keys for the number of experts in transformers' configurations."""


def load_balancing_loss(
    model: PreTrainedModel, routed: Sequence[tuple[Sequence[Tensor] | None, Tensor]]
) -> Tensor | None:
    """The model's own loss over the tokens of all sequences, a scalar; None without `output_router_logits`.

    Args:
        routed: for each forward pass the router logits of each layer, [token, expert], and the flat positions of every
            token of every sequence. A prompt that two responses share counts twice and padding does not count, so the
            value is that of unpadded rows.

    Errors: ConfigError for a model without such a loss.
    """
    config = model.config.get_text_config()
    if not getattr(config, "output_router_logits", False):
        return None
    layers = []
    for logits in zip(*(outputs for outputs, _ in routed), strict=True):
        tokens = [x.flatten(0, -2).index_select(0, members) for x, (_, members) in zip(logits, routed, strict=True)]
        layers.append(torch.cat(tokens))
    loss = getattr(sys.modules[type(base_model(model)).__module__], "load_balancing_loss_func", None)
    count = next((n for key in COUNTS if (n := getattr(config, key, None))), None)
    if loss is None or count is None:
        raise ConfigError(
            f"{type(base_model(model)).__name__} has no load-balancing loss in transformers, but its configuration "
            "asks for one (output_router_logits); type model.router_aux_loss_coef=0 to train without it"
        )
    return loss(tuple(layers), count, config.num_experts_per_tok)


def coefficient(model: PreTrainedModel) -> float:
    """Weight of the load-balancing loss relative to a mean loss per sequence, from the model's configuration."""
    return model.config.get_text_config().router_aux_loss_coef
