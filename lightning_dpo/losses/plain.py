"""A loss as plain values, {"name": "dpo", "beta": 0.1}, as a checkpoint keeps it, and back."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import nn

from lightning_dpo.losses.types import Loss
from lightning_dpo.signatures import check_arguments


def to_plain(loss: Loss, package: Any) -> dict[str, Any] | None:
    """The name that `package` exports the loss under, and its parameters; None for a loss from elsewhere."""
    if isinstance(loss, partial):
        function, parameters = loss.func, dict(loss.keywords)
    elif isinstance(loss, nn.Module):
        function, parameters = type(loss), dict(getattr(loss, "settings", {}))
    else:
        function, parameters = loss, {}
    name = getattr(function, "__name__", "")
    if getattr(package, name, None) is not function:
        return None
    if "terms" in parameters:
        parameters["terms"] = {key: to_plain(term, package) for key, term in parameters["terms"].items()}
        if None in parameters["terms"].values():
            return None
    return {"name": name, **parameters}


def from_plain(plain: Mapping[str, Any], package: Any) -> Loss:
    """The loss of these plain values."""
    parameters = dict(plain)
    target = getattr(package, parameters.pop("name"))
    if "terms" in parameters:
        parameters["terms"] = {key: from_plain(term, package) for key, term in parameters["terms"].items()}
    check_arguments(target, parameters, given_later=True)
    return target(**parameters) if isinstance(target, type) else partial(target, **parameters)


def as_loss(loss: Loss | Mapping[str, Any], package: Any) -> Loss:
    """A loss by its plain form {"name": "dpo", "beta": 0.1}, as checkpoints keep it, or the function itself."""
    if isinstance(loss, Mapping):
        return from_plain(loss, package)
    if isinstance(loss, partial):
        check_arguments(loss.func, loss.keywords, given_later=True)
    return loss
