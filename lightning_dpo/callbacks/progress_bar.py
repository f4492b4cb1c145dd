"""The progress bar of training."""

import time

from lightning.pytorch.callbacks import RichProgressBar


class PairProgressBar(RichProgressBar):
    """Loss, accuracy and margin of the last step, mean pairs per second, and the time left."""

    def on_train_start(self, trainer, pl_module) -> None:
        super().on_train_start(trainer, pl_module)
        self._begin, self._pairs = time.monotonic(), 0

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx: int) -> None:
        self._pairs += len(batch)
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def get_metrics(self, trainer, pl_module) -> dict[str, int | str | float | dict[str, float]]:
        now = trainer.callback_metrics
        names = {"loss": "train/loss", "accuracy": "train/rewards/accuracies", "margin": "train/rewards/margins"}
        shown = {short: f"{float(now[name]):.3f}" for short, name in names.items() if name in now}
        if trainer.training:
            shown["pairs/s"] = f"{self._pairs / (time.monotonic() - self._begin):.0f}"
        return shown  # type: ignore[return-value]
