"""Train the package's losses on softmax bandits, whose optimum is known exactly.

    python -m lightning_dpo.demo.bandit ipo    the IPO paper's three actions: IPO stays regularised, DPO becomes greedy
    python -m lightning_dpo.demo.bandit dpo    DPO reaches its closed form, π* ~ π_ref exp(r/β)

Each takes about a minute, prints a table and writes table.csv and plot.png.
"""

import argparse
import time
from pathlib import Path

import torch

from lightning_dpo.demo.bandit import plots, runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bandit", choices=runs.LOSSES)
    parser.add_argument("--output", type=Path, help="folder to write (default: outputs/bandit/{ipo,dpo})")
    parser.add_argument("--steps", type=int, help="optimizer steps (default: ipo 18000, dpo 1500)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    options = {"seed": arguments.seed} | ({} if arguments.steps is None else {"steps": arguments.steps})
    folder: Path = arguments.output or Path("outputs/bandit") / arguments.bandit
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # the tensors are tiny

    begin = time.monotonic()
    if arguments.bandit == "ipo":
        run = runs.ipo_bandit(**options)
        table, figure = runs.ipo_table(run), plots.ipo_figure(run)
    else:
        run = runs.dpo_bandit(**options)
        table, figure = runs.dpo_table(run), plots.dpo_figure(run)
    table.to_csv(folder / "table.csv", index=False)
    figure.savefig(folder / "plot.png", dpi=110)
    print(table.to_string(index=False, float_format=lambda x: f"{x:.4f}" if x == 0 or x > 1e-4 else f"{x:.0e}"))
    print(f"{time.monotonic() - begin:.0f} s; plot.png and table.csv written to {folder}")


if __name__ == "__main__":
    main()
