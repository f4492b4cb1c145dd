"""What every reference is."""

from collections.abc import Callable

from lightning.pytorch import Trainer
from torch import nn
from transformers import PreTrainedModel

from lightning_dpo.batch import PairBatch, TokenLogps
from lightning_dpo.scoring import Scorer, Scoring


class Reference(nn.Module):
    """A frozen model that the policy is compared with.

    Args:
        path: folder or hub id of the reference; None takes the policy as it is before training.
    """

    has_distribution = False
    """Whether it knows the probability of every token of the vocabulary, and not only of the responses' own."""

    def __init__(self, path: str | None = None):
        super().__init__()
        self.path = path
        self._scoring: Scoring = "auto"

    @property
    def is_start(self) -> bool:
        """Whether the reference is the policy before training."""
        return self.path is None

    @property
    def forwards(self) -> int:
        """Forward passes over the pairs of the data set so far."""
        raise NotImplementedError

    def bind(self, policy: PreTrainedModel, load: Callable[[str], PreTrainedModel], scoring: Scoring) -> None:
        """Called once, by the module that owns both; `load` builds a model from a path as the policy was built."""
        raise NotImplementedError

    @property
    def scorer(self) -> Scorer:
        """The reference model itself, for losses that look at its whole distribution; only with `has_distribution`."""
        raise NotImplementedError

    def prepare(self, policy: PreTrainedModel, trainer: Trainer) -> None:
        """Called on every rank when a trainer sets up: before training, and before a validation by itself."""

    def forward(self, batch: PairBatch) -> TokenLogps:
        raise NotImplementedError

    def live(self, trainer: Trainer):
        """Context manager: a Scorer of the reference, on the trainer's device."""
        raise NotImplementedError
