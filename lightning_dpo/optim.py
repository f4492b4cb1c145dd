"""Learning-rate schedules, optimizers from optional packages, and gradient clipping."""

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import Annotated, Any, Literal

import torch
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.utilities.enums import GradClipAlgorithmType
from torch import Tensor
from torch.optim import Optimizer, SparseAdam
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

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

    Errors: ConfigError for a warm-up as long as the run, which would never reach its learning rate.
    """
    warmup = round(warmup_steps * total_steps) if warmup_steps < 1 else int(warmup_steps)
    if warmup >= total_steps:
        raise ConfigError(
            f"scheduler.warmup_steps={warmup_steps}: the run has only {total_steps} optimizer steps; "
            "set fewer steps, or a share below 1"
        )
    after = SCHEDULES[name]
    return LambdaLR(
        optimizer, lambda step: step / warmup if step < warmup else after((step - warmup) / (total_steps - warmup))
    )


@dataclass(frozen=True)
class Stepping:
    """Keys of `scheduler` that are not arguments of the schedule: when Lightning steps it. None leaves a key to the
    schedule, whose default is after each optimizer step.

    Args:
        interval: after optimizer steps or after epochs.
        frequency: every how many epochs; with "step", every how many micro-batches of an epoch, as Lightning counts.
        monitor: the metric that ReduceLROnPlateau watches.
    """

    interval: Literal["step", "epoch"] | None = None
    frequency: Annotated[int, "[1, inf)"] | None = None
    monitor: str | None = None

    @classmethod
    def keys(cls, node: Mapping[str, Any]) -> dict[str, Any]:
        """Those keys of a `scheduler` node."""
        return {field.name: node[field.name] for field in fields(cls) if field.name in node}

    def of(self, make: Callable[..., Any]) -> Callable[..., dict[str, Any]]:
        """`make`, returning Lightning's description of its schedule.

        Errors: ConfigError for a schedule by optimizer steps that would be stepped at other times.
        """
        own = {key: value for key, value in asdict(self).items() if value is not None}
        if _takes_total(make) and (self.interval == "epoch" or (self.frequency or 1) > 1):
            found = " ".join(f"{key}={value}" for key, value in own.items())
            raise ConfigError(f"{found}: this schedule has total_steps and counts optimizer steps; leave {found} out")
        return lambda optimizer, total_steps: {**_made(make, optimizer, total_steps), **own}


def describe(make: Callable[..., Any], optimizer: Optimizer, total_steps: int) -> dict[str, Any]:
    """Lightning's description of the schedule that `make` returns, stepped after each optimizer step unless `make`
    returns a description that says otherwise.

    Args:
        make: optimizer -> schedule or description. `total_steps` goes to an argument of this name that is not set.

    Errors: ConfigError for a schedule that cannot work.
    """
    if any(group.get("lr") is None for group in optimizer.param_groups):
        raise ConfigError(
            f"{type(optimizer).__name__} without lr sets its own learning rate; type scheduler=none (in Python: "
            "scheduler=None)"
        )
    found = {"interval": "step", **_made(make, optimizer, total_steps)}
    scheduler, monitor = found.get("scheduler"), found.get("monitor")
    watches = found.get("reduce_on_plateau", isinstance(scheduler, ReduceLROnPlateau))
    if watches and not monitor:
        raise ConfigError(
            "ReduceLROnPlateau has no metric to watch; type scheduler.monitor=val/loss scheduler.interval=epoch (in "
            'Python return {"scheduler": ..., "monitor": "val/loss", "interval": "epoch"})'
        )
    if monitor and not watches:
        raise ConfigError(f"monitor={monitor}: {type(scheduler).__name__} watches no metric; leave it out")
    return found


def _made(make: Callable[..., Any], optimizer: Optimizer, total_steps: int) -> dict[str, Any]:
    total = {"total_steps": total_steps} if _takes_total(make) else {}
    try:
        inspect.signature(make).bind(optimizer, **total)
    except TypeError as error:
        how = "scheduler(optimizer), with total_steps=... where it has an argument of this name"
        raise ConfigError(f"{error}; a scheduler is called as {how}") from None
    made = make(optimizer, **total)
    return made if isinstance(made, dict) else {"scheduler": made}


def _takes_total(make: Callable[..., Any]) -> bool:
    """Whether `make` has an argument `total_steps` that is set in no way; OneCycleLR's other way is by epochs."""
    given = make.keywords if isinstance(make, partial) else {}
    takes = "total_steps" in inspect.signature(make).parameters
    return takes and not given.keys() & {"total_steps", "epochs", "steps_per_epoch"}


def check_optimizer(optimizer: Optimizer) -> None:
    """Errors: ConfigError for an optimizer that cannot take a step as DPOModule does."""
    name = type(optimizer).__name__
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        raise ConfigError(f"{name} computes the loss several times per step, and a run once; use another optimizer")
    if isinstance(optimizer, SparseAdam):
        raise ConfigError(f"{name} takes sparse gradients, and those of a model are dense; use another optimizer")
    # Adam of torch keeps its second moments in the dtype of the weights. In float16 those of gradients below 2e-4 round
    # to 0, and so does a small `eps`: with 1e-8 a step is infinite, with 1e-6 ten times the learning rate.
    eps = optimizer.defaults.get("eps")
    half = any(p.dtype == torch.float16 for group in optimizer.param_groups for p in group["params"])
    if half and type(optimizer).__module__.startswith("torch.") and eps and eps < 1e-5:
        raise ConfigError(
            f"weights in float16: the moments of {name} round to 0, and its eps={eps:g} is too small for them; type "
            "model.dtype=float32 with trainer.precision=16-mixed or bf16-mixed, or model.dtype=bfloat16"
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


def clip(plugin: Precision, optimizer: Optimizer, value: float | None, algorithm: str | None) -> None:
    """Clip gradients as Lightning does, also of fused optimizers under bf16-mixed. Lightning refuses those because they
    unscale gradients themselves, but without a scaler gradients are not scaled."""
    unscaled = isinstance(plugin, MixedPrecision) and plugin.scaler is None
    kind: Any = Precision if unscaled else type(plugin)
    kind.clip_gradients(plugin, optimizer, value or 0.0, GradClipAlgorithmType(algorithm or "norm"))
