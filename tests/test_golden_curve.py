"""Twenty steps of the bundled task, in each layout, give the curve that version 0.1.0 gave: a change that is meant to
change nothing proves it here. A change that does change numbers says so in CHANGELOG.md and writes the file anew:
`python -m tests.test_golden_curve`."""

import csv
import tempfile
from functools import partial
from pathlib import Path

import lightning as L
import pytest
import torch

from lightning_dpo import CopyReference, DPOModule, PreferenceDataModule, losses
from lightning_dpo.demo import ASSETS

GOLDEN = Path(__file__).parent / "golden" / "curves.csv"
LAYOUTS = ("padded", "shared_prefix")


class Losses(L.pytorch.loggers.logger.DummyLogger):
    """The loss of each step."""

    def __init__(self):
        super().__init__()
        self.values: list[float] = []

    def log_metrics(self, metrics, step=None):
        self.values += [float(metrics["train/loss"])] if "train/loss" in metrics else []


def curve(layout: str, cache: Path) -> list[float]:
    L.seed_everything(0, verbose=False)
    data = PreferenceDataModule(ASSETS / "model", ASSETS / "train.jsonl", batch_size=8, cache_dir=cache, num_workers=0)
    module = DPOModule(
        ASSETS / "model",
        loss=partial(losses.dpo, beta=0.1),
        reference=CopyReference(),
        optimizer=partial(torch.optim.AdamW, lr=6e-4),
        scoring=layout,
    )
    logger = Losses()
    silent = dict(enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False)
    trainer = L.Trainer(max_steps=20, accelerator="cpu", logger=logger, log_every_n_steps=1, **silent)
    trainer.fit(module, datamodule=data)
    return logger.values


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_loss_curve_is_the_golden_one(layout, tmp_path):
    """To 2e-4 of each loss: rounding differs between processors, and twenty steps multiply it."""
    with open(GOLDEN, newline="") as file:
        golden = [float(row[layout]) for row in csv.DictReader(file)]
    assert len(golden) == 20 and golden[0] == pytest.approx(0.6931, abs=1e-4) and golden[-1] < 0.65
    assert curve(layout, tmp_path) == pytest.approx(golden, rel=2e-4)


if __name__ == "__main__":
    torch.set_num_threads(1)
    curves = [curve(layout, Path(tempfile.mkdtemp())) for layout in LAYOUTS]
    with open(GOLDEN, "w", newline="") as file:
        csv.writer(file).writerows([("step", *LAYOUTS), *zip(range(1, 21), *curves, strict=True)])
