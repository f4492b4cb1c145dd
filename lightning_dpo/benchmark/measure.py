"""Times, peaks and memory, measured so that two contenders can be compared: in turn, on the same batches."""

import multiprocessing
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from lightning_dpo.batch import PairBatch
from lightning_dpo.benchmark.contender import Contender


def seconds(work: Callable[[], Any], device: str) -> float:
    """CPU-seconds of this process, all threads counted; on a GPU seconds until it has finished."""
    if device == "cpu":
        start = time.process_time()
        work()
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def in_turn(
    contenders: dict[str, Contender], batches: Sequence[PairBatch], device: str, told: Callable[[], Any]
) -> dict[str, list[float]]:
    """Seconds of each contender's step on each batch: A B C, A B C, ...."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for batch in batches:
        for name, contender in contenders.items():
            times[name].append(seconds(lambda c=contender, b=batch: c.step(b), device))
            told()
    return times


def matmul_peak(shapes: Sequence[tuple[int, int]], dtype: torch.dtype, device: str) -> float:
    """The most floating-point operations a second that a matrix product of the model's own shapes reaches, for some
    number of rows. `shapes` are (inputs, outputs) of its layers."""
    best = 0.0
    for rows in (256, 1024, 2048, *([8192, 16384] if device != "cpu" else [])):
        for inputs, outputs in shapes:
            a = torch.randn(rows, inputs, dtype=dtype, device=device)
            b = torch.randn(outputs, inputs, dtype=dtype, device=device)
            taken = min(seconds(lambda a=a, b=b: a @ b.T, device) for _ in range(4))
            best = max(best, 2 * rows * inputs * outputs / taken)
    return best


def first_step(make: Callable[[], Contender], batch: PairBatch, device: str) -> tuple[Contender, float]:
    """A new contender, and the seconds of the clock until it has taken a step: building, its reference, compiling."""
    start = time.perf_counter()
    contender = make()
    contender.prepare([batch])
    contender.step(batch)
    if device != "cpu":
        torch.cuda.synchronize()
    return contender, time.perf_counter() - start


def peak_memory(make: Callable[[], Contender], batch: PairBatch, threads: int, device: str) -> float:
    """Bytes at the peak of a step beyond what stood before it: activations, logits, gradients.

    On a CPU in a process of its own, as memory that an earlier contender gave back would hide the peak.
    """
    if device == "cpu":
        context = multiprocessing.get_context("forkserver")  # imports once for all contenders
        context.set_forkserver_preload(["lightning_dpo.benchmark.contenders"])
        with context.Pool(1) as pool:
            return pool.apply(_resident_peak, (make, batch, threads))
    contender = make()
    contender.prepare([batch])
    contender.step(batch)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    contender.step(batch)
    torch.cuda.synchronize()
    return float(torch.cuda.max_memory_allocated() - before)


def _resident_peak(make: Callable[[], Contender], batch: PairBatch, threads: int) -> float:
    torch.set_num_threads(threads)
    contender = make()
    small = batch.select([int((batch.prompt.lengths + batch.chosen.lengths + batch.rejected.lengths).argmin())])
    contender.prepare([batch, small])
    contender.step(small)  # the optimizer's state is there before the count begins
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is resident now
    before = _resident("VmRSS")
    contender.step(batch)
    return _resident("VmHWM") - before


def _resident(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return 1024.0 * int(line.split()[1])
    raise OSError(f"/proc/self/status has no {field}")
