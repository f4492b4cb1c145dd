"""What Lightning's checkpoints lack: random generators, and the position in an epoch.

All private names of Lightning that resuming depends on are here; `tests/run/test_resume_private_names.py` checks them.
"""

import random
from collections.abc import Mapping
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.loops.progress import _ProcessedTracker


def begin_epoch(trainer: L.Trainer, epochs: int) -> None:
    """Start the epoch after `epochs` complete ones as an uninterrupted run does. Lightning's own restart skips batches
    or validations, or trains one epoch too many, depending on which validation came last."""
    loop = trainer.fit_loop
    loop.epoch_progress.total, loop.epoch_progress.current = (_ProcessedTracker(*[epochs] * 4) for _ in range(2))
    loop._restarting = loop.epoch_loop.restarting = False  # the fit loop's setter gives True with max_steps
    for part in (loop, loop.epoch_loop, loop.epoch_loop.val_loop):
        part.reset_restart_stage()


def validates_now(trainer: L.Trainer) -> bool:
    """Whether validation follows the batch that has just ended."""
    fit_loop = trainer.fit_loop
    return fit_loop.epoch_loop._should_check_val_fx(fit_loop._data_fetcher)  # type: ignore[arg-type]


def is_within_step(trainer: L.Trainer) -> bool:
    """Whether an optimizer step has begun and its last micro-batch is still to come."""
    return trainer.fit_loop._should_accumulate()


def watched(trainer: L.Trainer) -> dict[str, float]:
    """The last values of the metrics that ReduceLROnPlateau watches."""
    names = {config.monitor for config in trainer.lr_scheduler_configs if config.reduce_on_plateau}
    return {name: float(value) for name, value in trainer.callback_metrics.items() if name in names}


def resume_plateau(trainer: L.Trainer, metrics: Mapping[str, float], due: bool) -> None:
    """Restore those metrics. Lightning steps such a schedule after the hooks that save a checkpoint. Resuming, it makes
    that step only after a validation, and leaves out the one at the end of the epoch.

    Args:
        due: whether the checkpoint was saved before such a step and no validation.
    """
    trainer.callback_metrics.update({name: torch.tensor(value) for name, value in metrics.items()})
    trainer.fit_loop._restarting = False
    if due:
        trainer.fit_loop.epoch_loop.update_lr_schedulers("step", update_plateau_schedulers=True)


def rng_state() -> dict[str, Any]:
    """The global random generators of torch, NumPy and Python, as tensors and plain values."""
    kind, keys, *rest = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [kind, torch.from_numpy(np.array(keys, dtype=np.int64)), *rest],
        "python": random.getstate(),
    }


def set_rng_state(state: Mapping[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.device_count() == len(state["cuda"]):
        torch.cuda.set_rng_state_all(state["cuda"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
