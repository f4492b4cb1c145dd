"""What docs/bundled_task.md says: its commands are accepted, and its laws of a token that both responses share hold."""

import re
import shlex

import pytest
import torch

from lightning_dpo.losses import PairLogps, dpo, rpo
from tests.config.test_check import check
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "bundled_task.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"`(python -m lightning_dpo.train [^`]+)`", PAGE)


def test_its_commands_are_accepted():
    assert len(COMMANDS) == 2
    for command in COMMANDS:
        check(*shlex.split(command)[3:])


def pull(loss, q: float) -> float:
    """The force, minus the gradient, on the logit of a last token that has probability 1 - q after both responses."""
    z = torch.tensor([0.0, torch.logit(torch.tensor(q, dtype=torch.float64)).item()], dtype=torch.float64)
    z.requires_grad_()
    end = z.log_softmax(0)[0]
    before = torch.tensor([-8.0, -9.0], dtype=torch.float64)  # the other tokens of the chosen and rejected response
    chosen, rejected = (before[i] + end for i in (0, 1))
    n = torch.tensor([10])
    reference = {"ref_chosen": before[:1] - 1, "ref_rejected": before[1:] + 1}
    pair = PairLogps(chosen[None], rejected[None], chosen_tokens=n, rejected_tokens=n, **reference)
    loss(pair).loss.sum().backward()
    return -z.grad[0].item()


@pytest.mark.parametrize("q", [1e-6, 0.5, 0.999])
def test_dpo_does_not_mend_a_token_that_both_responses_share_and_the_likelihood_term_does(q):
    assert pull(lambda pair: dpo(pair, beta=0.1), q) == pytest.approx(0, abs=1e-12)
    # n tokens share the weight of the likelihood, and d log(1 - q) / d logit = q
    assert pull(lambda pair: rpo(pair, beta=0.1, nll_weight=0.2), q) == pytest.approx(0.2 * q / 10, rel=1e-6)
