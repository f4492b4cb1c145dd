"""Other Hydra applications of a process compose untouched, and this one's configurations are always checked."""

import subprocess
import sys

import pytest
from hydra import compose, initialize_config_dir

from lightning_dpo.errors import ConfigError
from tests.conftest import ROOT

OTHER = """
beta: 0.5
name: ${slug:a b}
hydra:
  run:
    dir: elsewhere/${beta}
  job:
    name: my app
    env_set: {OTHER: "1"}
  job_logging:
    handlers: {mine: {class: logging.handlers.RotatingFileHandler, filename: mine.log}}
"""


@pytest.fixture
def other(tmp_path):
    """The configuration of another application, which this one would refuse."""
    (tmp_path / "app.yaml").write_text(OTHER)
    return tmp_path


def test_another_application_composes_beside_this_one(other):
    with initialize_config_dir(str(other), version_base="1.3"):
        assert compose("app", ["beta=1"], return_hydra_config=True).hydra.run.dir == "elsewhere/1"
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        assert compose("train", ["loss=ipo"]).loss._target_ == "lightning_dpo.losses.ipo"
        with pytest.raises(ConfigError, match="hydra.run.dir=elsewhere: type output_dir"):
            compose("train", ["hydra.run.dir=elsewhere"])


def test_importing_the_command_replaces_no_resolver(other):
    code = f"""
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
OmegaConf.register_new_resolver("slug", lambda text: "theirs")
import lightning_dpo.train
with initialize_config_dir({str(other)!r}, version_base="1.3"):
    assert compose("app").name == "theirs"
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_command_checks_a_configuration_from_any_folder(other, command):
    code, output = command("--config-path", str(other), "--config-name", "app")
    assert code == 2 and "hydra.run.dir=elsewhere/${beta}: type output_dir=..." in output
