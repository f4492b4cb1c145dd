"""What people see: the header, a decoded pair, the progress bar, and the table at the end."""

import logging
import os
import time
import warnings
from pathlib import Path

import transformers
from lightning.pytorch.callbacks import RichProgressBar
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lightning_dpo.data import PreferenceDataModule
from lightning_dpo.module import DPOModule
from lightning_dpo.run_folder import RunFolder
from lightning_dpo.samples import SampleCallback
from lightning_dpo.tracking import MetricsCSV

log = logging.getLogger(__name__)
console = Console(highlight=False, markup=False)  # paths and texts may hold square brackets

TABLE = {
    "loss": "val/loss",
    "accuracy": "val/rewards/accuracies",
    "margin": "val/rewards/margins",
    "KL to reference, nats": "val/kl",
    "oracle reward": "val/samples/reward",
    "length, tokens": "val/samples/length",
    "validity": "val/samples/valid",
}
"""Rows of the closing table; a row without a value is left out."""


def quiet() -> None:
    """Silence notices of the stack that ask nothing of the reader."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
        logging.getLogger(name).handlers.clear()  # every line would be printed twice under Hydra
    os.environ.setdefault("WANDB_SILENT", "true")
    transformers.logging.disable_progress_bar()
    for message in (
        ".*LeafSpec.*",  # torch 2.13 about Lightning
        ".*in eval mode at the start of training.*",  # on purpose: dropout is off
        ".*does not have many workers.*",  # batches are slices of ids in memory
        ".*litlogger.*",
    ):
        warnings.filterwarnings("ignore", message=message)


def say(text: Text | str) -> None:
    console.print(text, soft_wrap=True)
    log.info("%s", text.plain if isinstance(text, Text) else text)


def header(cfg: DictConfig, choices: dict[str, str | None], module: DPOModule, data: PreferenceDataModule) -> None:
    parameters = ", ".join(f"{k} {v}" for k, v in cfg.loss.items() if not str(k).startswith("_"))
    size = sum(p.numel() for p in module.policy.parameters())
    say(f"policy     {cfg.model.path} ({size:,} parameters, {cfg.model.dtype})")
    say(f"loss       {choices['loss']} ({parameters})   reference {choices['reference']}")
    say(f"optimizer  lr {cfg.optimizer.lr:g}, {cfg.scheduler.name}, {cfg.data.batch_size} pairs x "
        f"{cfg.trainer.accumulate_grad_batches} per step")  # fmt: skip
    for name, counts in data.counts.items():
        dropped = {k: v for k, v in counts.items() if k not in ("rows", "pairs") and v}
        say(f"{name:10} {counts['pairs']:,} pairs of {counts['rows']:,} rows {dropped or ''}")
    say(f"output     {cfg.output_dir}")
    if choices.get("model") == "tiny" and "demo/assets" not in Path(cfg.model.path).as_posix():
        advice = "for your own model type model=hf model.path=..., or optimizer.lr=..."
        say(Text(f"optimizer.lr={cfg.optimizer.lr:g} is the bundled tiny model's; {advice}", style="yellow"))
    say(decoded_pair(data))


def decoded_pair(data: PreferenceDataModule) -> Text:
    """The first training pair as the model sees it; the trained tokens are green and between marks."""
    assert data.train_pairs is not None
    text = Text("first pair, trained tokens between « and »\n")
    prompt = str(data.tokenizer.decode(data.train_pairs.prompt.row(0).tolist()))
    for side in ("chosen", "rejected"):
        response = data.tokenizer.decode(getattr(data.train_pairs, side).row(0).tolist())
        text.append(f"  {side:9}").append(prompt, style="dim").append(f"«{response}»", style="green").append("\n")
    return text


class PairProgressBar(RichProgressBar):
    """Loss, accuracy, margin and pairs per second of the step that just ended, and the time left."""

    def on_train_start(self, trainer, pl_module) -> None:
        super().on_train_start(trainer, pl_module)
        self._begin, self._pairs = time.monotonic(), 0

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx: int) -> None:
        self._pairs += len(batch)
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def get_metrics(self, trainer, pl_module) -> dict[str, int | str | float | dict[str, float]]:
        now = trainer.callback_metrics
        names = {
            "loss": "train/loss",
            "accuracy": "train/rewards/accuracies",
            "margin": "train/rewards/margins",
        }
        shown = {short: f"{float(now[name]):.3f}" for short, name in names.items() if name in now}
        if trainer.training:
            shown["pairs/s"] = f"{self._pairs / (time.monotonic() - self._begin):.0f}"
        return shown  # type: ignore[return-value]


def footer(metrics: MetricsCSV, samples: SampleCallback, folder: RunFolder) -> None:
    table = Table("held out", "before", "after")
    for label, name in TABLE.items():
        if name in metrics.last:
            error = f" ± {metrics.last['val/kl_se']:.2f}" if name == "val/kl" else ""
            table.add_row(label, f"{metrics.first[name]:.3f}", f"{metrics.last[name]:.3f}{error}")
    if table.row_count:
        console.print(table)
        console.print("Where the policy is its own reference, every pair ties, and a tie counts as wrong.", style="dim")
    for before, after in list(zip(samples.first, samples.last, strict=True))[:3]:
        text = Text(f"{before.prompt}\n").append("  before  ", style="dim").append(before.text.strip())
        console.print(text.append("\n  after   ", style="dim").append(after.text.strip()))
    written = sorted(p.name + ("/" if p.is_dir() else "") for p in folder.path.iterdir())
    console.print(f"written to {folder.path}: {', '.join(written)}", soft_wrap=True)
