"""Run folders in the format of real runs, with numbers that the tests choose."""

import csv
import json
from pathlib import Path
from typing import Any

PROMPTS = ("review of a german drama :", "review of a polish comedy :")


def run(
    folder: Path,
    loss: str = "dpo",
    beta: float | None = 0.1,
    seed: int = 0,
    kl: float | None = 2.0,
    reward: float | None = 1.0,
    chosen: float = -1.5,
    finished: bool = True,
    texts: tuple[str, ...] = ("good plot", "clever cast"),
    more: str = "",
    job: dict[str, Any] | None = None,
) -> Path:
    """A run of two steps, validated before and after; at the start log π(chosen) is -30 and log π(rejected) -35."""
    folder.mkdir(parents=True, exist_ok=True)
    top = "" if beta is None else f"beta: {beta}\n"
    inner = "" if beta is None else f"  beta: {beta}\n"
    (folder / "config.yaml").write_text(
        f"seed: {seed}\nrun_name: {folder.name}\noutput_dir: {folder}\n{top}"
        f"loss:\n  _target_: lightning_dpo.losses.{loss}\n{inner}data:\n  train: pairs.jsonl\n  seed: {seed}\n{more}",
        encoding="utf-8",
    )
    before = {"val/rewards/accuracies": 0.0, "val/logps/chosen": -30.0, "val/logps/rejected": -35.0}
    after = {"val/rewards/accuracies": 0.75, "val/logps/chosen": -30 + chosen, "val/logps/rejected": -39.0}
    for name, first, last in (("val/kl", 0.0, kl), ("val/samples/reward", -0.5, reward)):
        if last is not None:
            before[name], after[name] = first, last
    before["val/samples/length"], after["val/samples/length"] = 15.0, 17.0
    rows = [
        {"step": 0, **before},
        {"step": 1, "train/loss": 0.69},
        {"step": 2, "train/loss": 0.6},
        {"step": 2, **after},
    ]
    with open(folder / "metrics.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["step", "train/loss", *after])
        writer.writeheader()
        writer.writerows(rows)
    with open(folder / "samples.jsonl", "w", encoding="utf-8") as file:
        for step in (0, 2):
            for prompt, text in zip(PROMPTS, texts, strict=True):
                row = {"step": step, "prompt": prompt, "text": f"{text} at step {step}", "tokens": 2}
                file.write(json.dumps(row | {"logp": -3.0, "ref_logp": -3.0, "reward": 1.0}) + "\n")
    if finished:
        summary = {
            "objective": {"name": "val/rewards/accuracies", "value": 0.75},
            "metrics": after,
            "metrics_at_start": before,
            "seconds": 3.5,
            "command": "train.py loss=dpo",
            "versions": {"python": "3.11.7", "torch": "2.13.0"},
        }
        (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    if job is not None:
        (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
    return folder


def sweep(folder: Path) -> Path:
    """dpo and ipo at two betas and two seeds, one job that failed at the start and one that was stopped midway."""
    for loss, gain in (("dpo", 1.0), ("ipo", 0.5)):
        for beta, kl in ((0.05, 6.0), (0.5, 2.0)):
            for seed in (0, 1):
                name = f"beta{beta}-loss{loss}-seed{seed}"
                done = {"state": "done", "overrides": [f"beta={beta}", f"loss={loss}", f"seed={seed}"], "began": "2026"}
                run(folder / name, loss, beta, seed, kl=kl + seed, reward=gain * kl / 2 + 0.2 * seed, job=done)
    broken = folder / "beta-1-lossdpo-seed0"
    broken.mkdir()
    config = {"beta": -1, "seed": 0, "loss._target_": "lightning_dpo.losses.dpo"}
    record = {"state": "failed", "error": "ConfigError: beta=-1: found -1", "overrides": ["beta=-1"], "config": config}
    (broken / "job.json").write_text(json.dumps(record))
    run(folder / "beta0.05-lossdpo-seed9", seed=9, beta=0.05, finished=False, job={"state": "stopped", "overrides": []})
    command = "python -m lightning_dpo.train -m beta=0.05,0.5 loss=dpo,ipo seed=0,1"
    (folder / "sweep.json").write_text(json.dumps({"command": command, "jobs": 10}))
    return folder
