"""A contender: a model and its optimizer, which take the same batches as all others."""

from collections.abc import Callable, Collection

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from transformers import PreTrainedModel

from lightning_dpo import losses
from lightning_dpo.batch import PairBatch
from lightning_dpo.losses import PairLogps
from lightning_dpo.models.layers import checkpoint_activations, compile_layers

BETA, LR = 0.1, 1e-6

OPTIONS = ("autocast", "checkpointing", "compile")
"""Appended to a contender's name: `shared+compile`."""


class Contender:
    """A model, its optimizer, and `step(batch)`: forward, backward, clip, update; returns the loss.

    Args:
        build: makes the policy; called again for a live reference.
        options: some of OPTIONS.
        live: whether each step runs the reference; otherwise `prepare` computes its log-probabilities once.
    """

    def __init__(self, build: Callable[[], PreTrainedModel], options: Collection[str], live: bool):
        self.model, self.options, self.live = build(), options, live
        if "checkpointing" in options:
            checkpoint_activations(self.model)
        if "compile" in options:
            compile_layers(self.model)
        self.reference = build().requires_grad_(False) if live else None
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=LR, weight_decay=0.0, fused=True)
        self.cached: dict[int, tuple[Tensor, Tensor]] = {}

    def logps(self, model: PreTrainedModel, batch: PairBatch) -> tuple[Tensor, Tensor]:
        """Summed log-probabilities of the chosen and of the rejected responses, each [pair]."""
        raise NotImplementedError

    def prepare(self, batches: list[PairBatch]) -> None:
        if not self.live:
            with torch.no_grad(), self._precision():
                self.cached = {id(batch): self.logps(self.model, batch) for batch in batches}

    def step(self, batch: PairBatch) -> Tensor:
        loss = self.backward(batch)
        clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss

    def backward(self, batch: PairBatch) -> Tensor:
        """Compute the gradients; returns the loss."""
        with self._precision():
            if self.reference is not None:
                with torch.no_grad():
                    reference = self.logps(self.reference, batch)
            else:
                reference = self.cached[id(batch)]
            chosen, rejected = self.logps(self.model, batch)
            pairs = PairLogps(chosen, rejected, ref_chosen=reference[0], ref_rejected=reference[1])
            loss = losses.dpo(pairs, beta=BETA).loss.mean()
        loss.backward()
        return loss.detach()

    def _precision(self):
        return torch.autocast(self.model.device.type, torch.bfloat16, enabled="autocast" in self.options)
