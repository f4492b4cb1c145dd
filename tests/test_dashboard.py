"""The W&B workspace: its JSON is pinned, and runs log every metric in it."""

import csv
import json
import sys

from omegaconf import OmegaConf

from lightning_dpo import dashboard
from tests.conftest import ROOT

GOLDEN = ROOT / "tests" / "golden" / "dashboard.json"


def test_a_dry_run_prints_the_pinned_json(capsys, monkeypatch):
    """After an intended change: python -m lightning_dpo.dashboard --dry-run > tests/golden/dashboard.json"""
    monkeypatch.setattr(sys, "argv", ["dashboard", "--dry-run"])
    dashboard.main()
    assert json.loads(capsys.readouterr().out) == json.loads(GOLDEN.read_text())


def test_it_has_the_entity_project_and_name_of_its_arguments():
    sent = json.loads(dashboard.as_json(dashboard.workspace("team", "mine", "name")))
    assert (sent["entity"], sent["project"], sent["displayName"]) == ("team", "mine", "name")


def test_runs_log_every_metric_and_setting_that_it_shows(command, short, tmp_path):
    assert command(*short, "trainer.max_steps=1", "logger=csv")[0] == 0
    with open(tmp_path / "run" / "metrics.csv", newline="") as file:
        logged = set(next(csv.reader(file)))
    shown = {metric for plots in dashboard.CURVES.values() for metrics in plots.values() for metric in metrics}
    assert shown | set(dashboard.FRONTIER) <= logged
    config = OmegaConf.load(tmp_path / "run" / "config.yaml")
    assert all(OmegaConf.select(config, key) is not None for key in dashboard.COORDINATES.values())
