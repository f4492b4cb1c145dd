"""Hydra's `instantiate`, whose errors of our own pass as they are."""

from typing import Any

import hydra.utils
from hydra.errors import InstantiationException

from lightning_dpo.errors import ConfigError, DataError


def instantiate(node: Any, **given: Any) -> Any:
    """What a node of the configuration builds.

    Errors: ConfigError and DataError of what it calls, without Hydra's words around them; InstantiationException.
    """
    try:
        return hydra.utils.instantiate(node, **given)
    except InstantiationException as error:
        if isinstance(error.__cause__, ConfigError | DataError):
            raise error.__cause__ from None
        raise
