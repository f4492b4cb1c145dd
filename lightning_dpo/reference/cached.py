"""Reference log-probabilities computed once, kept on disk, and joined to the rows."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import Trainer
from transformers import PreTrainedModel

from lightning_dpo.batch import PairBatch, TokenLogps
from lightning_dpo.reference.base import Reference
from lightning_dpo.reference.precompute import Precomputation
from lightning_dpo.reference.store import ReferenceStore, content_key, weights_sha256
from lightning_dpo.scoring import Scorer

CACHE_DIR = "~/.cache/lightning_dpo/reference"


class CachedReference(Reference):
    """Log-probabilities of every pair, computed once, kept on disk and joined to the rows before the sampler sees them.

    An entry is found by what changes its numbers: weights, configuration, token ids, dtype and precision. Beta, the
    loss, the learning rate, the seed and the output folder do not. Needs a PreferenceDataModule
    (`trainer.fit(module, datamodule=...)`).

    Args:
        path: folder or hub id of the reference; None takes the policy as it is before training.
        cache_dir: folder of the store.
    """

    def __init__(self, path: str | None = None, cache_dir: str | Path = CACHE_DIR):
        super().__init__(path)
        self.store = ReferenceStore(cache_dir)
        self._forwards = 0
        self._weights: str | None = None

    @property
    def forwards(self) -> int:
        return self._forwards

    def bind(self, policy, load, scoring):
        self._scoring = scoring
        source = self.path or policy.name_or_path
        self._load = partial(load, source) if source else None

    def prepare(self, policy: PreTrainedModel, trainer: Trainer) -> None:
        datamodule: Any = getattr(trainer, "datamodule", None)
        if datamodule is None:
            raise ValueError(
                "reference=cached joins its numbers to the rows of a PreferenceDataModule, and this trainer has none; "
                "call trainer.fit(module, datamodule=...) or use CopyReference()"
            )
        # Rows that another module's reference was joined to are joined anew.
        missing = {
            n: p for n, p in datamodule.pairs().items() if p.reference_of is None or p.reference_of != self._weights
        }
        if not missing:
            return
        model = _placed(policy if self.is_start else self._loaded(), trainer)
        weights = weights_sha256(model)
        if self._weights not in (None, weights):
            raise ValueError(
                "the reference is the policy before training, which has been trained since; "
                "name the reference's folder: CachedReference(path=...)"
            )
        self._weights = weights
        scorer = Scorer(model, self._scoring)
        scorer.prepare()
        before = scorer.forwards
        with trainer.precision_plugin.forward_context(), torch.no_grad():
            for name, pairs in missing.items():
                key = content_key(model, weights, pairs, str(trainer.precision))
                work = Precomputation(scorer, pairs, name)
                pairs.reference = self.store.get(key, pairs, work.parts, work, trainer.strategy)
                pairs.reference_of = weights
        self._forwards += scorer.forwards - before

    def forward(self, batch: PairBatch) -> TokenLogps:
        if batch.reference is None:
            raise ValueError("this batch carries no cached reference values: it is not of the trainer's datamodule")
        return batch.reference

    @contextmanager
    def live(self, trainer: Trainer) -> Iterator[Scorer]:
        """Loads the reference for as long as the context lasts: its numbers are kept, its weights are not."""
        model = _placed(self._loaded(), trainer)
        if self._weights is None or weights_sha256(model) != self._weights:
            raise ValueError(
                f"{model.name_or_path} does not hold the weights that the cached reference values were computed with; "
                "name the reference's folder: CachedReference(path=...)"
            )
        yield Scorer(model, self._scoring)

    def _loaded(self) -> PreTrainedModel:
        if self._load is None:
            raise ValueError(
                "the policy was given as a model object, so its start cannot be loaded again; "
                "name the reference's folder: CachedReference(path=...)"
            )
        return self._load().requires_grad_(False).eval()


def _placed(model: PreTrainedModel, trainer: Trainer) -> PreTrainedModel:
    """In the precision and on the device that the trainer gives the policy."""
    return cast(PreTrainedModel, trainer.precision_plugin.convert_module(model).to(trainer.strategy.root_device))
