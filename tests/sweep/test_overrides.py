"""What a sweep's command says: launchers, what varies, and how many jobs that makes."""

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
def test_a_launcher_is_one_key(launcher, target):
    assert composed(f"launcher={launcher}").hydra.launcher._target_ == target


def test_an_experiment_is_a_grid_of_which_the_command_line_changes_a_part():
    cfg = composed("experiment=beta_sweep")
    found = overrides.parsed(cfg)
    assert overrides.varied(found) == {"loss", "beta", "seed"} and overrides.jobs_of(found, cfg) == 2 * 4 * 3
    assert cfg.hydra.mode.name == "MULTIRUN" and cfg.hydra.sweep.dir == "outputs/sweeps/beta_sweep"

    cfg.hydra.overrides.task += ["seed=0,1", "loss=ipo", "optimizer.lr=1e-3"]
    found = overrides.parsed(cfg)
    assert overrides.varied(found) == {"beta", "seed"} and overrides.jobs_of(found, cfg) == 4 * 2


def test_the_size_of_a_search_or_of_a_glob_is_not_known_before():
    for cfg, typed in ((composed(), "loss=glob(*)"), (composed(), "beta=interval(0.01,1)")):
        cfg.hydra.overrides.task.append(typed)
        if typed.startswith("beta"):
            cfg.hydra.runtime.choices["hydra/sweeper"] = "optuna"
        assert overrides.jobs_of(overrides.parsed(cfg), cfg) is None
        assert overrides.varied(overrides.parsed(cfg)) == {typed.partition("=")[0]}
