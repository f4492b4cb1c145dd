"""Losses as plain values, {"name": "dpo", "beta": 0.1}, for checkpoints, and back."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import nn

from lightning_dpo import losses
from lightning_dpo.losses.types import Loss
from lightning_dpo.signatures import check_arguments


def to_plain(loss: Loss) -> dict[str, Any] | None:
    """The name of the loss in `lightning_dpo.losses` and its parameters; None for a loss from another package."""
    if isinstance(loss, partial):
        function, parameters = loss.func, dict(loss.keywords)
    elif isinstance(loss, nn.Module):
        function, parameters = type(loss), dict(getattr(loss, "settings", {}))
    else:
        function, parameters = loss, {}
    name = getattr(function, "__name__", "")
    if getattr(losses, name, None) is not function:
        return None
    if "terms" in parameters:
        parameters["terms"] = {key: to_plain(term) for key, term in parameters["terms"].items()}
        if None in parameters["terms"].values():
            return None
    return {"name": name, **parameters}


def from_plain(plain: Mapping[str, Any]) -> Loss:
    parameters = dict(plain)
    target = getattr(losses, parameters.pop("name"))
    if "terms" in parameters:
        parameters["terms"] = {key: from_plain(term) for key, term in parameters["terms"].items()}
    check_arguments(target, parameters, allow_missing=True)
    return target(**parameters) if isinstance(target, type) else partial(target, **parameters)


def as_loss(loss: Loss | Mapping[str, Any]) -> Loss:
    """A loss, or its plain values, as a loss. Errors: ArgumentError for a parameter that is unknown or out of range."""
    if isinstance(loss, Mapping):
        return from_plain(loss)
    if isinstance(loss, partial):
        check_arguments(loss.func, loss.keywords, allow_missing=True)
    return loss
