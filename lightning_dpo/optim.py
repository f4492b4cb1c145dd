"""Learning-rate schedules, optimizers from optional packages, and gradient clipping."""

import math
from collections.abc import Iterable
from typing import Annotated, Any, Literal

import torch
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.utilities.enums import GradClipAlgorithmType
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from lightning_dpo.errors import ConfigError

SCHEDULES = {
    "constant": lambda share: 1.0,
    "linear": lambda share: max(0.0, 1 - share),
    "cosine": lambda share: max(0.0, 0.5 * (1 + math.cos(math.pi * share))),
}
"""Share of the steps after the warm-up -> factor of the learning rate. As in transformers, whose schedules cannot be
imported without peft and bitsandbytes."""


def schedule(
    optimizer: Optimizer,
    total_steps: int,
    name: Literal["constant", "linear", "cosine"] = "constant",
    warmup_steps: Annotated[float, "[0, inf)"] = 0,
) -> LRScheduler:
    """A schedule by optimizer steps: a linear warm-up, then constant, or decreasing to 0 at `total_steps`.

    Args:
        warmup_steps: a number of steps; below 1, a share of all steps.

    Errors: ValueError for a warm-up as long as the run, which would never reach its learning rate.
    """
    warmup = round(warmup_steps * total_steps) if warmup_steps < 1 else int(warmup_steps)
    if warmup >= total_steps:
        raise ValueError(
            f"scheduler.warmup_steps={warmup_steps}: the run has only {total_steps} optimizer steps; "
            "set fewer steps, or a share below 1"
        )
    after = SCHEDULES[name]
    return LambdaLR(
        optimizer, lambda step: step / warmup if step < warmup else after((step - warmup) / (total_steps - warmup))
    )


def adamw_8bit(
    params: Iterable[Tensor],
    lr: Annotated[float, "(0, inf)"] = 1e-6,
    betas: list[float] | tuple[float, float] = (0.9, 0.999),
    eps: Annotated[float, "(0, inf)"] = 1e-8,
    weight_decay: Annotated[float, "[0, inf)"] = 0.0,
) -> Optimizer:
    """AdamW of bitsandbytes with one-byte moments (Dettmers et al. 2022, arXiv 2110.02861). Tensors of fewer than 4096
    elements have moments in float32.

    Errors: ConfigError if bitsandbytes is not installed.
    """
    try:
        from bitsandbytes.optim import AdamW8bit  # type: ignore[import-not-found]
    except ImportError:
        raise ConfigError(
            "optimizer=adamw_8bit needs bitsandbytes: pip install 'lightning-dpo[8bit]', or type optimizer=adamw"
        ) from None
    return AdamW8bit(params, lr=lr, betas=tuple(betas), eps=eps, weight_decay=weight_decay)


def adamw_stochastic(
    params: Iterable[Tensor],
    lr: Annotated[float, "(0, inf)"] = 1e-6,
    betas: list[float] | tuple[float, float] = (0.9, 0.999),
    eps: Annotated[float, "(0, inf)"] = 1e-8,
    weight_decay: Annotated[float, "[0, inf)"] = 0.0,
) -> Optimizer:
    """AdamW of torchao, which rounds bfloat16 weights up or down at random, so that on average steps too small for
    their 8 bits are not lost. Compiled, on a CPU by a C++ compiler. Moments are in the weights' dtype.

    Errors: ConfigError if torchao is not installed.
    """
    try:
        from torchao.optim import _AdamW  # type: ignore[import-not-found]
    except ImportError:
        raise ConfigError(
            "optimizer=adamw_stochastic needs torchao: pip install 'lightning-dpo[stochastic]', or type optimizer=adamw"
        ) from None
    return _AdamW(params, lr, tuple(betas), eps, weight_decay, bf16_stochastic_round=True)  # type: ignore[arg-type]


def check_moments(optimizer: Optimizer) -> None:
    """Errors: ConfigError for Adam of torch over weights in float16: its second moments, which have their dtype, round
    to 0 there, and so does `eps`, so that the steps explode."""
    eps = optimizer.defaults.get("eps")
    half = any(p.dtype == torch.float16 for group in optimizer.param_groups for p in group["params"])
    if half and type(optimizer).__module__.startswith("torch.") and eps and not torch.tensor(eps).half():
        raise ConfigError(
            f"weights in float16: the moments of {type(optimizer).__name__} and its eps={eps:g} round to 0; type "
            "model.dtype=float32 with trainer.precision=16-mixed or bf16-mixed, or model.dtype=bfloat16"
        )


def clip(plugin: Precision, optimizer: Optimizer, value: float | None, algorithm: str | None) -> None:
    """Clip gradients as Lightning does, also of fused optimizers under bf16-mixed. Lightning refuses those because they
    unscale gradients themselves, but without a scaler gradients are not scaled."""
    unscaled = isinstance(plugin, MixedPrecision) and plugin.scaler is None
    kind: Any = Precision if unscaled else type(plugin)
    kind.clip_gradients(plugin, optimizer, value or 0.0, GradClipAlgorithmType(algorithm or "norm"))
