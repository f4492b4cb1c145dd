"""Measure the times and memory of contenders on the same batches, and the matmul peak."""

import multiprocessing
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from lightning_dpo.batch import PairBatch
from lightning_dpo.benchmark.contender import Contender


def seconds(work: Callable[[], Any], device: str) -> float:
    """CPU-seconds of this process over all threads; on a GPU, wall-clock seconds until it has finished."""
    clock, wait = (time.process_time, lambda: None) if device == "cpu" else (time.perf_counter, torch.cuda.synchronize)
    wait()
    start = clock()
    work()
    wait()
    return clock() - start


def in_turn(
    contenders: dict[str, Contender], batches: Sequence[PairBatch], device: str, advance: Callable[[], Any]
) -> dict[str, list[float]]:
    """Seconds of each contender's step on each batch, in the order A B C, A B C, ..."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for batch in batches:
        for name, contender in contenders.items():
            times[name].append(seconds(lambda c=contender, b=batch: c.step(b), device))
            advance()
    return times


def matmul_peak(shapes: Sequence[tuple[int, int]], dtype: torch.dtype, device: str) -> float:
    """The highest rate of a matrix product with one of the shapes (inputs, outputs), in FLOP/s."""
    best = 0.0
    for rows in (256, 1024, 2048, *([8192, 16384] if device != "cpu" else [])):
        for inputs, outputs in shapes:
            a = torch.randn(rows, inputs, dtype=dtype, device=device)
            b = torch.randn(outputs, inputs, dtype=dtype, device=device)
            taken = min(seconds(lambda a=a, b=b: a @ b.T, device) for _ in range(4))
            best = max(best, 2 * rows * inputs * outputs / taken)
    return best


def first_step(make: Callable[[], Contender], batch: PairBatch, device: str) -> tuple[Contender, float]:
    """A new contender, and the wall-clock seconds of building, preparing (one batch) and its first step."""
    start = time.perf_counter()
    contender = make()
    contender.prepare([batch])
    contender.step(batch)
    if device != "cpu":
        torch.cuda.synchronize()
    return contender, time.perf_counter() - start


def peak_memory(make: Callable[[], Contender], batch: PairBatch, threads: int, device: str) -> float:
    """Peak bytes of a step beyond what was allocated before it: activations, logits, gradients.

    On a CPU in a separate process, because memory freed by an earlier contender would hide the peak.
    """
    if device == "cpu":
        context = multiprocessing.get_context("forkserver")  # imports once for all contenders
        context.set_forkserver_preload(["lightning_dpo.benchmark.contenders"])
        with context.Pool(1) as pool:
            return pool.apply(_resident_peak, (make, batch, threads))
    contender, _ = first_step(make, batch, device)
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
    contender.step(small)  # allocates the optimizer's state
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak to what is resident now
    before = _resident("VmRSS")
    contender.step(batch)
    return _resident("VmHWM") - before


def _resident(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return 1024.0 * int(line.split()[1])
    raise OSError(f"/proc/self/status has no {field}")
