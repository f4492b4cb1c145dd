"""Reference log-probabilities from disk."""

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
from lightning_dpo.scoring import Scorer, Scoring

CACHE_DIR = "~/.cache/lightning_dpo/reference"
REMEDY = "type reference.path=FOLDER (in Python: CachedReference(path=...))"


class CachedReference(Reference):
    """Log-probabilities of every pair, computed once, kept on disk, and joined to the rows before they are sampled.

    An entry's key holds everything that changes its numbers: weights, configuration, token ids, dtype and precision. It
    does not hold beta, loss, learning rate, seed or output folder. Requires `trainer.fit(module, datamodule=...)` with
    a PreferenceDataModule.

    Args:
        path: folder or hub id of the reference; None takes the policy as it is before training.
        cache_dir: folder of the store.
    """

    def __init__(self, path: str | None = None, cache_dir: str | Path = CACHE_DIR):
        super().__init__(path)
        self.store = ReferenceStore(cache_dir)
        self.forwards = 0
        self._scoring: Scoring = "auto"
        self._weights: str | None = None

    def bind(self, policy, load, scoring):
        super().bind(policy, load, scoring)
        self._weights = None
        self._scoring = scoring
        source = self.path or policy.name_or_path
        self._load = partial(load, source) if source else None

    def prepare(self, policy: PreTrainedModel, trainer: Trainer) -> None:
        datamodule: Any = getattr(trainer, "datamodule", None)
        if datamodule is None:
            raise ValueError(
                "reference=cached joins its numbers to the rows of a PreferenceDataModule, but this trainer has none; "
                "call trainer.fit(module, datamodule=...) or use CopyReference()"
            )
        if not hasattr(datamodule, "pairs"):
            raise ValueError(
                "reference=cached computes its numbers for the pairs of the data module, but "
                f"{type(datamodule).__name__} has no method pairs() -> {{name: PairBatch}}; add one, or use "
                "PreferenceDataModule or CopyReference()"
            )
        sources = datamodule.pairs().items()
        # A source may hold the values of another module's reference.
        missing = {name: p for name, p in sources if p.reference_of is None or p.reference_of != self._weights}
        if not missing:
            return
        model = _placed(policy if self.path is None else self._loaded(), trainer)
        self.check(model, trainer)
        weights = weights_sha256(model)
        if self._weights not in (None, weights):
            raise ValueError(f"the reference is the policy before training, which has been trained since; {REMEDY}")
        self._weights, self.is_policy = weights, self.path is None
        scorer = Scorer(model, self._scoring)
        scorer.prepare()
        with trainer.precision_plugin.forward_context(), torch.no_grad():
            for name, pairs in missing.items():
                key = content_key(model, weights, pairs, str(trainer.precision))
                work = Precomputation(scorer, pairs, name)
                pairs.reference = self.store.get(key, pairs, work.parts, work, trainer.strategy)
                pairs.reference_of = weights
        self.forwards += scorer.forwards

    def forward(self, batch: PairBatch) -> TokenLogps:
        if batch.reference is None:
            raise ValueError("this batch has no cached reference values; take batches from the trainer's datamodule")
        return batch.reference

    @contextmanager
    def live(self, trainer: Trainer) -> Iterator[Scorer]:
        """Loads the weights for the duration of the context: only the numbers are kept."""
        model = _placed(self._loaded(), trainer)
        if self._weights is None or weights_sha256(model) != self._weights:
            raise ValueError(f"{model.name_or_path}: the cached values were computed with other weights; {REMEDY}")
        yield Scorer(model, self._scoring)

    def _loaded(self) -> PreTrainedModel:
        if self._load is None:
            raise ValueError(f"the policy was passed as an object, so its start cannot be loaded again; {REMEDY}")
        return self._load().requires_grad_(False).eval()


def _placed(model: PreTrainedModel, trainer: Trainer) -> PreTrainedModel:
    """The model in the precision and on the device that the trainer uses for the policy."""
    return cast(PreTrainedModel, trainer.precision_plugin.convert_module(model).to(trainer.strategy.root_device))
