"""The contenders: the layouts of this package, and the algorithm of TRL's DPOTrainer."""

from collections.abc import Callable, Collection
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from lightning_dpo.batch import PairBatch
from lightning_dpo.benchmark.contender import OPTIONS, Contender
from lightning_dpo.benchmark.trl_trainer import TrlTrainer
from lightning_dpo.scoring import Scorer, Scoring
from lightning_dpo.scoring.head import States, find_head, in_chunks


class Ours(Contender):
    def __init__(self, build, options: Collection[str], live: bool, scoring: Scoring):
        super().__init__(build, options, live)
        self.scorers = {id(m): Scorer(m, scoring) for m in (self.model, self.reference) if m is not None}

    def logps(self, model, batch):
        scored = self.scorers[id(model)](batch)
        return scored.chosen.sum(), scored.rejected.sum()


class TrlAlgorithm(Contender):
    """DPO as TRL 1.16 computes it on a GPU, without TRL's further metrics (entropy, mean logits, top-1).

    Chosen and rejected sequences are rows of one right-padded batch, each with its prompt. The head runs on the
    response positions only, in chunks that the backward pass recomputes.
    """

    def __init__(self, build, options: Collection[str], live: bool):
        super().__init__(build, options, live)
        self.heads: dict[int, Any] = {id(m): find_head(m) for m in (self.model, self.reference) if m is not None}

    def logps(self, model, batch):
        inputs, trained = _rows(batch)
        hidden = model.base_model(**inputs, use_cache=False).last_hidden_state[:, :-1]
        targets = inputs["input_ids"][:, 1:]
        flat = in_chunks([States(self.heads[id(model)], hidden[trained])], targets[trained])["logps"]
        sums = torch.zeros(trained.shape, dtype=flat.dtype, device=flat.device).masked_scatter(trained, flat).sum(1)
        return sums[: len(batch)], sums[len(batch) :]


class Plain(Contender):
    """DPO as in tutorials: one padded batch, with the logits of all positions at once."""

    def logps(self, model, batch):
        inputs, trained = _rows(batch)
        logits = model(**inputs, use_cache=False).logits[:, :-1].float()
        logps = logits.log_softmax(-1).gather(2, inputs["input_ids"][:, 1:, None])[..., 0]
        sums = (logps * trained).sum(1)
        return sums[: len(batch)], sums[len(batch) :]


def _rows(batch: PairBatch) -> tuple[dict[str, Tensor], Tensor]:
    """Chosen and rejected sequences with their prompts as rows of one right-padded batch, and a mask of the response
    tokens without the first column, [row, column - 1]."""
    rows = [
        torch.cat([p, r]).long()
        for side in (batch.chosen, batch.rejected)
        for p, r in zip(batch.prompt.rows(), side.rows(), strict=True)
    ]
    ids = pad_sequence(rows, batch_first=True)
    prompt = torch.cat([batch.prompt.lengths, batch.prompt.lengths])[:, None]
    column, lengths = torch.arange(ids.shape[1]), torch.tensor([[len(row)] for row in rows])
    attended = column < lengths
    trained = (attended & (column >= prompt))[:, 1:]
    return {"input_ids": ids, "attention_mask": attended.long().to(ids.device)}, trained.to(ids.device)


CONTENDERS: dict[str, Callable[..., Contender]] = {
    "trl": partial(TrlTrainer, live=True, as_on_gpu=True),
    "trl-as-shipped": partial(TrlTrainer, live=True, as_on_gpu=False),
    "trl-precomputed": partial(TrlTrainer, live=False, as_on_gpu=True),
    "plain": partial(Plain, live=True),
    "base": partial(TrlAlgorithm, live=True),
    "base-precomputed": partial(TrlAlgorithm, live=False),
    "padded-live": partial(Ours, live=True, scoring="padded"),
    "padded": partial(Ours, live=False, scoring="padded"),
    "shared-live": partial(Ours, live=True, scoring="shared_prefix"),
    "shared": partial(Ours, live=False, scoring="shared_prefix"),
}
"""`plain` holds all logits at once; `trl` is TRL's DPOTrainer on its GPU path, `base` the same algorithm without TRL;
`padded` and `shared` are this package's layouts. `plain`, `trl`, `base` and `-live` run the reference in each step; the
others compute its log-probabilities once."""


def make(name: str, build: Callable[[], PreTrainedModel]) -> Contender:
    """The contender with a name such as `shared` or `shared+compile+autocast`.

    Errors: ValueError for an unknown name or option, and for TRL if it is not installed.
    """
    plain, *options = name.split("+")
    if plain not in CONTENDERS:
        raise ValueError(f"{name}: unknown contender {plain!r}; allowed: {', '.join(CONTENDERS)}")
    if unknown := sorted(set(options) - set(OPTIONS)):
        raise ValueError(f"{name}: unknown option {unknown[0]!r}; allowed: {', '.join(OPTIONS)}")
    if plain.startswith("trl") and find_spec("trl") is None:
        raise ValueError(f"{name} needs TRL; type pip install 'lightning-dpo[bench]'")
    return CONTENDERS[plain](build, options)
