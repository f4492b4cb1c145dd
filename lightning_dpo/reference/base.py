"""The interface of references."""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from lightning.pytorch import Trainer
from torch import nn
from transformers import PreTrainedModel

from lightning_dpo.batch import PairBatch, TokenLogps
from lightning_dpo.errors import ConfigError
from lightning_dpo.models import check_fits, check_tokenizers, load_tokenizer
from lightning_dpo.scoring import Scorer, Scoring

log = logging.getLogger(__name__)


class Reference(nn.Module):
    """A frozen model that the policy is compared with.

    Args:
        path: folder or hub id of the reference; None takes the policy as it is before training.
    """

    has_distribution = False
    """Whether it knows the probability of every token of the vocabulary, not only of the responses' tokens."""
    scorer: Scorer
    """Of the reference model, for losses that use its whole distribution; after `prepare`, with `has_distribution`."""
    forwards: int
    """Forward passes over the pairs of the data set so far."""

    def __init__(self, path: str | None = None):
        super().__init__()
        self.path = path
        self._checked: Any = None
        self.is_policy = False
        """Whether the policy has the reference's weights: from `prepare` until a step or a checkpoint changes them."""

    def check(self, model: PreTrainedModel, trainer: Trainer) -> None:
        """Errors: ConfigError if the model of `path` does not know the tokens or the lengths of the trainer's data."""
        data: Any = getattr(trainer, "datamodule", None)
        if self.path is None or data is self._checked or not hasattr(data, "pairs"):
            return
        key, pairs = f"reference.path={self.path}", data.pairs()
        check_fits(model.config, pairs, key)
        try:
            tokenizer = load_tokenizer(self.path, key="reference.path")
        except ConfigError as error:
            log.warning("it is not compared with the policy's tokenizer: %s", error)
        else:
            check_tokenizers(data.tokenizer, tokenizer, pairs, key)
        self._checked = data

    def bind(self, policy: PreTrainedModel, load: Callable[[str], PreTrainedModel], scoring: Scoring) -> None:
        """Called by the module that owns both: a reference of an earlier module starts anew. `load` builds a model from
        a path as the policy was built."""
        self._checked, self.is_policy = None, False

    def prepare(self, policy: PreTrainedModel, trainer: Trainer) -> None:
        """Called on every rank before training, and before a validation outside of training. Without a path, the first
        call takes the policy's weights of that moment for the reference's."""

    def forward(self, batch: PairBatch) -> TokenLogps:
        raise NotImplementedError

    def live(self, trainer: Trainer) -> AbstractContextManager[Scorer]:
        """Within the context, a Scorer of the reference on the trainer's device."""
        raise NotImplementedError
