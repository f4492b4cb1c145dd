"""Sources of reference log-probabilities: numbers on disk (cached), a frozen copy, or none (None).

A reference is called with a batch and returns its TokenLogps. `bind` connects it to the policy, `prepare` runs before
training, and `live` provides a scorer for sequences outside the data set, such as sampled completions.
"""

from lightning_dpo.reference.base import Reference
from lightning_dpo.reference.cached import CachedReference
from lightning_dpo.reference.frozen_copy import CopyReference

__all__ = ["CachedReference", "CopyReference", "Reference"]
