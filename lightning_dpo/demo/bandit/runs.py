"""Softmax bandits with a known optimum, trained with the package's losses.

All seeds, data sets and betas are trained in one tensor. Adam is elementwise, so they do not affect each other.
"""

import math
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, one_hot

from lightning_dpo import losses
from lightning_dpo.losses import PairLogps

LOSSES = {"ipo": losses.ipo, "dpo": losses.dpo}


class Preferences(NamedTuple):
    """A data set of the three-action bandit: pairs (chosen, rejected), and the limit of DPO at every beta."""

    name: str
    pairs: list[tuple[int, int]]
    dpo_limit: tuple[float, float, float]

    def ipo_optimum(self, tau: float) -> Tensor:
        """The policy that minimises IPO's loss over the pairs from a uniform reference, shape [action].

        The loss is (θ_chosen - θ_rejected - 1/(2τ))² in the logits, so this is least squares.
        """
        chosen, rejected = one_hot(torch.tensor(self.pairs).T, 3).double()
        targets = torch.full((len(self.pairs),), 1 / (2 * tau), dtype=torch.float64)
        return (torch.linalg.pinv(chosen - rejected) @ targets).softmax(0)


A, B, C = range(3)
DATA = [
    Preferences("a > b > c", [(A, B), (B, C), (A, C)], (1, 0, 0)),
    Preferences("cycle", [(A, B), (B, C), (C, A)], (1 / 3, 1 / 3, 1 / 3)),
    Preferences("c only loses", [(A, B), (B, A), (B, C)], (1 / 2, 1 / 2, 0)),
    Preferences("b only loses", [(A, B), (C, B)], (1 / 2, 0, 1 / 2)),
]
"""D1 and D2 of the paper (Azar et al. 2023, arXiv 2310.12036, section 5.4), and two readings of its D3.

D3 is meant to have an action that is never preferred, but as printed, {a > b, b > a}, it gives θ_c no gradient.
"""
TAUS = (0.1, 0.3, 0.5, 1.0, 2.0, 5.0, 10.0)
MINI_BATCH = 9


class IPOBandit(NamedTuple):
    """`policy` [loss, seed, data, tau, action], and `curve`: π(a) at `times`, [time, loss, seed, data, tau]."""

    policy: Tensor
    curve: Tensor
    times: list[int]


def ipo_bandit(steps: int = 18000, seeds: int = 10, seed: int = 0, average: int = 2000) -> IPOBandit:
    """The paper's runs: uniform reference and start, Adam at lr 0.01, mini-batches of 9 pairs with replacement.

    IPO and DPO see the same mini-batches at every tau. Policies are means over the last `average` steps, because a
    single one is noisy (IPO's up to 0.008).
    """
    average = min(average, steps)
    drawn = draws(steps, seeds, seed) / MINI_BATCH
    theta = torch.zeros(len(LOSSES), seeds, len(DATA), len(TAUS), 3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([theta], lr=0.01, fused=True)
    pairs = torch.nn.utils.rnn.pad_sequence([torch.tensor(d.pairs) for d in DATA], batch_first=True)  # [data, pair, 2]
    shape = (seeds, len(DATA), len(TAUS), pairs.shape[1])
    sides = pairs[:, None].expand(len(LOSSES), *shape, 2).unbind(-1)
    n = torch.Size(shape).numel()
    taus: Any = torch.tensor(TAUS, dtype=torch.float64)[:, None].expand(shape).flatten()  # the equations broadcast
    reference = torch.full((n,), -math.log(3), dtype=torch.float64)

    total, curve, times = torch.zeros_like(theta), [], range(0, steps, 100)
    for step in range(steps):
        logp = theta.log_softmax(-1)
        chosen, rejected = (logp.gather(-1, side).flatten(1) for side in sides)  # [loss, pair]
        values = [
            function(PairLogps(c, r, ref_chosen=reference, ref_rejected=reference), beta=taus).loss
            for function, c, r in zip(LOSSES.values(), chosen, rejected, strict=True)
        ]
        # Mini-batches repeat pairs: each is computed once, with its number of draws as weight.
        weights = drawn[step, :, :, None].expand(shape).flatten()
        optimizer.zero_grad()
        torch.autograd.backward(values, [weights] * len(values))
        optimizer.step()
        if step in times:
            curve.append(logp[..., A].detach().exp())
        if step >= steps - average:
            total += theta.detach().softmax(-1)
    return IPOBandit(total / average, torch.stack(curve), list(times))


def draws(steps: int, seeds: int, seed: int) -> Tensor:
    """The number of times that each pair is in a step's mini-batch, [step, seed, data, pair]."""
    sizes = torch.tensor([len(d.pairs) for d in DATA])
    uniform = torch.rand(steps, seeds, len(DATA), MINI_BATCH, generator=torch.Generator().manual_seed(seed))
    rows = (uniform * sizes[:, None]).long()
    return torch.stack([(rows == pair).sum(-1) for pair in range(int(sizes.max()))], -1).double()


def ipo_table(run: IPOBandit) -> pd.DataFrame:
    """One row per data set, tau and loss: the policy (mean over seeds), its theoretical limit, and the distance."""
    rows = []
    for d, data in enumerate(DATA):
        for t, tau in enumerate(TAUS):
            limits = {"ipo": data.ipo_optimum(tau), "dpo": torch.tensor(data.dpo_limit, dtype=torch.float64)}
            for policy, (loss, limit) in zip(run.policy[:, :, d, t].mean(1), limits.items(), strict=True):
                numbers = {f"π({x})": policy[i].item() for i, x in enumerate("abc")}
                theory = {f"theory {x}": limit[i].item() for i, x in enumerate("abc")}
                distance = (policy - limit).abs().max().item()
                rows.append({"data": data.name, "tau": tau, "loss": loss, **numbers, **theory, "distance": distance})
    return pd.DataFrame(rows)


BETAS = (0.1, 0.3, 1.0, 3.0, 10.0)


class DPOBandit(NamedTuple):
    """Log-probabilities `policy` and `optimum` [beta, problem, action], and the training curve `error`."""

    reference: Tensor  # log-probabilities [problem, action]
    reward: Tensor  # [problem, action]
    policy: Tensor
    optimum: Tensor
    loss: Tensor  # the last one [beta, problem], a mean over pairs
    entropy: Tensor  # of the preferences, nats per pair [problem]: the minimum of the loss at every beta
    error: Tensor  # largest |log π - log π*| [time, beta]
    times: list[int]


def closed_form(reference: Tensor, reward: Tensor, beta: float) -> Tensor:
    """log π* of π* ~ π_ref exp(r/β), along the last dimension (Rafailov et al. 2023, arXiv 2305.18290, eq. 4)."""
    return (reference + reward / beta).log_softmax(-1)


def dpo_bandit(steps: int = 1500, problems: int = 8, actions: int = 5, seed: int = 0) -> DPOBandit:
    """DPO on random problems, from π = π_ref, with Adam.

    Each pair of actions has both labels with their Bradley-Terry probabilities σ(r_i - r_j) as weights, so the gradient
    is exact. With one sampled label per pair, an action may win all of its pairs, and no finite policy is optimal.
    """
    generator = torch.Generator().manual_seed(seed)
    reference = torch.randn(problems, actions, generator=generator, dtype=torch.float64).log_softmax(-1)
    reward = torch.randn(problems, actions, generator=generator, dtype=torch.float64)
    optimum = torch.stack([closed_form(reference, reward, beta) for beta in BETAS])
    theta = reference.expand_as(optimum).clone().requires_grad_()
    # At a constant lr Adam does not converge: its step does not vanish with the gradient.
    optimizer = torch.optim.Adam([theta], lr=1.0, betas=(0.9, 0.99))
    decay = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.995)
    winner, loser = (torch.ones(actions, actions) - torch.eye(actions)).nonzero().T
    shape = (len(BETAS), problems, len(winner))
    log_odds = (reward[:, winner] - reward[:, loser]).expand(shape).flatten()
    weights = log_odds.sigmoid() * 2 / len(winner)  # each pair is in both orders
    ref_chosen, ref_rejected = (reference[:, side].expand(shape).flatten() for side in (winner, loser))
    betas: Any = torch.tensor(BETAS, dtype=torch.float64)[:, None, None].expand(shape).flatten()

    error, times = [], range(0, steps, 20)
    loss = weights
    for step in range(steps):
        logp = theta.log_softmax(-1)
        if step in times:
            error.append((logp.detach() - optimum).abs().amax((1, 2)))
        chosen, rejected = (logp[..., side].flatten() for side in (winner, loser))
        pairs = PairLogps(chosen, rejected, ref_chosen=ref_chosen, ref_rejected=ref_rejected)
        loss = losses.dpo(pairs, beta=betas).loss * weights
        optimizer.zero_grad()
        loss.sum().backward()
        optimizer.step()
        decay.step()
    entropy = -(weights * logsigmoid(log_odds)).view(shape)[0].sum(-1)
    policy = theta.detach().log_softmax(-1)
    reached = loss.detach().view(shape).sum(-1)
    return DPOBandit(reference, reward, policy, optimum, reached, entropy, torch.stack(error), list(times))


def dpo_table(run: DPOBandit) -> pd.DataFrame:
    """One row per beta; reward and KL to the reference (nats) are means over the problems."""
    rows = []
    for b, beta in enumerate(BETAS):
        reached, best = (frontier(run, log_p) for log_p in (run.policy[b], run.optimum[b]))
        rows.append({
            "beta": beta, "KL": reached[0], "KL theory": best[0], "reward": reached[1], "reward theory": best[1],
            "loss - entropy": (run.loss[b] - run.entropy).abs().max().item(),
            "log error": (run.policy[b] - run.optimum[b]).abs().max().item(),
        })  # fmt: skip
    return pd.DataFrame(rows)


def frontier(run: DPOBandit, log_policy: Tensor) -> tuple[float, float]:
    """KL to the reference and expected reward of policies [problem, action], means over the problems."""
    p = log_policy.exp()
    kl, reward = (p * (log_policy - run.reference)).sum(-1), (p * run.reward).sum(-1)
    return kl.mean().item(), reward.mean().item()
