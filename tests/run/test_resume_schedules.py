"""A schedule that is stepped by epochs or by validations continues where it was, from any checkpoint."""

import csv
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import LearningRateMonitor
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR

from lightning_dpo import CopyReference, DPOModule, PreferenceDataModule, losses
from lightning_dpo.callbacks.saving import Saving
from lightning_dpo.demo import ASSETS
from lightning_dpo.loggers.metrics_csv import MetricsCSV
from lightning_dpo.run.checkpoint import AtomicCheckpointIO
from lightning_dpo.run.signals import Stop
from tests.test_module import trainer

WORSE = partial(ReduceLROnPlateau, mode="max", patience=0)
"""Lowers the learning rate whenever the loss has not risen."""

SCHEDULES = {
    "epochs": lambda o: {"scheduler": StepLR(o, step_size=1, gamma=0.5), "interval": "epoch"},
    "every second epoch": lambda o: {"scheduler": StepLR(o, 1, 0.5), "interval": "epoch", "frequency": 2},
    "an epoch's last validation": lambda o: {"scheduler": WORSE(o), "monitor": "val/loss", "interval": "epoch"},
    "validations": lambda o: {"scheduler": WORSE(o), "monitor": "val/loss", "interval": "step", "frequency": 2},
    "steps": lambda o: {"scheduler": WORSE(o), "monitor": "train/loss", "interval": "step"},
}


class Copies(AtomicCheckpointIO):
    """Keeps a copy of each checkpoint."""

    def __init__(self, folder: Path):
        self.folder, self.paths = folder, []

    def save_checkpoint(self, checkpoint, path, storage_options=None) -> None:
        super().save_checkpoint(checkpoint, path, storage_options)
        self.paths.append(self.folder / f"{len(self.paths)}.ckpt")
        shutil.copy(path, self.paths[-1])


FAST = [("epochs", 1, 5), ("validations", 1, 4)]
SLOW = [(name, accumulate, 1) for name in SCHEDULES for accumulate in (1, 2)]


@pytest.mark.parametrize(
    ("name", "accumulate", "every"), [*FAST, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)]
)
def test_a_run_resumed_from_any_checkpoint_has_the_same_rows(tmp_path, name, accumulate, every):
    """Five batches an epoch, a validation after every second.

    Args:
        every: resume from each checkpoint, or from every few.
    """
    rows = (ASSETS / "train.jsonl").read_text().splitlines(keepends=True)[:10]
    (tmp_path / "pairs.jsonl").write_text("".join(rows))

    def fit(start: Path | None = None) -> tuple[bytes, list[Path]]:
        data = PreferenceDataModule(
            ASSETS / "model", tmp_path / "pairs.jsonl", tmp_path / "pairs.jsonl", batch_size=2, cache_dir=tmp_path
        )
        sgd = partial(torch.optim.SGD, lr=0.1)
        module = DPOModule(ASSETS / "model", partial(losses.dpo, beta=0.1), CopyReference(), sgd, SCHEDULES[name])
        metrics, copies = MetricsCSV(tmp_path), Copies(tmp_path)
        saving = Saving(tmp_path, 1, metrics, {"config": {}}, Stop())
        options = dict(max_epochs=3, val_check_interval=2, log_every_n_steps=1, accumulate_grad_batches=accumulate)
        run = trainer(callbacks=[LearningRateMonitor("step"), saving], plugins=[copies], logger=[metrics], **options)
        run.fit(module, datamodule=data, ckpt_path=start, weights_only=True)
        return metrics.path.read_bytes(), copies.paths

    whole, paths = fit()
    table = list(csv.DictReader(whole.decode().splitlines()))
    rates, seen = ({r["step"]: r[name] for r in table if r[name]} for name in ("train/lr", "lr-SGD"))
    assert len(paths) >= 8 and len(set(rates.values())) > 1 and seen == rates
    for path in paths[every - 1 :: every]:
        shutil.copy(path, start := tmp_path / "start.ckpt")
        assert fit(start)[0] == whole, path.name
