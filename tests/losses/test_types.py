"""PairLogps cannot take one number for another, and asks for token counts only where a loss uses them."""

import pytest
import torch

from lightning_dpo import losses
from lightning_dpo.losses import PairLogps
from tests.losses.pairs import NAMES, changed, full, shipped

USE_LENGTHS = {"alphapo", "cpo", "mix", "mpo", "orpo", "rdpo", "rpo", "sft", "sigmoid_norm", "simper", "simpo", "wpo"}


def test_only_the_policy_is_given_by_position():
    chosen, rejected, reference = -torch.ones(3), -2 * torch.ones(3), -torch.ones(3)
    with pytest.raises(TypeError, match="positional"):
        losses.simpo(PairLogps(chosen, rejected, reference, reference), beta=2.0)  # type: ignore[misc]
    pairs = PairLogps(chosen, rejected, ref_chosen=reference, ref_rejected=reference)
    assert losses.dpo(pairs, beta=0.1).loss.shape == (3,)


@pytest.mark.parametrize("counts", [torch.full((3,), 5.0), torch.ones(3, dtype=torch.bool)])
def test_token_counts_are_integers(counts):
    chosen = -torch.ones(3)
    with pytest.raises(ValueError, match="PairLogps.rejected_tokens counts tokens, so .* integers; found torch."):
        PairLogps(chosen, chosen, chosen_tokens=torch.full((3,), 5), rejected_tokens=counts)


@pytest.mark.parametrize("name", NAMES)
def test_a_loss_without_token_counts_runs_or_says_what_it_needs(name):
    pairs = changed(full(), chosen_tokens=None, rejected_tokens=None)
    loss = shipped(name)
    if name in USE_LENGTHS:
        with pytest.raises(ValueError, match="chosen_tokens=..., rejected_tokens=..."):
            loss(pairs)
    else:
        assert loss(pairs).loss.isfinite().all()
