"""The README is true: its commands compose, its Python runs, its table and its tour match the repository."""

import re
import shlex

import pytest

from lightning_dpo.losses.table import table
from tests.config.test_check import check
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, flags=re.DOTALL)
COMMANDS = [
    line
    for kind, block in BLOCKS
    if kind == "bash"
    for line in block.replace("\\\n", " ").splitlines()
    if "lightning_dpo.train" in line and "--help" not in line
]


def test_it_is_short():
    assert len(README.splitlines()) < 250


@pytest.mark.parametrize("command", COMMANDS)
def test_every_train_command_is_accepted(command):
    overrides = shlex.split(command.split("lightning_dpo.train")[1], comments=True)
    sweeps = [o.split(",")[0] if o.startswith(("beta=", "loss=", "seed=")) else o for o in overrides if o != "-m"]
    check(*sweeps)


def test_the_two_set_up_commands_stand_there():
    assert "pip install -e '.[dev]' && python -m lightning_dpo.train\n" in README
    assert "pip install -e '.[dev]' && pytest\n" in README


def test_the_python_example_runs(tmp_path, monkeypatch):
    (code,) = [block for kind, block in BLOCKS if kind == "python"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})


def test_the_table_of_losses_is_the_one_of_the_code():
    assert table(ROOT / "conf" / "loss") in README


def test_every_path_of_the_guided_tour_exists():
    tour = README.split("## Guided tour")[1].split("\n## ")[0]
    paths = re.findall(r"`((?:lightning_dpo|conf|tests)/[\w/.]*)`", tour)
    assert len(paths) >= 8 and all((ROOT / path).exists() for path in paths)
