"""A frozen second model in memory."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from lightning.pytorch import Trainer
from transformers import PreTrainedModel

from lightning_dpo.batch import PairBatch, TokenLogps
from lightning_dpo.reference.base import Reference
from lightning_dpo.scoring import Scorer, Scoring


class CopyReference(Reference):
    """A frozen second model, moved and cast with the policy but left out of checkpoints and of the optimizer."""

    model: PreTrainedModel | None
    has_distribution = True

    def bind(self, policy, load, scoring):
        super().bind(policy, load, scoring)
        self._scoring: Scoring = scoring
        self.model = None
        if self.path is not None:
            self._freeze(load(self.path))

    def prepare(self, policy: PreTrainedModel, trainer: Trainer) -> None:
        if self.model is None:
            # Not in `bind`: a module that is loaded from a checkpoint is built with random weights first.
            self._freeze(copy.deepcopy(policy))
            self.is_policy = True
        self.check(self.scorer.model, trainer)

    def _freeze(self, model: PreTrainedModel) -> None:
        self.model = model.requires_grad_(False).eval()
        self.scorer = Scorer(self.model, self._scoring)

    @property
    def forwards(self) -> int:
        return self.scorer.forwards

    @torch.no_grad()
    def forward(self, batch: PairBatch) -> TokenLogps:
        return self.scorer(batch)

    @contextmanager
    def live(self, trainer: Trainer) -> Iterator[Scorer]:
        yield Scorer(self.scorer.model, self._scoring)
