"""Completions during validation."""

from lightning_dpo.samples.callback import SampleCallback

__all__ = ["SampleCallback"]
