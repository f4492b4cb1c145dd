"""Run a benchmark, print a table, write benchmark.json and benchmark.png."""

import json
import platform
import sys
from collections.abc import Callable, Sequence
from datetime import date
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
import transformers
from matplotlib.figure import Figure
from tqdm import tqdm

from lightning_dpo.batch import PairBatch
from lightning_dpo.benchmark import measure, work
from lightning_dpo.benchmark.contender import Contender
from lightning_dpo.benchmark.contenders import make


def run(
    names: Sequence[str], model: str, data: str, pairs: int, batches: int, dtype: str, threads: int, out: Path
) -> dict[str, Any]:
    """Measure, print and write; returns the content of benchmark.json.

    Errors: ValueError for an unknown contender, shape or profile.
    """
    torch.set_num_threads(threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    names = list(dict.fromkeys(names))
    build = partial(work.build, model, getattr(torch, dtype), device)
    policy = build()
    drawn = [batch.to(device) for batch in work.batches(data, model, policy, batches, pairs)]
    shapes = sorted({(m.in_features, m.out_features) for m in policy.modules() if isinstance(m, torch.nn.Linear)})
    peak = measure.matmul_peak(shapes, getattr(torch, dtype), device)
    flops = [work.needed_flops(policy, batch) for batch in drawn]
    del policy

    found, times = _measure(names, build, drawn, threads, device)
    for name, seconds in times.items():
        found[name] |= _rates(seconds, times[names[0]], drawn, flops, peak)
    result = {
        "command": " ".join(["python -m lightning_dpo.benchmark", *sys.argv[1:]]),
        "date": date.today().isoformat(),
        "machine": _machine(device, threads),
        "model": model, "data": data, "dtype": dtype, "batches": len(drawn), "pairs_per_batch": len(drawn[0]),
        "matmul_peak_flops": peak, "seconds_are": "of CPU time" if device == "cpu" else "of wall-clock time",
        "contenders": found,
    }  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    (out / "benchmark.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(table(result))
    picture(result, out / "benchmark.png")
    print(f"\nwritten: {out / 'benchmark.json'}, {out / 'benchmark.png'}")
    return result


def _measure(
    names: Sequence[str], build: Callable[[], Any], batches: list[PairBatch], threads: int, device: str
) -> tuple[dict[str, dict[str, Any]], dict[str, list[float]]]:
    """First step and peak memory of each contender, and its seconds on each batch."""
    found: dict[str, dict[str, Any]] = {}
    contenders: dict[str, Contender] = {}
    largest = max(batches, key=_tokens)
    with tqdm(total=len(names) * (len(batches) + 2), unit="step", leave=False) as bar:
        for name in names:
            bar.set_description(f"{name}: first step, memory")
            new = partial(make, name, build)
            contenders[name], first = measure.first_step(new, batches[0], device)
            contenders[name].prepare(batches)
            peak = measure.peak_memory(new, largest, threads, device)
            found[name] = {"first_step_s": first, "peak_bytes": peak}
            bar.update(2)
        bar.set_description("in turn")
        return found, measure.in_turn(contenders, batches, device, bar.update)


def _tokens(batch: PairBatch) -> int:
    """Tokens of both sequences of each pair, each with its prompt; no padding."""
    return int((2 * batch.prompt.lengths + batch.chosen.lengths + batch.rejected.lengths).sum())


def _rates(
    seconds: list[float], base: list[float], drawn: Sequence[PairBatch], flops: Sequence[float], peak: float
) -> dict[str, Any]:
    total, ratios = sum(seconds), [b / s for b, s in zip(base, seconds, strict=True)]
    return {
        "pairs_per_s": sum(map(len, drawn)) / total,
        "tokens_per_s": sum(map(_tokens, drawn)) / total,
        "step_s": {"median": median(seconds), "min": min(seconds), "max": max(seconds), "all": seconds},
        "speed_up": {"of_totals": sum(base) / total, "median": median(ratios), "min": min(ratios), "max": max(ratios)},
        "share_of_matmul_peak": sum(flops) / total / peak,
    }


def _machine(device: str, threads: int) -> dict[str, Any]:
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else _processor(),
        "threads": threads,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def table(result: dict[str, Any]) -> str:
    """The measurements as a Markdown table."""
    first, machine = next(iter(result["contenders"])), result["machine"]
    columns = ["contender", "pairs/s", f"x {first}, totals", f"x {first} [min-max]", "s/step [min-max]", "tokens/s",
               "of peak", "memory", "first step"]  # fmt: skip
    rows = [columns, ["---"] * len(columns)]
    for name, c in result["contenders"].items():
        step, up = c["step_s"], c["speed_up"]
        rows.append([
            name, f"{c['pairs_per_s']:.2f}", f"{up['of_totals']:.2f}",
            f"{up['median']:.2f} [{up['min']:.2f}-{up['max']:.2f}]",
            f"{step['median']:.3f} [{step['min']:.3f}-{step['max']:.3f}]", f"{c['tokens_per_s']:.0f}",
            f"{c['share_of_matmul_peak']:.0%}", f"{c['peak_bytes'] / 2**20:.0f} MiB", f"{c['first_step_s']:.1f} s",
        ])  # fmt: skip
    return "\n".join([
        result["command"],
        f"{result['date']}, {machine['device']}, {machine['threads']} thread(s), torch {machine['torch']}, best matmul "
        f"{result['matmul_peak_flops'] / 1e9:.0f} GFLOP/s; seconds {result['seconds_are']}, medians [min-max]",
        "",
        *("| " + " | ".join(row) + " |" for row in rows),
    ])  # fmt: skip


def picture(result: dict[str, Any], path: Path) -> None:
    """Bars of pairs per second, labelled with the ratio to the first contender."""
    names = list(result["contenders"])[::-1]
    rates = [result["contenders"][name]["pairs_per_s"] for name in names]
    figure = Figure(figsize=(8, 0.5 * len(names) + 1.4), layout="constrained")
    ax = figure.subplots()
    bars = ax.barh(names, rates, color=["#4878a8" if n.startswith(("shared", "padded")) else "#b0b0b0" for n in names])
    ups = (result["contenders"][name]["speed_up"]["of_totals"] for name in names)
    ax.bar_label(bars, [f" {r:.1f} ({u:.1f}x)" for r, u in zip(rates, ups, strict=True)])
    ax.set_xlim(0, 1.2 * max(rates))
    ax.set_xlabel(f"pairs per second {result['seconds_are']}")
    ax.set_title(f"{result['model']}, {result['data']}, {result['dtype']}, {result['machine']['device']}", fontsize=10)
    ax.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
