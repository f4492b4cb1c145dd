"""The command line of a sweep: launchers, the keys that vary, and the number of jobs."""

import pytest
from hydra import compose, initialize_config_dir

from lightning_dpo.sweep import overrides
from tests.conftest import ROOT


def composed(*overrides: str):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("train", list(overrides), return_hydra_config=True)


@pytest.mark.parametrize(
    ("launcher", "target"),
    [
        ("local", "hydra._internal.core_plugins.basic_launcher.BasicLauncher"),
        ("joblib", "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher"),
        ("submitit_local", "hydra_plugins.hydra_submitit_launcher.submitit_launcher.LocalLauncher"),
        ("submitit_slurm", "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher"),
    ],
)
def test_one_key_selects_a_launcher(launcher, target):
    assert composed(f"launcher={launcher}").hydra.launcher._target_ == target


def test_the_command_line_changes_a_part_of_the_grid_of_an_experiment():
    cfg = composed("experiment=beta_sweep")
    found = overrides.parsed(cfg)
    assert overrides.varied(found) == {"loss", "beta", "seed"} and overrides.grid_size(found, cfg) == 2 * 4 * 3
    assert cfg.hydra.mode.name == "MULTIRUN" and cfg.hydra.sweep.dir == "outputs/sweeps/beta_sweep"

    cfg.hydra.overrides.task += ["seed=0,1", "loss=ipo", "optimizer.lr=1e-3"]
    found = overrides.parsed(cfg)
    assert overrides.varied(found) == {"beta", "seed"} and overrides.grid_size(found, cfg) == 4 * 2


def test_the_size_of_a_search_or_a_glob_is_unknown():
    for cfg, typed in ((composed(), "loss=glob(*)"), (composed(), "beta=interval(0.01,1)")):
        cfg.hydra.overrides.task.append(typed)
        if typed.startswith("beta"):
            cfg.hydra.runtime.choices["hydra/sweeper"] = "optuna"
        assert overrides.grid_size(overrides.parsed(cfg), cfg) is None
        assert overrides.varied(overrides.parsed(cfg)) == {typed.partition("=")[0]}
