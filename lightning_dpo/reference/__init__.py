"""Where reference log-probabilities come from: numbers on disk (cached), a frozen copy, or nowhere (None).

A reference is called with a batch and returns its TokenLogps. `bind` tells it the policy that it belongs to, `prepare`
runs before training, and `live` lends a scorer for sequences that no data set holds (sampled completions).
"""

from lightning_dpo.reference.base import Reference
from lightning_dpo.reference.cached import CachedReference
from lightning_dpo.reference.frozen_copy import CopyReference

__all__ = ["CachedReference", "CopyReference", "Reference"]
