"""Where reference log-probabilities come from: a store of numbers (cached), a frozen copy, or nowhere (None).

A reference is called with a batch and returns its TokenLogps. `bind` tells it the policy that it belongs to, `prepare`
runs before training, and `live` lends a scorer for sequences that no data set holds (sampled completions).
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import Trainer
from torch import nn
from transformers import PreTrainedModel

from lightning_dpo.batch import PairBatch, TokenLogps
from lightning_dpo.precompute import Precomputation
from lightning_dpo.scoring import Scorer, Scoring
from lightning_dpo.store import ReferenceStore, content_key, weights_sha256

CACHE_DIR = "~/.cache/lightning_dpo/reference"


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
        """Called on every rank before training, before the policy has changed."""

    def forward(self, batch: PairBatch) -> TokenLogps:
        raise NotImplementedError

    def live(self, trainer: Trainer):
        """Context manager: a Scorer of the reference, on the trainer's device."""
        raise NotImplementedError


class CopyReference(Reference):
    """A frozen second model beside the policy: moved and cast with it, left out of checkpoints and of the optimizer."""

    model: PreTrainedModel
    has_distribution = True

    def bind(self, policy, load, scoring):
        self.model = copy.deepcopy(policy) if self.path is None else load(self.path)
        self.model.requires_grad_(False).eval()
        self._scorer, self._scoring = Scorer(self.model, scoring), scoring

    @property
    def forwards(self) -> int:
        return self._scorer.forwards

    @property
    def scorer(self) -> Scorer:
        return self._scorer

    @torch.no_grad()
    def forward(self, batch: PairBatch) -> TokenLogps:
        return self._scorer(batch)

    @contextmanager
    def live(self, trainer: Trainer) -> Iterator[Scorer]:
        yield Scorer(self.model, self._scoring)


class CachedReference(Reference):
    """Log-probabilities of every pair, computed once, kept on disk and joined to the rows before the sampler sees them.

    An entry is found by what changes its numbers: weights, token ids, dtype and precision. Beta, the loss, the learning
    rate, the seed and the output folder do not. Needs a PreferenceDataModule (`trainer.fit(module, datamodule=...)`).

    Args:
        path: folder or hub id of the reference; None takes the policy as it is before training.
        cache_dir: folder of the store.
    """

    def __init__(self, path: str | None = None, cache_dir: str | Path = CACHE_DIR):
        super().__init__(path)
        self.store = ReferenceStore(Path(cache_dir).expanduser())
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
