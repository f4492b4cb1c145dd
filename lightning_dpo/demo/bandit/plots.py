"""Figures of the bandit runs: dots are runs, lines are theory."""

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lightning_dpo.demo.bandit.runs import BETAS, DATA, LOSSES, TAUS, DPOBandit, IPOBandit, closed_form, frontier

COLORS = ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple")


def ipo_figure(run: IPOBandit) -> Figure:
    """Policies against tau for each data set, IPO above DPO; on the right the training curves on the first one."""
    figure, axes = plt.subplots(len(LOSSES), len(DATA) + 1, figsize=(17, 6.4), sharey=True, layout="constrained")
    for row, (loss, name) in enumerate(zip(axes, LOSSES, strict=True)):
        for d, ax in enumerate(loss[:-1]):
            _policies(ax, run.policy[row, :, d], name, d)
        _curves(loss[-1], run, row, name)
    axes[1, 1].legend(title="dots: runs, mean and sd over seeds\nlines: theory", loc="upper center", fontsize=9)
    axes[1, -1].legend(fontsize=8, loc="lower right", ncols=2)
    title = "Three-action bandit: tau regularises IPO; DPO becomes greedy at every tau, later at a large one"
    figure.suptitle(title, fontsize=13)
    return figure


def _policies(ax: Axes, policy: torch.Tensor, loss: str, d: int) -> None:
    """`policy` [seed, tau, action]."""
    dense = torch.logspace(-1, 1, 100).tolist()
    optima = torch.stack([DATA[d].ipo_optimum(tau) for tau in dense])
    for i, action in enumerate("abc"):
        line = optima[:, i] if loss == "ipo" else [DATA[d].dpo_limit[i]] * len(dense)
        # Dashed, so that lines that coincide stay visible.
        ax.plot(dense, line, color=COLORS[i], lw=1.5, ls=("-", (0, (4, 4)), (0, (2, 2)))[i])
        spread = policy[..., i].std(0, correction=0)
        style = {"fmt": "os^"[i], "ms": 8 - 1.5 * i, "color": COLORS[i], "mec": "white", "mew": 0.5}
        ax.errorbar(TAUS, policy[..., i].mean(0), spread, label=f"π({action})", **style)
    ax.set(xscale="log", ylim=(-0.04, 1.04), xticks=[0.1, 1, 10], xticklabels=["0.1", "1", "10"])
    ax.set_title(f"{loss.upper()} on {DATA[d].name}", fontsize=11)
    ax.set_xlabel("tau" if loss == "ipo" else "tau (DPO's beta)")
    ax.grid(alpha=0.3)


def _curves(ax: Axes, run: IPOBandit, row: int, loss: str) -> None:
    shades = plt.get_cmap("viridis")(torch.linspace(0, 0.9, len(TAUS)).numpy())
    for t, tau in enumerate(TAUS):
        ax.plot(run.times, run.curve[:, row, :, 0, t].mean(1), color=shades[t], label=f"tau {tau:g}")
        optimum = DATA[0].ipo_optimum(tau)[0].item() if loss == "ipo" else 1.0
        ax.axhline(optimum, color=shades[t] if loss == "ipo" else "black", lw=0.8, ls=":")
    ax.set_title(f"{loss.upper()} on {DATA[0].name}: π(a) while training", fontsize=11)
    ax.set_xlabel("step (dotted: theory, the limit)")
    ax.grid(alpha=0.3)


def dpo_figure(run: DPOBandit) -> Figure:
    """The distance to the closed form during training, one problem's policy against beta, the reward-KL frontier."""
    figure, (error, policy, best) = plt.subplots(1, 3, figsize=(15, 4.6), layout="constrained")
    for b, beta in enumerate(BETAS):
        error.plot(run.times, run.error[:, b].clamp(min=1e-16), color=COLORS[b], label=f"beta {beta:g}")
    error.axhline(1e-8, color="black", lw=0.8, ls=":")
    error.set(yscale="log", xlabel="step", ylabel="largest |log π - log π*|, nats", title="DPO reaches its closed form")
    error.legend()

    dense = torch.logspace(-1.2, 1.2, 100).tolist()
    curve = torch.stack([closed_form(run.reference[0], run.reward[0], beta) for beta in dense]).exp()
    for action, reward in enumerate(run.reward[0].tolist()):
        policy.plot(dense, curve[:, action], color=COLORS[action % 5])
        policy.plot(BETAS, run.policy[:, 0, action].exp(), "o", color=COLORS[action % 5], label=f"reward {reward:+.2f}")
        policy.plot(dense[-1], run.reference[0, action].exp(), "<", color=COLORS[action % 5], mfc="white")
    policy.set(xscale="log", xlabel="beta", ylabel="probability", xticks=[0.1, 1, 10], xticklabels=["0.1", "1", "10"],
               title="one problem's five actions\ndots: runs, lines: π_ref exp(r/beta), triangles: π_ref")  # fmt: skip
    policy.legend(fontsize=8)

    exact = [frontier(run, closed_form(run.reference, run.reward, beta)) for beta in dense]
    best.plot(*zip(*exact, strict=True), color="black", lw=1, label="optimum for each beta")
    for b, beta in enumerate(BETAS):
        best.plot(*frontier(run, run.policy[b]), "o", color=COLORS[b], label=f"beta {beta:g}")
    best.set(xlabel="KL to the reference, nats", ylabel="expected reward",
             title="every beta ends on the reward-KL frontier\n(means over the problems)")  # fmt: skip
    best.legend(fontsize=8)
    for ax in (error, policy, best):
        ax.grid(alpha=0.3)
    return figure
