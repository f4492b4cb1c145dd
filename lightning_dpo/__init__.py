"""Preference tuning for language models on PyTorch Lightning."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_dpo import losses
    from lightning_dpo.data import PreferenceDataModule
    from lightning_dpo.module import DPOModule
    from lightning_dpo.reference import CachedReference, CopyReference

__version__ = "0.2.0"
__all__ = ["CachedReference", "CopyReference", "DPOModule", "PreferenceDataModule", "losses"]

_HOMES = {
    "CachedReference": "reference",
    "CopyReference": "reference",
    "DPOModule": "module",
    "PreferenceDataModule": "data",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that importing the package (as --help does) loads no torch."""
    if name == "losses":
        return import_module("lightning_dpo.losses")
    if name in _HOMES:
        return getattr(import_module(f"lightning_dpo.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'lightning_dpo' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
