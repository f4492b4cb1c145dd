"""CHES: which pairs are likely to lower the chosen response's probability, judged by hidden states."""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lightning_dpo.batch import PairBatch
from lightning_dpo.ragged import Ragged
from lightning_dpo.scoring.attention import plain_attention
from lightning_dpo.scoring.head import captured_head_input
from lightning_dpo.scoring.layout import padded


@torch.no_grad()
def ches_scores(
    model: PreTrainedModel, pairs: PairBatch, length_normalised: bool = False, batch_size: int = 16
) -> Tensor:
    """Centred hidden embedding similarity of each pair, shape [pair], on the CPU; float32, or float64 for such a model.

        CHES = <H_chosen, H_rejected> - ||H_chosen||²,    H = sum of the hidden states that predict a response's tokens

    A hidden state is the input of the model's head. The one at the last prompt token predicts the first response token;
    the one at the last response token predicts nothing and is left out, as are those that predict untrained tokens. A
    high score (close to 0, or above) marks two responses that look alike to the model. Training on such a pair lowers
    the chosen response along with the rejected one, so the paper filters these pairs out. With `length_normalised`, H
    is a mean, which removes the effect of length.

    References: Razin et al. 2024 (arXiv 2410.08847); for the positions, the authors' `ches/ches.py`.
    """
    scores = []
    for first in range(0, len(pairs), batch_size):
        batch = pairs.select(range(first, min(first + batch_size, len(pairs)))).to(model.device)
        chosen, rejected = _summed_hidden(model, batch)
        if length_normalised:
            n_chosen, n_rejected = (n[:, None].to(chosen.device) for n in batch.trained_lengths())
            chosen, rejected = chosen / n_chosen, rejected / n_rejected
        scores.append((chosen * (rejected - chosen)).sum(-1).cpu())
    return torch.cat(scores)


def _summed_hidden(model: PreTrainedModel, batch: PairBatch) -> tuple[Tensor, Tensor]:
    """H of the chosen and of the rejected responses, each [pair, width]."""
    responses = Ragged.cat([batch.chosen, batch.rejected])
    layout = padded(Ragged.cat([batch.prompt, batch.prompt]), responses)
    with plain_attention(model), captured_head_input(model) as captured:
        model(**layout.inputs, use_cache=False)
    trained = slice(None) if batch.trained is None else Ragged.cat(batch.trained).values.bool()
    hidden = captured[0].flatten(0, 1)[layout.predictors[trained]]
    hidden = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
    lengths = torch.cat(batch.trained_lengths()).to(hidden.device)
    sums = torch.segment_reduce(hidden, "sum", lengths=lengths, axis=0)
    return sums[: len(batch)], sums[len(batch) :]
