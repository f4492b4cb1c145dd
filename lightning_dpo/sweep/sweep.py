"""A sweep is a folder of jobs: `outputs/sweeps/<sweep_name>/<overrides>/`. Hydra makes the jobs and launches them.

Typing the same command again continues a sweep that has a fixed name: see job.py. `sweep.json` says what
was typed; `.sweep.lock` keeps a second sweep out; at the end the runs are compared and the failed ones listed.
"""

import json
import multiprocessing
import os
import signal
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, open_dict, read_write

from lightning_dpo.config.request import Request
from lightning_dpo.config.resolvers import visible_gpus
from lightning_dpo.errors import ConfigError
from lightning_dpo.files import write_json
from lightning_dpo.run.records import read_record
from lightning_dpo.run.signals import NUMBERS
from lightning_dpo.sweep import overrides, workers
from lightning_dpo.sweep.job import run_in_folder
from lightning_dpo.sweep.progress import Overview, failures, running, stamp


@dataclass
class Sweep:
    """The sweep that this process launches."""

    folder: Path
    command: str
    invocation: str
    lock: BaseFileLock
    overview: Overview
    handlers: dict[signal.Signals, Any]
    stopping: bool = False


_current: list[Sweep] = []
"""Hydra makes the callback below itself and hands it to nobody."""


class _Refused(BaseException):
    """Carries an Exception out of a callback, which Hydra would turn into a warning."""


class Start(Callback):
    """Before the first job (`hydra.callbacks` in conf/train.yaml)."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        try:
            _current.append(_begin(config))
        except Exception as error:
            raise _Refused(error) from None


def _begin(config: DictConfig) -> Sweep:
    typed = list(config.hydra.overrides.task)
    launcher = str(config.hydra.runtime.choices["hydra/launcher"])
    overrides.refuse_in_sweep(typed, launcher)
    command = overrides.typed_line()
    if config.sweep_name is None:
        name = f"sweep_name={stamp()}"
        command = overrides.typed_line(name)
        with open_dict(config), read_write(config.hydra):
            config.sweep_name = name.partition("=")[2]
            config.hydra.overrides.task.append(name)
    folder = Path(config.hydra.sweep.dir)
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".sweep.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ConfigError(f"{folder}: another sweep is running in this folder; type sweep_name=...") from None
    parsed = overrides.parsed(config)
    # What varied before keeps its place in the names: part of a grid finds the folders of the whole.
    varied = {*read_record(folder / "sweep.json").get("varied", ()), *overrides.varied(parsed)}
    fixed = ",".join(f"'{o.key_or_group}'" for o in parsed if o.key_or_group not in varied)
    with read_write(config.hydra):
        config.hydra.overrides.hydra.append(f"hydra.job.config.override_dirname.exclude_keys=[{fixed}]")
    total, invocation = overrides.jobs_of(parsed, config), uuid.uuid4().hex
    gpus = visible_gpus() if launcher == "joblib" else []
    about = {"command": command, "invocation": invocation, "jobs": total, "launcher": launcher, "gpus": gpus}
    write_json(folder / "sweep.json", about | {"varied": sorted(varied)})
    print(f"sweep      {folder}: {total or 'some'} jobs, launcher {config.hydra.runtime.choices.launcher}", flush=True)
    overview = Overview(folder, invocation, total)
    overview.start()
    handlers = {number: signal.signal(number, _stop) for number in NUMBERS}
    return Sweep(folder, command, invocation, lock, overview, handlers)


def job(request: Request, body: Callable[[Request], float | None]) -> float | None:
    """One job, in whatever process its launcher has put it."""
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
    with workers.saved_when_stopped() if in_worker else nullcontext():
        return run_in_folder(folder, cfg, lambda: body(request), record["invocation"], varied)


def _stop(number: int, frame: Any) -> None:
    """In the process that launches: end the job that runs here, and let those of workers be saved; a second signal does
    not wait for them."""
    sweep = _current[0]
    first, sweep.stopping = not sweep.stopping, True
    workers.stop(lambda: running(sweep.folder, sweep.invocation), wait=first)
    sys.exit(128 + number)


@contextmanager
def ending() -> Iterator[None]:
    """Around a command that may be a sweep: what is said and left at its end, whichever end that is.

    Errors: SystemExit with 1 where a job failed, with 128 + the signal's number where one stopped the sweep.
    """
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
        while _current:
            _close(_current.pop())


def _signal_code(error: BaseException) -> int | None:
    """The exit code of a run that a signal has ended; None for any other end."""
    if isinstance(error, KeyboardInterrupt):
        return 128 + signal.SIGINT
    codes = {128 + number for number in NUMBERS}
    return error.code if isinstance(error, SystemExit) and error.code in codes else None  # type: ignore[return-value]


def _end(sweep: Sweep, stopped: int | None = None) -> bool:
    """Report; returns whether something is left to do, which is then said."""
    sweep.overview.close()
    write_report(sweep.folder)
    told = failures(sweep.folder, sweep.invocation)
    if told:
        print(f"\n{len(told)} of {sweep.overview.total or 'the'} jobs failed:\n" + "\n".join(told))
    if told or stopped:
        what = "stopped" if stopped else "the same command runs them again"
        print(f"\n{what}; continue with: {sweep.command}", flush=True)
    return bool(told or stopped)


def write_report(folder: Path) -> None:
    """What a sweep leaves about its runs: a table, here and in summary.csv, and a page."""
    from lightning_dpo.report import page, rows, terminal

    if not any(rows.folders(folder)):
        return
    terminal.show(folder)
    try:
        print(f"report     {page.write(folder)}", flush=True)
    except (ConfigError, OSError) as error:  # what failed is still to be told
        print(f"no report: {error}", flush=True)


def _close(sweep: Sweep) -> None:
    for number, handler in sweep.handlers.items():
        signal.signal(number, handler)
    sweep.lock.release()
