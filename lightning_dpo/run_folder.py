"""A run is a folder: what went in, what came out."""

import json
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning as L
from omegaconf import DictConfig, OmegaConf
from transformers import PreTrainedTokenizerBase

from lightning_dpo import models
from lightning_dpo.errors import ConfigError
from lightning_dpo.files import write_json
from lightning_dpo.module import DPOModule
from lightning_dpo.tracking import Clock, MetricsCSV

PACKAGES = ("lightning-dpo", "torch", "lightning", "transformers", "hydra-core", "wandb")


class RunFolder:
    """`output_dir`: config.yaml at the start; checkpoints/, model/ and, last, summary.json at the end.

    Errors: ConfigError if the folder holds a run already.
    """

    def __init__(self, cfg: DictConfig):
        self.path = Path(cfg.output_dir).absolute()
        self.cfg = cfg
        if (self.path / "metrics.csv").exists():
            raise ConfigError(f"output_dir={cfg.output_dir}: the folder holds a run already; name another one")
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / "config.yaml").write_text(OmegaConf.to_yaml(cfg, resolve=True), encoding="utf-8")

    def export(self, trainer: L.Trainer, module: DPOModule, tokenizer: PreTrainedTokenizerBase, choices: dict) -> None:
        """checkpoints/last.ckpt for Lightning and model/ for transformers."""
        trainer.save_checkpoint(self.path / "checkpoints" / "last.ckpt")
        card = MODEL_CARD.format(
            base=self.cfg.model.path,
            loss=choices["loss"],
            parameters=json.dumps({k: v for k, v in self._plain("loss").items() if not k.startswith("_")}),
            data=self.cfg.data.train,
            steps=trainer.global_step,
            version=version("lightning-dpo"),
        )
        models.export(module.policy, tokenizer, self.path / "model", card)

    def _plain(self, key: str) -> dict[str, Any]:
        return OmegaConf.to_container(self.cfg[key], resolve=True)  # type: ignore[return-value]

    def summarise(
        self, module: DPOModule, report: dict[str, Any], metrics: MetricsCSV, clock: Clock, seconds: float
    ) -> float | None:
        """Write summary.json, which marks a finished run; returns the objective (None if it was not logged)."""
        objective = metrics.last.get(self.cfg.objective)
        summary: dict[str, Any] = {
            "objective": {"name": self.cfg.objective, "value": objective},
            "metrics": metrics.last,
            "metrics_at_start": {k: v for k, v in metrics.first.items() if k.startswith("val/")},
            "steps": module.trainer.global_step,
            "data": report["pairs"],
            "scoring": module.scorer.layout,
            "reference_forwards": 0 if module.reference is None else module.reference.forwards,
            "seconds": round(seconds, 3),
            "train_seconds": round(clock.seconds, 3),
            "pairs_per_second": round(clock.pairs / clock.seconds, 3),
            "tokens_per_second": round(clock.tokens / clock.seconds, 1),
            "command": " ".join(sys.argv),
            "versions": {"python": platform.python_version(), **{p: version(p) for p in PACKAGES}},
        }
        write_json(self.path / "summary.json", summary)
        return objective


MODEL_CARD = """---
library_name: transformers
base_model: {base}
tags: [preference-tuning, lightning-dpo]
---

# Preference-tuned with lightning_dpo {version}

- base: `{base}`
- loss: `{loss}` with `{parameters}`
- data: `{data}`
- optimizer steps: {steps}
"""
