"""Measure the cost of a training step in each layout of this package and with other trainers' algorithms.

    python -m lightning_dpo.benchmark --quick
    python -m lightning_dpo.benchmark base shared shared+checkpointing --model qwen3-0.6b --dtype bfloat16

Contenders take options: shared+autocast (bfloat16), shared+checkpointing (activations), shared+compile. After a warm-up
step, all take steps in turn on the same batches; the first contender is the baseline. On a CPU, times are CPU-seconds,
which other processes do not affect. `trl` needs: pip install 'lightning-dpo[bench]'.
"""

import argparse
from importlib.util import find_spec
from pathlib import Path

from lightning_dpo.console import exit_codes

DEFAULT = ["base", "base-precomputed", "padded", "shared"]
QUICK = {"model": "mini", "pairs": 4, "batches": 3}


def main() -> None:
    args = _arguments()
    # imported late, so that --help and wrong arguments do not load torch
    from lightning_dpo.benchmark.run import run

    with exit_codes(ValueError, OSError):
        names = args.contenders or [*DEFAULT, *(["trl", "trl-precomputed"] if find_spec("trl") else [])]
        run(names, args.model, args.data, args.pairs, args.batches, args.dtype, args.threads, args.out)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m lightning_dpo.benchmark", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("contenders", nargs="*", help=f"default: {' '.join(DEFAULT)}, and trl if installed")
    parser.add_argument("--model", help="mini, small (default), wide-head, qwen3-0.6b, llama-3.2-1b: this shape with "
                        "random weights; or a folder or hub id")  # fmt: skip
    parser.add_argument("--data", default="hh", help="hh (default), long-prompt, long-answer, document: random tokens; "
                        "or a .jsonl file with prompt, chosen and rejected as text")  # fmt: skip
    parser.add_argument("--pairs", type=_positive, help="pairs per batch (8)")
    parser.add_argument("--batches", type=_positive, help="number of batches (20)")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"], help="weights' dtype (float32)")
    parser.add_argument("--threads", type=_positive, default=1, help="torch threads on a CPU (1)")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK['batches']} batches of {QUICK['pairs']} pairs on "
                        f"the shape {QUICK['model']}: under two minutes on two cores")  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmark"), help="output folder (%(default)s)")
    args = parser.parse_args()
    for name, value in (QUICK if args.quick else {"model": "small", "pairs": 8, "batches": 20}).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    return args


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be at least 1")
    return number


if __name__ == "__main__":
    main()
