"""Preference losses: pure functions `(PairLogps, **parameters) -> PairLoss`.

The registry is the folder conf/loss: one YAML names one function. To add a loss, write the function and its YAML.
"""

from lightning_dpo.losses.types import PairLogps, PairLoss, ReferenceRequired
from lightning_dpo.losses.with_reference import dpo, hinge, ipo
from lightning_dpo.losses.without_reference import simpo

__all__ = ["PairLogps", "PairLoss", "ReferenceRequired", "dpo", "hinge", "ipo", "simpo"]
