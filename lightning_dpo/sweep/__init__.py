"""A sweep is a folder of jobs: `outputs/sweeps/<sweep_name>/<overrides>/`."""

from lightning_dpo.sweep.sweep import Start

__all__ = ["Start"]
