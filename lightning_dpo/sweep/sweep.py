"""A sweep is a folder of jobs: `outputs/sweeps/<sweep_name>/<overrides>/`. Hydra makes the jobs and launches them.

With a fixed name, the same command continues the sweep (see job.py). `sweep.json` holds the command, and `.sweep.lock`
keeps a second sweep out. At the end the runs are compared and the failed jobs listed.
"""

import json
import multiprocessing
import os
import signal
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, open_dict, read_write

from lightning_dpo.config.request import Request
from lightning_dpo.config.resolvers import visible_gpus
from lightning_dpo.errors import ConfigError
from lightning_dpo.files import check_writable, write_json
from lightning_dpo.run.records import locked, read_record
from lightning_dpo.run.signals import NUMBERS
from lightning_dpo.sweep import overrides, workers
from lightning_dpo.sweep.job import run_in_folder
from lightning_dpo.sweep.progress import Overview, failures, running


@dataclass
class Sweep:
    """The sweep that this process has launched."""

    folder: Path
    command: str
    invocation: str
    overview: Overview
    cleanup: ExitStack
    stopping: bool = False


_current: list[Sweep] = []
"""Empty or one. Global, because Hydra makes the callback below and gives nobody access to it."""


class _Refused(BaseException):
    """Carries an Exception past Hydra, which makes a warning of it in a callback, and prints a line more in a run."""


class Start(Callback):
    """Starts the sweep before its first job, and checks the folder of a single run before Hydra makes it
    (`hydra.callbacks` in conf/train.yaml)."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        with carried(Exception):
            check_writable(Path(config.output_dir).absolute(), f"output_dir={config.output_dir}")

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        with carried(Exception):
            _current.append(_start(config))


@contextmanager
def carried(*kinds: type[Exception]) -> Iterator[None]:
    """Carry an error past Hydra to `ending`."""
    try:
        yield
    except kinds as error:
        raise _Refused(error) from None


def _start(config: DictConfig) -> Sweep:
    launcher = str(config.hydra.runtime.choices["hydra/launcher"])
    overrides.refuse_in_sweep(list(config.hydra.overrides.task), launcher)
    command = overrides.typed_line()
    if config.sweep_name is None:
        name = time.strftime("%Y-%m-%d_%H-%M-%S")
        command = overrides.typed_line(f"sweep_name={name}")
        with open_dict(config), read_write(config.hydra):
            config.sweep_name = name
            config.hydra.overrides.task.append(f"sweep_name={name}")
    folder = Path(config.hydra.sweep.dir)
    check_writable(folder, f"hydra.sweep.dir={folder}", ".sweep.lock")
    cleanup, message = ExitStack(), f"{folder}: another sweep is running in this folder; type sweep_name=..."
    cleanup.enter_context(locked(folder / ".sweep.lock", message))
    parsed = overrides.parsed(config)
    # Keys that varied before stay in the names of folders, so that part of a grid finds the folders of the whole grid.
    varied = {*read_record(folder / "sweep.json").get("varied", ()), *overrides.varied(parsed)}
    fixed = ",".join(f"'{o.key_or_group}'" for o in parsed if o.key_or_group not in varied)
    with read_write(config.hydra):
        config.hydra.overrides.hydra.append(f"hydra.job.config.override_dirname.exclude_keys=[{fixed}]")
    total, invocation = overrides.grid_size(parsed, config), uuid.uuid4().hex
    gpus = visible_gpus() if launcher == "joblib" else []
    record = {"command": command, "invocation": invocation, "jobs": total, "launcher": launcher, "gpus": gpus}
    write_json(folder / "sweep.json", record | {"varied": sorted(varied)})
    print(f"sweep      {folder}: {total or 'some'} jobs, launcher {config.hydra.runtime.choices.launcher}", flush=True)
    overview = Overview(folder, invocation, total)
    overview.start()
    for number in NUMBERS:
        cleanup.callback(signal.signal, number, signal.signal(number, _stop))
    return Sweep(folder, command, invocation, overview, cleanup)


def job(request: Request, body: Callable[[Request], float | None]) -> float | None:
    """One job, in the process that the launcher has given it."""
    hydra, cfg = HydraConfig.get(), request.cfg
    folder = Path(hydra.runtime.output_dir)
    record = json.loads((folder.parent / "sweep.json").read_text(encoding="utf-8"))
    if record["gpus"]:
        os.environ["CUDA_VISIBLE_DEVICES"] = workers.gpu_of(multiprocessing.current_process().name, record["gpus"])
    in_worker = record["launcher"] == "joblib" and not _current
    fixed = hydra.job.config.override_dirname.exclude_keys
    varied = [o for o in hydra.overrides.task if o.partition("=")[0].lstrip("+~") not in fixed]
    with open_dict(cfg):
        cfg.output_dir, cfg.run_name = str(folder), folder.name
    with workers.handling_signals() if in_worker else nullcontext():
        return run_in_folder(folder, cfg, lambda: body(request), record["invocation"], varied)


def _stop(number: int, frame: Any) -> None:
    """In the launching process: end the job that runs here, and save those of workers; a second signal kills them."""
    sweep = _current[0]
    first, sweep.stopping = not sweep.stopping, True
    workers.stop(lambda: running(sweep.folder, sweep.invocation), wait=first)
    sys.exit(128 + number)


@contextmanager
def ending() -> Iterator[None]:
    """Around a command that may be a sweep: report and clean up, however it ends. Errors: SystemExit with 1 if a job
    failed, with 128 + the signal's number if a signal stopped the sweep."""
    try:
        yield
    except _Refused as refused:
        raise refused.args[0] from None
    except BaseException as error:
        stopped = _signal_code(error)
        if not _current or not _end(_current[0], stopped):
            raise
        sys.exit(stopped or 1)
    else:
        if _current and _end(_current[0]):
            sys.exit(1)
    finally:
        for sweep in _current:
            sweep.cleanup.close()
        _current.clear()


def _signal_code(error: BaseException) -> int | None:
    """The exit code if a signal has ended the run; None for any other error."""
    if isinstance(error, KeyboardInterrupt):
        return 128 + signal.SIGINT
    codes = {128 + number for number in NUMBERS}
    return error.code if isinstance(error, SystemExit) and error.code in codes else None  # type: ignore[return-value]


def _end(sweep: Sweep, stopped: int | None = None) -> bool:
    """Compare the runs: a table, printed and in summary.csv, and report.html. List the failed jobs, and print how to
    continue. Returns whether something is left to do."""
    from lightning_dpo.report import page, rows, terminal

    sweep.overview.close()
    if any(rows.folders(sweep.folder)):
        terminal.show(sweep.folder)
        try:
            print(f"report     {page.write(sweep.folder)}", flush=True)
        except (ConfigError, OSError) as error:  # the failed jobs must still be listed
            print(f"no report: {error}", flush=True)
    failed = failures(sweep.folder, sweep.invocation)
    if failed:
        print(f"\n{len(failed)} of {sweep.overview.total or 'the'} jobs failed:\n" + "\n".join(failed))
    if failed or stopped:
        what = "stopped" if stopped else "the same command runs them again"
        print(f"\n{what}; continue with: {sweep.command}", flush=True)
    return bool(failed or stopped)
