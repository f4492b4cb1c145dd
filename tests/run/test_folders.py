"""Folders that cannot be written: one line with the key, before anything trains."""

import errno
import os
from pathlib import Path

import pytest

from lightning_dpo.cache import Cache
from lightning_dpo.errors import ConfigError, DataError
from lightning_dpo.files import check_writable


def errors(output: str) -> list[str]:
    assert "Traceback" not in output and "Error executing job" not in output, output
    return [line for line in output.splitlines() if line.startswith("error: ")]


@pytest.mark.parametrize("key", ["data.cache_dir", "reference.cache_dir", "output_dir"])
def test_a_file_in_place_of_a_folder_is_one_line(command, short, tmp_path, key):
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "inside"):
        code, output = command(*short, "logger=csv", "samples.n=0", f"{key}={place}")
        (line,) = errors(output)
        assert code == 2 and line.startswith(f"error: {key}={place}: ") and "name a folder that can be written" in line


def test_the_folder_of_a_sweep_too(command, tmp_path):
    (tmp_path / "file").touch()
    code, output = command("-m", "seed=1,2", f"hydra.sweep.dir={tmp_path}/file/s")
    assert code == 2 and errors(output)[0].startswith(f"error: hydra.sweep.dir={tmp_path}/file/s: Not a directory")


def test_a_log_file_that_cannot_be_opened_is_one_line(command, tmp_path):
    (tmp_path / "run" / "train.log").mkdir(parents=True)
    code, output = command(f"output_dir={tmp_path}/run")
    assert code == 2 and errors(output) == [
        f"error: output_dir: Is a directory ({tmp_path}/run/train.log); type another folder"
    ]


def test_wandb_without_a_folder_for_its_tables_is_one_line(command, short, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "file" / "data"))
    code, output = command(*short)
    (line,) = errors(output)
    assert code == 2 and f"WANDB_DATA_DIR={tmp_path}/file/data of logger=wandb: Not a directory" in line


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
@pytest.mark.parametrize("method", ["mkdir", "touch"])
def test_a_read_only_folder_is_named_with_its_key(monkeypatch, tmp_path, number, method):
    def refuse(path, *args, **kwargs):
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(Path, method, refuse)
    with pytest.raises(ConfigError, match=f"^a.key=x: {os.strerror(number)} ") as error:
        check_writable(tmp_path / "x", "a.key=x")
    assert f"({tmp_path}/x); " in str(error.value)


def test_a_folder_that_can_be_written_is_left_empty(tmp_path):
    check_writable(tmp_path / "a" / "b", "a.key=x")
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_a_cache_entry_that_another_user_has_locked_for_good_is_one_line(tmp_path):
    cache, key = Cache(tmp_path, "a.cache_dir"), {"a": 1}
    cache.path(key).with_suffix(".lock").mkdir()  # stands for a lock file without permission
    with pytest.raises(DataError, match=f"^a.cache_dir={tmp_path}: .*; name a folder that can be written"):
        with cache.lock(key):
            pytest.fail("the lock was taken")
