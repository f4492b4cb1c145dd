"""losses.ipo and losses.dpo reach the known optimum of bandits."""

import sys

import pandas as pd
import pytest
import torch

from lightning_dpo.demo.bandit import runs as bandit
from lightning_dpo.demo.bandit.__main__ import main
from lightning_dpo.losses import PairLogps

ORDER = {  # π(a), π(b), π(c) of IPO on a > b > c by tau: log-ratios 1/(3τ), 0, -1/(3τ), computed by hand
    0.1: (0.9644, 0.0344, 0.0012),
    0.5: (0.5627, 0.2889, 0.1483),
    1.0: (0.4484, 0.3213, 0.2302),
    10.0: (0.3445, 0.3332, 0.3223),
}


@pytest.fixture(scope="module")
def run() -> bandit.IPOBandit:
    """A seventh of the paper's steps: enough for IPO, too few for the limit of DPO."""
    return bandit.ipo_bandit(steps=2500, average=1500)


def policy(run: bandit.IPOBandit, loss: str, data: int, tau: float) -> torch.Tensor:
    return run.policy[list(bandit.LOSSES).index(loss), :, data, bandit.TAUS.index(tau)].mean(0)


def test_the_least_squares_optimum_equals_the_one_computed_by_hand():
    for tau, expected in ORDER.items():
        assert bandit.DATA[0].ipo_optimum(tau).tolist() == pytest.approx(expected, abs=6e-5)
    third = 1 / 3
    assert bandit.DATA[1].ipo_optimum(0.1).tolist() == pytest.approx([third] * 3)
    shape = torch.tensor([0.0, 0.0, -1 / (2 * 0.3)], dtype=torch.float64).softmax(0)
    assert bandit.DATA[2].ipo_optimum(0.3).tolist() == pytest.approx(shape.tolist())
    assert bandit.DATA[3].ipo_optimum(0.3).tolist() == pytest.approx(shape[[0, 2, 1]].tolist())


@pytest.mark.parametrize("tau", bandit.TAUS)
def test_ipo_reaches_its_optimum_at_every_tau(run, tau):
    for d, data in enumerate(bandit.DATA):
        torch.testing.assert_close(policy(run, "ipo", d, tau), data.ipo_optimum(tau), atol=0.01, rtol=0)


def test_dpo_becomes_greedy_at_every_beta_and_does_not_converge(run):
    at_a = [policy(run, "dpo", 0, tau)[0].item() for tau in bandit.TAUS]
    assert min(at_a[:4]) > 0.95 and at_a == sorted(at_a, reverse=True)
    curves = run.curve[1:, 1, :, 0].mean(1)  # [time, tau]
    assert (curves.diff(dim=0)[:, 3:] > 0).all(), "still rising at tau 1 and above"
    assert (curves[-1] > torch.stack([bandit.DATA[0].ipo_optimum(t)[0] for t in bandit.TAUS])).all()


def test_a_cycle_of_preferences_gives_a_uniform_policy(run):
    for loss in bandit.LOSSES:
        for tau in bandit.TAUS:
            assert policy(run, loss, 1, tau).tolist() == pytest.approx([1 / 3] * 3, abs=0.04)


@pytest.mark.parametrize("loss", bandit.LOSSES)
def test_d3_as_printed_in_the_paper_cannot_move_c(loss):
    """{a > b, b > a}: only the difference of θ_a and θ_b enters."""
    theta = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64, requires_grad=True)
    logp = theta.log_softmax(0)
    same = torch.full((2,), -1.0986, dtype=torch.float64)
    pairs = PairLogps(logp[[0, 1]], logp[[1, 0]], ref_chosen=same, ref_rejected=same)
    (gradient,) = torch.autograd.grad(bandit.LOSSES[loss](pairs, beta=0.5).loss.sum(), theta)
    assert gradient[2].abs() < 1e-15 and gradient[0].abs() > 0.01


@pytest.mark.slow
def test_the_papers_18000_steps():
    run = bandit.ipo_bandit()
    for tau, expected in ORDER.items():
        assert policy(run, "ipo", 0, tau).tolist() == pytest.approx(expected, abs=5e-4)
    for tau in (0.1, 0.3, 0.5, 1.0):
        assert policy(run, "dpo", 0, tau)[0] > 0.99999


def test_dpo_reaches_its_closed_form():
    run = bandit.dpo_bandit()
    assert (run.policy - run.optimum).abs().max() < 1e-8, "log-probabilities, nats"
    assert run.error[0].min() > 0.1, "not at the start, for any beta"
    by_hand = run.reference[0].exp() * (run.reward[0] / bandit.BETAS[1]).exp()
    assert run.policy[1, 0].exp().tolist() == pytest.approx((by_hand / by_hand.sum()).tolist(), abs=1e-9)
    torch.testing.assert_close(run.loss, run.entropy.expand_as(run.loss), atol=1e-12, rtol=0)
    table = bandit.dpo_table(run)
    assert table["KL"].is_monotonic_decreasing and table["reward"].is_monotonic_decreasing


@pytest.mark.parametrize("name", bandit.LOSSES)
def test_the_command_writes_a_plot_and_a_table(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bandit", name, "--output", str(tmp_path), "--steps", "40"])
    main()
    table = pd.read_csv(tmp_path / "table.csv")
    assert len(table) == {"ipo": 2 * len(bandit.DATA) * len(bandit.TAUS), "dpo": len(bandit.BETAS)}[name]
    assert (tmp_path / "plot.png").stat().st_size > 20_000 and str(tmp_path) in capsys.readouterr().out
