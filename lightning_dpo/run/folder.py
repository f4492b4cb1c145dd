"""The folder of a run: what it holds, and whether a run resumes in it."""

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

from lightning_dpo.console import say
from lightning_dpo.errors import ConfigError
from lightning_dpo.files import check_writable, whole_folder, write_json
from lightning_dpo.loggers.metrics_csv import MetricsCSV
from lightning_dpo.models.export import export
from lightning_dpo.module import DPOModule
from lightning_dpo.run import checkpoint
from lightning_dpo.run.identity import differences, may_change
from lightning_dpo.run.records import RUN_LOCK, locked
from lightning_dpo.run.throughput import Throughput
from lightning_dpo.signatures import leaves

log = logging.getLogger(__name__)

PACKAGES = ("lightning-dpo", "torch", "lightning", "transformers", "hydra-core", "wandb")
WRITTEN = ("metrics.csv", "samples.jsonl", "nonfinite.jsonl", "summary.json")
"""Files whose presence means that a run has started in the folder."""


class RunFolder:
    """`output_dir`: config.yaml at the start; checkpoints/, model/ and, last, summary.json at the end.

    Args:
        config: the configuration as {dotted key: value}; a resumed run must have the same.

    Errors: ConfigError if the folder cannot be written.
    """

    def __init__(self, cfg: DictConfig, config: Mapping[str, Any]):
        self.path = Path(cfg.output_dir).absolute()
        self.cfg = cfg
        self.config = {k: v for k, v in config.items() if not may_change(k, "resume")}
        check_writable(self.path, f"output_dir={cfg.output_dir}", RUN_LOCK)

    def locked(self) -> AbstractContextManager[None]:
        """Errors: ConfigError if another process runs here."""
        key = f"output_dir={self.cfg.output_dir}"
        return locked(
            self.path / RUN_LOCK, f"{key}: another process is running in this folder; type another output_dir"
        )

    def finished(self) -> dict[str, Any] | None:
        """The summary of the run that finished here; None if none did, or if `resume_override` makes this another run.

        Errors: ConfigError if the folder holds another run, or any run with `resume=never`.
        """
        path = self.path / "summary.json"
        if self.cfg.resume == "never":
            self._refuse_used()
        if not path.exists() or self._starts_new_branch():
            return None
        summary = json.loads(path.read_text(encoding="utf-8"))
        return None if self._differs(summary["run"]) else summary

    def begin(self, data: Mapping[str, list[str]]) -> Path | None:
        """Write config.yaml; returns the checkpoint to resume from, None for a run from the start.

        Args:
            data: content hashes of each data set; a resumed run must have the same.

        Errors: ConfigError if the checkpoint is of another run, or if all are damaged.
        """
        self.metadata = {"config": self.config, "data": dict(data)}
        start = self._start()
        if start is not None:
            self._compare(start, data)
            (self.path / "summary.json").unlink(missing_ok=True)  # the run is no longer finished
        if start is None or self._is_elsewhere(start):
            if (self.path / "metrics.csv").exists():
                log.warning("%s: the previous run here saved no checkpoint; starting again", self.path)
            for name in WRITTEN:
                (self.path / name).unlink(missing_ok=True)
        (self.path / "config.yaml").write_text(OmegaConf.to_yaml(self.cfg, resolve=True), encoding="utf-8")
        return start

    def _start(self) -> Path | None:
        """The checkpoint to resume from."""
        if self.cfg.resume in ("auto", "never"):
            return checkpoint.newest(self.path / "checkpoints")
        start = Path(self.cfg.resume)
        if self._starts_new_branch():
            self._refuse_used()
        elif self._is_elsewhere(start) and (own := checkpoint.newest(self.path / "checkpoints")):
            return own
        if not start.is_file():
            raise ConfigError(f"resume={start}: no such file; allowed: auto, never, the path of a checkpoint")
        return start

    def _is_elsewhere(self, path: Path) -> bool:
        return path.absolute().parent != self.path / "checkpoints"

    def _starts_new_branch(self) -> bool:
        """Whether `resume` names a checkpoint of another folder, and no run here has started from it yet."""
        if self.cfg.resume in ("auto", "never") or not self._is_elsewhere(Path(self.cfg.resume)):
            return False
        path = self.path / "config.yaml"
        return not path.exists() or OmegaConf.load(path).get("resume") != self.cfg.resume  # type: ignore[union-attr]

    def _refuse_used(self) -> None:
        """Errors: ConfigError if a run has started in this folder."""
        if used := [name for name in WRITTEN if (self.path / name).exists()]:
            found = f"{self.path} already holds a run ({', '.join(used)})"
            raise ConfigError(f"resume={self.cfg.resume}: {found}; type another output_dir=...")

    def _compare(self, path: Path, data: Mapping[str, list[str]]) -> None:
        """Errors: ConfigError if the checkpoint is of another run and `resume_override` is false."""
        try:
            metadata = checkpoint.read(path, lazily=True).get("run")
        except checkpoint.Damaged as error:
            raise ConfigError(f"resume={path}: {error}") from None
        if metadata is None:
            raise ConfigError(f"{path}: no run of lightning_dpo has written this checkpoint")
        self._differs(metadata, data)

    def _differs(self, metadata: Mapping[str, Any], data: Mapping[str, list[str]] | None = None) -> bool:
        """Whether the metadata of a checkpoint or summary are of another run, and `resume_override` allows that."""
        changed = differences(metadata["config"], self.config)
        if data is not None:
            saved = metadata["data"]
            changed += [f"the pairs of {name}" for name in {**saved, **data} if saved.get(name) != data.get(name)]
        if changed and not self.cfg.resume_override:
            found = f"{self.path} holds another run ({'; '.join(changed)})"
            raise ConfigError(f"{found}; type another output_dir=..., or resume_override=true to resume all the same")
        if changed:
            log.warning("resuming although these settings changed: %s", "; ".join(changed))
        return bool(changed)

    def export(self, trainer: L.Trainer, module: DPOModule, data: Any, choices: dict, best: Any) -> None:
        """checkpoints/last.ckpt for Lightning, and for transformers model/ with the last weights or those of `best`."""
        trainer.save_checkpoint(self.path / "checkpoints" / checkpoint.LAST)
        if best is not None:
            best.load_into(module)
        loss: Any = OmegaConf.to_container(self.cfg.loss, resolve=True)
        card = MODEL_CARD.format(
            base=self.cfg.model.path,
            loss=choices["loss"],
            parameters=json.dumps({k: v for k, v in loss.items() if not k.startswith("_")}),
            data=self.cfg.data.train,
            steps=trainer.global_step if best is None else f"{best.step}, the best by {best.name}",
            dtype="{dtype}",
            version=version("lightning-dpo"),
        )
        with whole_folder(self.path / "model") as folder:
            stops = export(module.policy, data.tokenizer, folder, card, self.cfg.export.dtype, data.stop_ids)
        if stops:
            say(f"model      {stops}")

    def check_measured(self, metrics: MetricsCSV) -> None:
        """After the first validation. Errors: ConfigError if it does not measure a metric that a setting names."""
        plain: Any = OmegaConf.to_container(self.cfg, resolve=True)
        named = {key: name for key, name in leaves(plain).items() if key == "objective" or key.endswith(".monitor")}
        known = sorted(n for n in metrics.last if n.startswith("val/"))
        for key, name in named.items():
            if str(name).startswith("val/") and name not in known:
                raise ConfigError(f"{key}={name}: this run does not measure it; allowed: {', '.join(known)}")

    def summarise(
        self,
        module: DPOModule,
        report: dict[str, Any],
        metrics: MetricsCSV,
        throughput: Throughput,
        best: Any,
        seconds: float,
    ) -> float | None:
        """Write summary.json, which marks the run as finished; returns the objective, None if it was not logged. With
        `best` it is that of the exported weights."""
        exported = None if best is None else {"name": best.name, "step": best.step, "metrics": best.metrics}
        objective = (metrics.last if best is None else {**metrics.last, **best.metrics}).get(self.cfg.objective)
        summary: dict[str, Any] = {
            "objective": {"name": self.cfg.objective, "value": objective},
            "run": self.metadata,
            "metrics": metrics.last,
            **({} if exported is None else {"best": exported}),
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
- weights: {dtype}
"""
