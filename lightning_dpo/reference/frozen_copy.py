"""A frozen second model in memory."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from lightning.pytorch import Trainer
from transformers import PreTrainedModel

from lightning_dpo.batch import PairBatch, TokenLogps
from lightning_dpo.reference.base import Reference
from lightning_dpo.scoring import Scorer


class CopyReference(Reference):
    """A frozen second model, moved and cast with the policy but left out of checkpoints and of the optimizer."""

    model: PreTrainedModel
    has_distribution = True

    def bind(self, policy, load, scoring):
        self.model = copy.deepcopy(policy) if self.path is None else load(self.path)
        self.model.requires_grad_(False).eval()
        self.scorer = Scorer(self.model, scoring)

    @property
    def forwards(self) -> int:
        return self.scorer.forwards

    @torch.no_grad()
    def forward(self, batch: PairBatch) -> TokenLogps:
        return self.scorer(batch)

    @contextmanager
    def live(self, trainer: Trainer) -> Iterator[Scorer]:
        yield Scorer(self.model, self.scorer.scoring)
