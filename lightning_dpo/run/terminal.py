"""The lines that a run prints at its start and at its end."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.table import Table
from rich.text import Text

from lightning_dpo.console import console, say
from lightning_dpo.loggers.metrics_csv import MetricsCSV
from lightning_dpo.module import DPOModule

TABLE = {
    "loss": "val/loss",
    "accuracy": "val/rewards/accuracies",
    "margin": "val/rewards/margins",
    "KL to reference, nats": "val/kl",
    "oracle reward": "val/samples/reward",
    "length, tokens": "val/samples/length",
    "validity": "val/samples/valid",
}
"""Rows of the final table; one without a value is left out."""


def header(cfg: DictConfig, choices: dict[str, str | None], module: DPOModule) -> None:
    parameters = ", ".join(f"{k} {v}" for k, v in cfg.loss.items() if not str(k).startswith("_"))
    size = sum(p.numel() for p in module.policy.parameters())
    say(f"policy     {cfg.model.path} ({size:,} parameters, {cfg.model.dtype})")
    say(f"loss       {choices['loss']} ({parameters})   reference {choices['reference']}")
    pairs = f"{cfg.data.batch_size} pairs x {cfg.trainer.accumulate_grad_batches} per step"
    optimizer, scheduler = (
        str(node.get("_target_", "none")).rpartition(".")[2] for node in (cfg.optimizer, cfg.scheduler)
    )
    lr = cfg.optimizer.get("lr")
    rate = "" if lr is None else f" lr {lr:g}"
    say(f"optimizer  {optimizer}{rate}, scheduler {cfg.scheduler.get('name', scheduler)}, {pairs}")
    why = f" ({module.scorer.why_not_packed})" if module.scorer.why_not_packed else ""
    say(f"scoring    {module.scorer.layout}{why}")
    say(f"output     {cfg.output_dir}")
    if choices.get("model") == "tiny" and lr is not None and "demo/assets" not in Path(cfg.model.path).as_posix():
        advice = "for your own model type model=hf model.path=..., or optimizer.lr=..."
        say(Text(f"optimizer.lr={lr:g} is the bundled tiny model's; {advice}", style="yellow"))


def footer(metrics: MetricsCSV, first: Sequence[Any], last: Sequence[Any], best: Any, folder: Path) -> None:
    """Print a table of the first and the last validation, some completions of both, and the files written.

    Args:
        first, last: completions (`prompt`, `text`) of these validations, in the same order.
        best: what was exported, if not the last weights.
    """
    table = Table("held out", "before", "after")
    for label, name in TABLE.items():
        if name in metrics.last:
            se = metrics.last.get("val/kl_se")
            error = f" ± {se:.2f}" if name == "val/kl" and se is not None else ""
            table.add_row(label, f"{metrics.first[name]:.3f}", f"{metrics.last[name]:.3f}{error}")
    if table.row_count:
        console.print(table)
    if TABLE["accuracy"] in metrics.last:
        console.print("Where the policy is its own reference, every pair ties, and a tie counts as wrong.", style="dim")
    drawn = zip(first, last, strict=True) if "val/samples/length" in metrics.last else ()
    for before, after in list(drawn)[:3]:
        text = Text(f"{before.prompt}\n").append("  before  ", style="dim").append(before.text.strip())
        console.print(text.append("\n  after   ", style="dim").append(after.text.strip()))
    if best is not None:
        console.print(
            f"model/ has the weights of step {best.step}, the best {best.name}: {best.metrics[best.name]:.4g}"
        )
    written = sorted(p.name + ("/" if p.is_dir() else "") for p in folder.iterdir())
    console.print(f"written to {folder}: {', '.join(written)}", soft_wrap=True)
