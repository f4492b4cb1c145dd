"""The load-balancing loss of a mixture of experts, the same whatever the layout of the batch."""

import sys
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lightning_dpo.soundness import base_model


def balance(model: PreTrainedModel, routed: Sequence[tuple[Sequence[Tensor] | None, Tensor]]) -> Tensor | None:
    """The model's own loss over the tokens of all sequences, a scalar; None unless its configuration asks for it
    (`output_router_logits`).

    Args:
        routed: for each forward pass the router logits of each layer, [token, expert], and the flat positions of every
            token of every sequence. A prompt that two responses share counts twice, and padding not at all, so that the
            value is that of unpadded rows.
    """
    config = model.config.get_text_config()
    if not getattr(config, "output_router_logits", False):
        return None
    layers = []
    for logits in zip(*(outputs for outputs, _ in routed), strict=True):
        tokens = [layer.flatten(0, -2)[members] for layer, (_, members) in zip(logits, routed, strict=True)]
        layers.append(torch.cat(tokens))
    loss = sys.modules[type(base_model(model)).__module__].load_balancing_loss_func
    experts = getattr(config, "num_local_experts", None) or config.num_experts
    return loss(tuple(layers), experts, config.num_experts_per_tok)


def coefficient(model: PreTrainedModel) -> float:
    """Weight of the load-balancing loss beside a mean loss per sequence, as the model's configuration says."""
    return model.config.get_text_config().router_aux_loss_coef
