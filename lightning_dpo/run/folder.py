"""A run is a folder: what went in, what came out, and whether a run goes on there."""

import json
import logging
import platform
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning as L
from omegaconf import DictConfig, OmegaConf
from transformers import PreTrainedTokenizerBase

from lightning_dpo.errors import ConfigError
from lightning_dpo.files import whole_folder, write_json
from lightning_dpo.loggers.metrics_csv import MetricsCSV
from lightning_dpo.models.loading import export
from lightning_dpo.module import DPOModule
from lightning_dpo.run import checkpoint
from lightning_dpo.run.identity import differences, may_change
from lightning_dpo.run.records import locked
from lightning_dpo.run.throughput import Throughput

log = logging.getLogger(__name__)

PACKAGES = ("lightning-dpo", "torch", "lightning", "transformers", "hydra-core", "wandb")
LOCK = ".run.lock"
WRITTEN = ("metrics.csv", "samples.jsonl", "nonfinite.jsonl", "summary.json")
"""Files that only a run has written."""


class RunFolder:
    """`output_dir`: config.yaml at the start; checkpoints/, model/ and, last, summary.json at the end.

    Args:
        config: the configuration as {dotted key: value}, which a run that goes on is compared with.

    Errors: ConfigError for a folder that cannot be written.
    """

    def __init__(self, cfg: DictConfig, config: Mapping[str, Any]):
        self.path = Path(cfg.output_dir).absolute()
        self.cfg = cfg
        self.config = {k: v for k, v in config.items() if not may_change(k, "resume")}
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            (self.path / LOCK).touch()
        except OSError as error:
            raise ConfigError(f"output_dir={cfg.output_dir}: {error.strerror} ({error.filename})") from None

    def locked(self) -> AbstractContextManager[None]:
        """Errors: ConfigError if another process runs here."""
        message = (
            f"output_dir={self.cfg.output_dir}: another process is running in this folder; type another output_dir"
        )
        return locked(self.path / LOCK, message)

    def finished(self) -> dict[str, Any] | None:
        """The summary of the run that ended here; None where none did, or `resume_override` makes it another run.

        Errors: ConfigError where that run is none to go on with.
        """
        path = self.path / "summary.json"
        if self.cfg.resume == "never" and (used := [name for name in WRITTEN if (self.path / name).exists()]):
            told = f"{self.path} holds a run already ({', '.join(used)})"
            raise ConfigError(f"resume=never: {told}; type another output_dir=...")
        if not path.exists() or (self._from_elsewhere() and not self._began_so()):
            return None
        summary = json.loads(path.read_text(encoding="utf-8"))
        return None if self._differs(summary["run"]) else summary

    def begin(self, data: Mapping[str, list[str]]) -> Path | None:
        """Write config.yaml; returns the checkpoint from which to go on, None for a run from the start.

        Args:
            data: names of each set's data by content, which a run that goes on must share.

        Errors: ConfigError for a checkpoint of another run, and where all are damaged.
        """
        self.metadata = {"config": self.config, "data": dict(data)}
        start = self._start()
        if start is not None:
            self._compare(start, data)
            (self.path / "summary.json").unlink(missing_ok=True)  # of an end that is none any more
        if start is None or start.absolute().parent != self.path / "checkpoints":
            if (self.path / "metrics.csv").exists():
                log.warning("%s: the run that began here had saved no checkpoint; it starts again", self.path)
            for name in WRITTEN:
                (self.path / name).unlink(missing_ok=True)
        (self.path / "config.yaml").write_text(OmegaConf.to_yaml(self.cfg, resolve=True), encoding="utf-8")
        return start

    def _start(self) -> Path | None:
        """The checkpoint from which to go on."""
        elsewhere = self._from_elsewhere()
        if self.cfg.resume in ("auto", "never") or (elsewhere and self._began_so()):
            own = checkpoint.newest(self.path / "checkpoints")
            if own is not None or not elsewhere:
                return own
        elif elsewhere and (used := [name for name in WRITTEN if (self.path / name).exists()]):
            told = f"{self.path} holds another run ({', '.join(used)})"
            raise ConfigError(f"resume={self.cfg.resume}: {told}; type another output_dir=...")
        start = Path(self.cfg.resume)
        if not start.is_file():
            raise ConfigError(f"resume={start}: no such file; allowed: auto, never, the path of a checkpoint")
        return start

    def _from_elsewhere(self) -> bool:
        """Whether the run goes on from a checkpoint of another folder."""
        named = self.cfg.resume not in ("auto", "never")
        return named and Path(self.cfg.resume).absolute().parent != self.path / "checkpoints"

    def _began_so(self) -> bool:
        """Whether the run in this folder began with the same `resume`: the same command goes on with it."""
        path = self.path / "config.yaml"
        return path.exists() and OmegaConf.load(path).get("resume") == self.cfg.resume  # type: ignore[union-attr]

    def _compare(self, path: Path, data: Mapping[str, list[str]]) -> bool:
        """Whether a checkpoint is of another run, where `resume_override` allows that."""
        try:
            metadata = checkpoint.read(path, lazily=True).get("run")
        except checkpoint.Damaged as error:
            raise ConfigError(f"resume={path}: {error}") from None
        if metadata is None:
            raise ConfigError(f"{path}: no run of lightning_dpo has written this checkpoint")
        return self._differs(metadata, data)

    def _differs(self, metadata: Mapping[str, Any], data: Mapping[str, list[str]] | None = None) -> bool:
        """The same of what a checkpoint or a summary says about its run."""
        changed = differences(metadata["config"], self.config)
        if data is not None:
            changed += [
                f"the pairs of {name}"
                for name in {**metadata["data"], **data}
                if metadata["data"].get(name) != data.get(name)
            ]
        if changed and not self.cfg.resume_override:
            told = f"{self.path} holds another run ({'; '.join(changed)})"
            raise ConfigError(f"{told}; type another output_dir=..., or resume_override=true to go on all the same")
        if changed:
            log.warning("going on with a run that was another one: %s", "; ".join(changed))
        return bool(changed)

    def export(self, trainer: L.Trainer, module: DPOModule, tokenizer: PreTrainedTokenizerBase, choices: dict) -> None:
        """checkpoints/last.ckpt for Lightning and model/ for transformers."""
        trainer.save_checkpoint(self.path / "checkpoints" / checkpoint.LAST)
        card = MODEL_CARD.format(
            base=self.cfg.model.path,
            loss=choices["loss"],
            parameters=json.dumps({k: v for k, v in self._plain("loss").items() if not k.startswith("_")}),
            data=self.cfg.data.train,
            steps=trainer.global_step,
            version=version("lightning-dpo"),
        )
        with whole_folder(self.path / "model") as folder:
            export(module.policy, tokenizer, folder, card)

    def _plain(self, key: str) -> dict[str, Any]:
        return OmegaConf.to_container(self.cfg[key], resolve=True)  # type: ignore[return-value]

    def check_objective(self, metrics: MetricsCSV) -> None:
        """Errors: ConfigError, after the first validation, for an objective that validation does not measure."""
        name, known = self.cfg.objective, sorted(n for n in metrics.last if n.startswith("val/"))
        if name.startswith("val/") and name not in known:
            raise ConfigError(f"objective={name}: this run does not measure it; allowed: {', '.join(known)}")

    def summarise(
        self, module: DPOModule, report: dict[str, Any], metrics: MetricsCSV, throughput: Throughput, seconds: float
    ) -> float | None:
        """Write summary.json, which marks a finished run; returns the objective (None if it was not logged)."""
        objective = metrics.last.get(self.cfg.objective)
        summary: dict[str, Any] = {
            "objective": {"name": self.cfg.objective, "value": objective},
            "run": self.metadata,
            "metrics": metrics.last,
            "metrics_at_start": {k: v for k, v in metrics.first.items() if k.startswith("val/")},
            "steps": module.trainer.global_step,
            "data": report["pairs"],
            "scoring": module.scorer.layout,
            "reference_forwards": 0 if module.reference is None else module.reference.forwards,
            "seconds": round(seconds, 3),
            "train_seconds": round(throughput.seconds, 3),
            "pairs_per_second": round(throughput.pairs / max(throughput.seconds, 1e-9), 3),
            "tokens_per_second": round(throughput.tokens / max(throughput.seconds, 1e-9), 1),
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
