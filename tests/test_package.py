"""What a user of the package meets first: its public names, its version, its commands."""

import subprocess
import sys
from importlib.metadata import version

import pytest

import lightning_dpo


def test_completion_shows_the_public_names_and_each_is_there():
    assert set(lightning_dpo.__all__) <= set(dir(lightning_dpo))
    assert all(getattr(lightning_dpo, name) for name in lightning_dpo.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        lightning_dpo.nothing  # noqa: B018


def test_the_version_is_the_one_that_is_installed():
    assert lightning_dpo.__version__ == version("lightning-dpo")


def lightning_dpo_command(*arguments: str, cwd=None) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "lightning_dpo", *arguments], cwd=cwd, capture_output=True, text=True)


@pytest.mark.parametrize("command", ["train", "report", "benchmark", "dashboard"])
def test_every_command_has_help(command):
    done = lightning_dpo_command(command, "--help")
    assert done.returncode == 0 and done.stderr == "" and command in done.stdout


def test_an_unknown_command_is_refused_with_the_known_ones():
    done = lightning_dpo_command("trian")
    assert done.returncode == 2 and "unknown command 'trian'" in done.stderr and "train" in done.stdout


def test_train_finds_modules_of_the_current_folder(tmp_path):
    (tmp_path / "own_scorer.py").write_text("def score(texts): return {'reward': [0.0] * len(texts)}\n")
    code = "import sys; sys.argv = ['lightning-dpo', 'train', 'samples.scorer=own_scorer.score', 'beta=wrong']\n"
    code += "sys.path.remove(''); from lightning_dpo.__main__ import main; main()"
    environment = {"LIGHTNING_DPO_ALLOW": "own_scorer", "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert "beta=wrong: found the text" in done.stderr, "the scorer was found, and the check went on to beta"


def test_the_help_of_hydra_is_printed():
    done = lightning_dpo_command("train", "--hydra-help")
    assert done.returncode == 0 and "Hydra" in done.stdout


@pytest.mark.parametrize("flag", ["--help", "--info all", "--cfg job"])
def test_a_pipe_that_closes_early_is_no_traceback(flag):
    pipe = f"{sys.executable} -m lightning_dpo.train {flag} | head -n 1"
    done = subprocess.run(["bash", "-c", pipe], capture_output=True, text=True)
    assert done.stdout and done.stderr == ""
