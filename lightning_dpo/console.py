"""What people see: the header, a decoded pair, the progress bar, and the table at the end."""

import logging
import os
import re
import time
import warnings
from pathlib import Path
from typing import Any

import transformers
from lightning.pytorch.callbacks import RichProgressBar
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedModel

from lightning_dpo.data import PreferenceDataModule
from lightning_dpo.data.ches_report import ches_report
from lightning_dpo.data.report import data_report, plot_lengths
from lightning_dpo.files import write_json
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

ODDITIES = {
    "cut_prompt": "prompts cut",
    "cut_chosen": "chosen cut",
    "cut_rejected": "rejected cut",
    "exact_duplicates": "exact duplicates",
    "contradictory": "contradictory",
    "merged_border": "tokens merged over the border",
}
"""Counts of the data report that its page names where they are not 0."""


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
        ".*your dataloader is not resumable.*",  # the data module knows its position
        ".*litlogger.*",
    ):
        warnings.filterwarnings("ignore", message=message)


def say(text: Text | str) -> None:
    console.print(text, soft_wrap=True)
    log.info("%s", text.plain if isinstance(text, Text) else text)


def header(cfg: DictConfig, choices: dict[str, str | None], module: DPOModule) -> None:
    parameters = ", ".join(f"{k} {v}" for k, v in cfg.loss.items() if not str(k).startswith("_"))
    size = sum(p.numel() for p in module.policy.parameters())
    say(f"policy     {cfg.model.path} ({size:,} parameters, {cfg.model.dtype})")
    say(f"loss       {choices['loss']} ({parameters})   reference {choices['reference']}")
    say(f"optimizer  lr {cfg.optimizer.lr:g}, {cfg.scheduler.name}, {cfg.data.batch_size} pairs x "
        f"{cfg.trainer.accumulate_grad_batches} per step")  # fmt: skip
    why = f" ({module.scorer.objection})" if module.scorer.objection else ""
    say(f"scoring    {module.scorer.layout}{why}")
    say(f"output     {cfg.output_dir}")
    if choices.get("model") == "tiny" and "demo/assets" not in Path(cfg.model.path).as_posix():
        advice = "for your own model type model=hf model.path=..., or optimizer.lr=..."
        say(Text(f"optimizer.lr={cfg.optimizer.lr:g} is the bundled tiny model's; {advice}", style="yellow"))


def data_page(data: PreferenceDataModule, folder: Path) -> dict[str, Any]:
    """Print the data report and write it to data_report.json, with data.report_plot its picture too."""
    report = data_report(data)
    write_json(folder / "data_report.json", report)
    if data.report_plot:
        plot_lengths(report, folder / "data_lengths.png")
    if data.streaming:
        say("train      a stream: its rows are counted as they are read, and reported at the end")
    for source in report["sources"]:
        lost = {**source["dropped"], **source["bad"]}
        dropped = ", dropped " + ", ".join(f"{n:,} {reason}" for reason, n in lost.items()) if lost else ""
        weight = f" x {source['weight']:g}" if source["weight"] != 1 else ""
        say(f"{source['set']:10} {source['path']}{weight}: {source['rows']:,} rows{dropped}")
    for name, described in report["sets"].items():
        shared = report["shared_with_train"].get(name, {}).get("prompts", 0)
        say(f"{name:10} {_described(described, shared)}")
    for warning in report["warnings"]:
        say(Text(f"warning    {warning}", style="yellow"))
    for example in report.get("examples", []):
        say(_example(example))
    return report


def stream_page(data: PreferenceDataModule, folder: Path, report: dict[str, Any]) -> None:
    """Say what became of the rows of a stream, and add it to data_report.json."""
    report["pairs"]["stream"] = dict(data.stream_counts)
    write_json(folder / "data_report.json", report)
    say("train      read from the stream: " + ", ".join(f"{n:,} {what}" for what, n in data.stream_counts.items()))


def ches_page(policy: PreTrainedModel, data: PreferenceDataModule, folder: Path, report: dict[str, Any]) -> None:
    """Say which training pairs look most alike to the policy; the scores of all go to data_ches.csv."""
    assert data.train_pairs is not None  # a stream has no report
    report["ches"] = ches = ches_report(policy, data.train_pairs, folder / "data_ches.csv")
    write_json(folder / "data_report.json", report)
    alike = ", ".join(f"{pair['where']} ({pair['ches']:.3g})" for pair in ches["most_alike"])
    say(f"ches       median {ches['q50']:.3g} (5 %: {ches['q05']:.3g}, 95 %: {ches['q95']:.3g}); most alike: {alike}")
    say(
        "           training on the highest may push their chosen responses down: leave those out first (data_ches.csv)"
    )


def _described(described: dict[str, Any], shared: int) -> str:
    lengths = (f"{side} {n['q50']} (95 %: {n['q95']})" for side, n in described["lengths"].items())
    longer = described["longer_wins"]["accuracy"]
    seen = ", ".join(f"{described[name]:,} {words}" for name, words in ODDITIES.items() if described[name])
    in_train = f" ({shared:,} also in train)" if shared else ""
    return (
        f"{described['pairs']:,} pairs, {described['prompts']:,} prompts{in_train}; "
        f"median tokens: {', '.join(lengths)}; "
        f'"the longer one wins": {longer:.1%}{seen and "; " + seen}'
    )


def _example(example: dict[str, str]) -> Text:
    """A training pair as the model sees it; the trained tokens stand between « and » and are green."""
    text = Text(f"{example['where']}, trained tokens between « and »\n")
    for side in ("chosen", "rejected"):
        text.append(f"  {side:9}").append(example["prompt"], style="dim")
        for i, piece in enumerate(re.split("([«»])", example[side])):
            text.append(piece, style="green" if i % 4 == 2 else "")
        text.append("\n")
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
            se = metrics.last.get("val/kl_se")
            error = f" ± {se:.2f}" if name == "val/kl" and se is not None else ""
            table.add_row(label, f"{metrics.first[name]:.3f}", f"{metrics.last[name]:.3f}{error}")
    if table.row_count:
        console.print(table)
    if TABLE["accuracy"] in metrics.last:
        console.print("Where the policy is its own reference, every pair ties, and a tie counts as wrong.", style="dim")
    drawn = zip(samples.first, samples.last, strict=True) if "val/samples/length" in metrics.last else ()
    for before, after in list(drawn)[:3]:
        text = Text(f"{before.prompt}\n").append("  before  ", style="dim").append(before.text.strip())
        console.print(text.append("\n  after   ", style="dim").append(after.text.strip()))
    written = sorted(p.name + ("/" if p.is_dir() else "") for p in folder.path.iterdir())
    console.print(f"written to {folder.path}: {', '.join(written)}", soft_wrap=True)
