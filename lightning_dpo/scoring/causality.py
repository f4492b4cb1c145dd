"""Whether a model is causal: log-probabilities of responses mean nothing where a token sees those after it."""

import torch
from transformers import PreTrainedModel

from lightning_dpo.errors import ConfigError
from lightning_dpo.scoring.attention import plain_attention

TOLERANCE, HALF = 1e-3, 0.03
"""Relative to the norm of the logits. Measured: a causal model gives 0, and one of experts up to 1.4e-5 in float32, as
its sums have other sizes; attention in both directions gives 0.05 and more, Doge's experts 2e-3."""


@torch.no_grad()
def check_causal(model: PreTrainedModel) -> None:
    """Change the last token of a row and compare the logits before it.

    Errors: ConfigError if they change.
    """
    vocabulary = model.config.get_text_config().vocab_size
    row = torch.randint(0, vocabulary, (12,), generator=torch.Generator().manual_seed(0)).to(model.device)
    changed = row.clone()
    changed[-1] = (row[-1] + 1) % vocabulary
    with plain_attention(model), torch.autocast(model.device.type, enabled=False):
        before, after = (model(input_ids=r[None], use_cache=False).logits[0, :-1].float() for r in (row, changed))
    difference = float((before - after).norm() / before.norm().clamp(min=1e-9))
    if difference > (HALF if model.dtype.itemsize < 4 else TOLERANCE):
        raise ConfigError(
            f"{type(model).__name__} is not causal: another last token changes the logits before it by "
            f"{difference:.2g} (relative), so a response would be scored with its own tokens in sight; "
            "train a causal language model"
        )
