"""Learning-rate schedules."""

from typing import Annotated, Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_scheduler


def schedule(
    optimizer: Optimizer,
    total_steps: int,
    name: Literal["constant", "linear", "cosine"] = "constant",
    warmup_steps: Annotated[float, "[0, inf)"] = 0,
) -> LRScheduler:
    """A schedule by optimizer steps: a linear warm-up, then constant, or falling to 0 at `total_steps`.

    Args:
        warmup_steps: steps, or below 1 a share of all steps.

    Errors: ValueError for a warm-up as long as the run, whose learning rate would never be reached.
    """
    warmup = round(warmup_steps * total_steps) if warmup_steps < 1 else int(warmup_steps)
    if warmup >= total_steps:
        raise ValueError(
            f"scheduler.warmup_steps={warmup_steps} leaves nothing of {total_steps} optimizer steps; "
            "give fewer steps, or a share below 1"
        )
    kind = "constant_with_warmup" if name == "constant" else name
    return get_scheduler(kind, optimizer, num_warmup_steps=warmup, num_training_steps=total_steps)
