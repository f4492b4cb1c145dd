"""Names, values and exact means of the metrics."""

import pytest
import torch

from lightning_dpo.ledger import PairMeans
from lightning_dpo.losses import PairLogps, dpo
from lightning_dpo.metrics import pair_metrics


def metrics_of(chosen: list[float], rejected: list[float]) -> dict[str, torch.Tensor]:
    n = len(chosen)
    logps = PairLogps(
        torch.tensor(chosen), torch.tensor(rejected),
        ref_chosen=torch.full((n,), -5.0), ref_rejected=torch.full((n,), -5.0),
        chosen_tokens=torch.full((n,), 2), rejected_tokens=torch.full((n,), 3),
    )  # fmt: skip
    return pair_metrics(logps, dpo(logps, beta=0.1))


def test_names_and_values_of_one_pair():
    metrics = metrics_of([-4.0], [-8.0])
    assert {name: round(value.float().item(), 4) for name, value in metrics.items()} == {
        "loss": 0.513,  # -log sigmoid(0.1 (1 - -3))
        "loss_margin": 0.4,
        "rewards/chosen": 0.1,
        "rewards/rejected": -0.3,
        "rewards/margins": 0.4,
        "rewards/accuracies": 1.0,
        "logps/chosen": -4.0,
        "logps/rejected": -8.0,
        "lengths/chosen": 2.0,
        "lengths/rejected": 3.0,
        "displacement/chosen_below_reference": 0.0,
        "displacement/chosen_up": 1.0,  # of 2 tokens; the rejected response has 3
        "displacement/rejected_down": 3.0,
        "displacement/chosen_per_token": 0.5,
        "displacement/rejected_per_token": -1.0,
    }


def test_chosen_up_and_rejected_down_add_up_to_the_margin():
    """Also if the chosen response falls: -7 and +9 make a margin of 2 nats."""
    metrics = metrics_of([-12.0], [-14.0])
    up, down = (metrics[f"displacement/{name}"].item() for name in ("chosen_up", "rejected_down"))
    assert (up, down) == (-7, 9) and metrics["rewards/margins"].item() == pytest.approx(0.1 * (up + down))
    assert metrics["displacement/chosen_below_reference"].item() is True


def test_a_tie_counts_as_wrong():
    assert metrics_of([-5.0], [-5.0])["rewards/accuracies"].item() is False


def test_uneven_batches_give_the_mean_over_pairs():
    means = PairMeans()
    means.update(metrics_of([-1.0, -2.0, -3.0], [-5.0] * 3))
    means.update(metrics_of([-10.0], [-5.0]))
    values, pairs = means.compute(all_reduce=lambda t: t)
    assert pairs == 4 and values["logps/chosen"] == -4.0


def test_ranks_are_summed_before_the_division():
    """Two ranks have 3 pairs and 1 pair; the mean of their means would be -6."""
    other = PairMeans()
    other.update(metrics_of([-10.0], [-5.0]))
    means = PairMeans()
    means.update(metrics_of([-1.0, -2.0, -3.0], [-5.0] * 3))
    values, pairs = means.compute(all_reduce=lambda t: t + other.sums)
    assert pairs == 4 and values["logps/chosen"] == -4.0
