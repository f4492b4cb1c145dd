"""A job of a sweep and its folder: `job.json` records its state, `output.log` what it printed.

A finished job with the same configuration is skipped; an unfinished one resumes. If the configuration has changed, the
old files are moved to `<sweep>.replaced/` and the job starts again. If only a default has changed, the job is refused.
"""

import gc
import logging
import os
import shutil
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from lightning_dpo.errors import ConfigError
from lightning_dpo.files import write_json
from lightning_dpo.run import identity
from lightning_dpo.run.records import JOB, LOCK, REFUSED, locked, read_record
from lightning_dpo.safety import secrets

log = logging.getLogger(__name__)

OUTPUT = "output.log"
STAYING = {JOB, LOCK, OUTPUT, "train.log"}
"""Files that stay when those of an old run are moved."""


class JobFailed(RuntimeError):
    """A job failed; its folder holds the details. Launchers send it between processes, so it carries a message only."""


def run_in_folder(
    folder: Path, cfg: DictConfig, body: Callable[[], float | None], invocation: str, overrides: list[str]
) -> float | None:
    """Run a job in its folder, or skip it if it is done; returns its objective.

    Args:
        body: the run; its output goes to `output.log` in the folder.
        invocation: identifies this start of the sweep, in which two jobs must not share a folder.
        overrides: the overrides in which the jobs differ.

    Errors: JobFailed for any Exception; SystemExit and KeyboardInterrupt pass.
    """
    folder.mkdir(parents=True, exist_ok=True)
    began = datetime.now(UTC).isoformat(timespec="seconds")
    record: dict[str, Any] = {"invocation": invocation, "overrides": overrides, "began": began}
    running = f"process {read_record(folder / JOB).get('pid')} is running this job; wait for it, or stop it"
    try:
        with locked(folder / LOCK, running):
            if read_record(folder / REFUSED).get("invocation") != invocation:
                (folder / REFUSED).unlink(missing_ok=True)
            previous, config = read_record(folder / JOB), identity.fingerprint(cfg)
            gpus = os.environ.get("CUDA_VISIBLE_DEVICES")
            record |= {"config": config, "pid": os.getpid(), "host": socket.gethostname(), "gpus": gpus}
            changes = identity.differences(previous.get("config", config), config, "sweep")
            if not changes and previous.get("state") == "done" and (folder / "summary.json").exists():
                write_json(folder / JOB, previous | {"invocation": invocation, "skipped": True})
                return previous["objective"]["value"]
            if changes and previous.get("invocation") == invocation:
                raise ConfigError("another job of this sweep has the same folder; type hydra.sweep.subdir=...")
            _refuse_changed_defaults(previous.get("config", config), config)
            if changes:
                _move_away(folder, previous, changes)
            return _run(folder, cfg, body, record)
    except (ConfigError, OSError) as error:  # not in job.json, which may belong to another process
        write_json(folder / REFUSED, {**record, "state": "failed", "error": _one_line(error), "log": None})
        raise JobFailed(_one_line(error)) from None


def _refuse_changed_defaults(previous: dict[str, Any], config: dict[str, Any]) -> None:
    """Errors: ConfigError if a default has changed: the same command must not train finished jobs again."""
    hints = [hint for key in config if (hint := identity.changed_default(key, previous, config))]
    if hints:
        raise ConfigError(f"{hints[0]}, or type another sweep_name=...")


def _run(folder: Path, cfg: DictConfig, body: Callable[[], float | None], record: dict) -> float | None:
    began = time.monotonic()

    def write(state: str, **more: Any) -> None:
        seconds = round(time.monotonic() - began, 3)
        write_json(folder / JOB, {"state": state, **record, **more, "seconds": seconds, "log": str(folder / OUTPUT)})

    write("running")
    try:
        with printed_to(folder / OUTPUT), isolated():
            try:
                value = body()
            except Exception:
                traceback.print_exc()
                log.info("the run failed", exc_info=True)
                raise
    except Exception as error:
        write("failed", error=_one_line(error))
        raise JobFailed(_one_line(error)) from None
    except BaseException:
        write("stopped")
        raise
    write("done", objective={"name": cfg.objective, "value": value})
    return value


def _move_away(folder: Path, previous: dict[str, Any], changes: list[str]) -> None:
    """Keep the files of a run with another configuration, outside the folder that the sweep's report reads."""
    target = folder.parent.with_name(f"{folder.parent.name}.replaced") / f"{folder.name}-{time.time_ns()}"
    target.mkdir(parents=True)
    shutil.copy2(folder / JOB, target)
    for path in [path for path in folder.iterdir() if path.name not in STAYING]:
        shutil.move(path, target)
    listed = "; ".join(changes)
    log.warning("%s: the configuration has changed (%s); its previous files are now in %s", folder.name, listed, target)


@contextmanager
def printed_to(path: Path) -> Iterator[None]:
    """Append the output of this process and its children to a file."""
    append = partial(open, path, "a", buffering=1, encoding="utf-8")
    with append() as out, append() as err:  # two files: W&B wraps both streams, and would capture one file twice
        sys.stdout.flush()
        sys.stderr.flush()
        saved = {number: os.dup(number) for number in (1, 2)}
        try:
            for number, file in ((1, out), (2, err)):
                os.dup2(file.fileno(), number)
            with redirect_stdout(secrets.Stream(out)), redirect_stderr(secrets.Stream(err)):  # type: ignore[type-var]
                yield
        finally:
            for number, original in saved.items():
                os.dup2(original, number)
                os.close(original)
            secrets.clean(path)


@contextmanager
def isolated() -> Iterator[None]:
    """Undo what a job changes in its process, and free its memory, before the next one."""
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in set(os.environ) - set(before):
            del os.environ[name]
        os.environ.update(before)
        if torch := sys.modules.get("torch"):
            torch.use_deterministic_algorithms(False)
            torch.backends.cudnn.benchmark = False
            torch.set_float32_matmul_precision("highest")
            gc.collect()
            torch.cuda.empty_cache()


def _one_line(error: BaseException) -> str:
    return secrets.redact(f"{type(error).__name__}: {' '.join(str(error).split())}")
