"""One job of a sweep is a folder: `job.json` says what runs there and how it ended, `output.log` what it printed.

A job that is done is not run again while its configuration is the same; one that broke goes on; one whose configuration
has changed starts anew, and its former folder is kept beside the sweep's, in `<sweep>.replaced/`.
"""

import gc
import json
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

from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf, open_dict

from lightning_dpo import redact
from lightning_dpo.content import content
from lightning_dpo.errors import ConfigError
from lightning_dpo.files import write_json
from lightning_dpo.free_keys import differences

log = logging.getLogger(__name__)

FILE, REFUSED = "job.json", "job.refused.json"
LOCK, OUTPUT = ".job.lock", "output.log"
STAYING = {FILE, LOCK, OUTPUT, "train.log"}
"""Not moved or emptied: they belong to the folder, whichever run is in it."""

BESIDE = ("output_dir", "run_name", "sweep_name", "logger", "resume", "resume_override", "checkpoint")
"""Keys that say where a run's numbers go and how it goes on; they do not make it another run."""


class JobFailed(RuntimeError):
    """A job failed, and its folder says how. It travels between processes, and holds no frames, so no model either."""


def run(
    folder: Path, cfg: DictConfig, body: Callable[[DictConfig], float | None], invocation: str, overrides: list[str]
) -> float | None:
    """Run one job in its folder, or skip it where it is done; returns its objective.

    Args:
        body: the run itself; what it prints goes to the folder's `output.log`.
        invocation: of the sweep; two of its jobs cannot share a folder.
        overrides: those in which it differs from the sweep's other jobs.

    Errors: JobFailed for whatever went wrong inside; SystemExit and KeyboardInterrupt pass.
    """
    folder.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {"invocation": invocation, "overrides": overrides, "began": _now()}
    try:
        with _alone_in(folder):
            if read(folder / REFUSED).get("invocation") != invocation:
                (folder / REFUSED).unlink(missing_ok=True)
            former, config = read(folder / FILE), compared(cfg)
            gpus = os.environ.get("CUDA_VISIBLE_DEVICES")
            record |= {"config": config, "pid": os.getpid(), "host": socket.gethostname(), "gpus": gpus}
            difference = changed(former, config)
            if not difference and former.get("state") == "done" and (folder / "summary.json").exists():
                write_json(folder / FILE, former | {"invocation": invocation, "skipped": True})
                return former["objective"]["value"]
            if difference and former.get("invocation") == invocation:
                raise ConfigError("another job of this sweep has the same folder; type hydra.sweep.subdir=...")
            if difference:
                _move_away(folder, former, difference)
            return _run(folder, cfg, body, record)
    except (ConfigError, OSError) as error:  # the folder is another one's, and its job.json too
        write_json(folder / REFUSED, {**record, "state": "failed", "error": _one_line(error), "log": None})
        raise JobFailed(_one_line(error)) from None


def _run(folder: Path, cfg: DictConfig, body: Callable[[DictConfig], float | None], record: dict) -> float | None:
    began = time.monotonic()

    def write(state: str, **more: Any) -> None:
        seconds = round(time.monotonic() - began, 3)
        write_json(folder / FILE, {"state": state, **record, **more, "seconds": seconds, "log": str(folder / OUTPUT)})

    write("running")
    try:
        with printed_to(folder / OUTPUT), isolated():
            try:
                value = body(cfg)
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


def _move_away(folder: Path, former: dict[str, Any], difference: list[str]) -> None:
    """Keep what a run of another configuration left, where no report of the sweep counts it."""
    target = folder.parent.with_name(f"{folder.parent.name}.replaced") / f"{folder.name}-{time.time_ns()}"
    target.mkdir(parents=True)
    shutil.copy2(folder / FILE, target)
    for path in _movable(folder):
        shutil.move(path, target)
    changes = "; ".join(difference)
    log.warning("%s: its configuration has changed (%s); what was here is now in %s", folder.name, changes, target)


def _movable(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.name not in STAYING]


def compared(cfg: DictConfig) -> dict[str, Any]:
    """What makes it this run: the resolved configuration as {dotted key: value}, without BESIDE and without secrets,
    and the content of the files that it names.
    """
    cfg = cfg.copy()
    with open_dict(cfg):
        for key in BESIDE:
            cfg[key] = None
    plain = OmegaConf.to_container(cfg, resolve=True)
    found = {key: value for key, value in flat(plain) if not redact.KEY.search(key)}
    return json.loads(json.dumps(found | content(found)))  # as it will be read again


def flat(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(node, dict):
        yield path, node
        return
    for name, child in node.items():
        yield from flat(child, f"{path}.{name}" if path else str(name))


def changed(former: dict[str, Any], config: dict[str, Any]) -> list[str]:
    """The keys whose values differ, as `key old -> new`; empty where there is nothing to compare with."""
    return differences(former.get("config", config), config, counted=("objective",))


def read(path: Path) -> dict[str, Any]:
    """A job's record; empty where there is none that can be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    try:
        with FileLock(folder / LOCK, timeout=0):
            yield
    except Timeout:
        pid = read(folder / FILE).get("pid")
        raise ConfigError(f"process {pid} is running this job; wait for it, or end it") from None


def is_free(folder: Path) -> bool:
    """Whether no process is running the job of this folder."""
    try:
        with FileLock(folder / LOCK, timeout=0):
            return True
    except Timeout:
        return False


@contextmanager
def printed_to(path: Path) -> Iterator[None]:
    """What this process and its children print is appended to a file meanwhile."""
    append = partial(open, path, "a", buffering=1, encoding="utf-8")
    with append() as out, append() as err:  # two: W&B wraps both, and would see one twice
        sys.stdout.flush()
        sys.stderr.flush()
        saved = {number: os.dup(number) for number in (1, 2)}
        try:
            for number, file in ((1, out), (2, err)):
                os.dup2(file.fileno(), number)
            with redirect_stdout(redact.Stream(out)), redirect_stderr(redact.Stream(err)):  # type: ignore[type-var]
                yield
        finally:
            for number, original in saved.items():
                os.dup2(original, number)
                os.close(original)
            redact.clean(path)


@contextmanager
def isolated() -> Iterator[None]:
    """What a job changes in its process and its memory does not reach the next one."""
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in set(os.environ) - set(before):
            del os.environ[name]
        os.environ.update(before)
        if "torch" in sys.modules:
            import torch

            torch.use_deterministic_algorithms(False)
            torch.backends.cudnn.benchmark = False
            torch.set_float32_matmul_precision("highest")
            gc.collect()
            torch.cuda.empty_cache()


def _one_line(error: BaseException) -> str:
    return redact.redact(f"{type(error).__name__}: {' '.join(str(error).split())}")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
