"""model + PairBatch -> TokenLogps: the only place with the shift by one, the mask and the head."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from lightning_dpo.batch import PairBatch, Ragged, TokenLogps

CHUNK_LOGITS = 2**24
"""Logits held at once (64 MiB in float32): a chunk is this many divided by the vocabulary, in tokens."""


class Scorer:
    """Scores response tokens with a causal language model.

    The head runs on response positions only, in chunks that the backward pass computes again, so that the
    [tokens, vocabulary] logits never exist at once. A model that changes its logits after the head (soft-capping,
    scaling) goes through its own forward instead. Values are float32 (float64 for a float64 model).

    Errors: ValueError for a pair without a prompt token, whose first response token nothing predicts.
    """

    def __init__(self, model: PreTrainedModel, chunk_logits: int = CHUNK_LOGITS):
        self.model = model
        self.chunk_logits = chunk_logits
        self._plain_head: bool | None = None
        self.forwards = 0
        """Forward passes of the model so far."""

    def __call__(self, batch: PairBatch) -> TokenLogps:
        """Log-probabilities of every trained token of the chosen and rejected responses, in nats."""
        trained = batch.trained and Ragged.cat(batch.trained).values.bool()
        sides = Ragged.cat([batch.prompt, batch.prompt]), Ragged.cat([batch.chosen, batch.rejected])
        logps = self.responses(*sides, trained=trained)
        chosen, rejected = batch.trained_lengths()
        tokens = int(chosen.sum())
        return TokenLogps(Ragged(logps[:tokens], chosen), Ragged(logps[tokens:], rejected))

    def responses(
        self, prompt: Ragged, response: Ragged, padding_side: str = "right", trained: Tensor | None = None
    ) -> Tensor:
        """Log-probability of each response token given all before it, end to end, shape [sum of response lengths].

        Args:
            trained: bool, shape [sum of response lengths]: the tokens to score, the others are context. None: all.
        """
        layout, targets = padded(prompt, response, padding_side), response.values
        if trained is not None:
            layout, targets = layout._replace(predictors=layout.predictors[trained]), targets[trained]
        self.forwards += 1
        if self._plain_head is None:
            self._plain_head = has_plain_head(self.model)
        if not self._plain_head:
            return self._through_own_forward(layout, targets)
        with _captured_head_input(self.model) as captured:
            self.model(**layout.inputs, use_cache=False)
        hidden = captured[0].flatten(0, 1)[layout.predictors]  # [response token, width]
        return self._in_chunks(hidden, targets)

    def _in_chunks(self, hidden: Tensor, targets: Tensor) -> Tensor:
        head = _head(self.model)
        chunk = max(1, self.chunk_logits // self.model.config.get_text_config().vocab_size)
        if len(targets) <= chunk:
            return _head_logps(head, hidden, targets)
        parts = [
            checkpoint(_head_logps, head, h, t, use_reentrant=False)
            for h, t in zip(hidden.split(chunk), targets.split(chunk), strict=True)
        ]
        return torch.cat(parts)  # type: ignore[arg-type]

    def _through_own_forward(self, layout: "Layout", targets: Tensor) -> Tensor:
        width = layout.inputs["input_ids"].shape[1]
        columns, inverse = (layout.predictors % width).unique(return_inverse=True)
        logits = self.model(**layout.inputs, use_cache=False, logits_to_keep=columns).logits
        return _pick(logits[layout.predictors // width, inverse], targets)


class Layout(NamedTuple):
    """`inputs` for the model, and the flat position [row x column] that predicts each response token."""

    inputs: dict[str, Tensor]
    predictors: Tensor


def padded(prompt: Ragged, response: Ragged, side: str = "right") -> Layout:
    """One padded row per sequence. Masks come from lengths, so a pad token that equals the end token hides nothing."""
    device = prompt.values.device
    if (prompt.lengths == 0).any():
        raise ValueError("a pair has no prompt token, so nothing predicts its first response token")
    lengths = prompt.lengths + response.lengths
    column = torch.arange(int(lengths.max()))
    start = (lengths.max() - lengths if side == "left" else torch.zeros_like(lengths))[:, None]
    position = column - start
    inside = (position >= 0) & (position < lengths[:, None])
    predicts = (position >= prompt.lengths[:, None] - 1) & (position < lengths[:, None] - 1)

    input_ids = torch.zeros(inside.shape, dtype=torch.long, device=device)
    ends = [piece for pair in zip(prompt.rows(), response.rows(), strict=True) for piece in pair]
    input_ids[inside.to(device)] = torch.cat(ends).long()
    inputs = {
        "input_ids": input_ids,
        "attention_mask": inside.long().to(device),
        "position_ids": position.clamp(min=0).to(device),
    }
    return Layout(inputs, predicts.flatten().nonzero()[:, 0].to(device))


def full_logits_logps(model: PreTrainedModel, prompt: Tensor, response: Tensor) -> Tensor:
    """The plainest path there is: one unpadded sequence, all logits, log-softmax. An oracle for checks."""
    ids = torch.cat([prompt, response]).long()
    logps = model(input_ids=ids[None], use_cache=False).logits[0].double().log_softmax(-1)
    return torch.stack([logps[i - 1, ids[i]] for i in range(len(prompt), len(ids))])


def has_plain_head(model: PreTrainedModel) -> bool:
    """Whether the model's logits are its head's output untouched, bit for bit, measured on a few tokens."""
    # Several: the embedding of a pad token may be zero, and zero logits look untouched under any scaling.
    ids = torch.arange(min(8, model.config.get_text_config().vocab_size), device=model.device)[None]
    outputs: list = []
    handle = _head(model).register_forward_hook(lambda _m, _a, output: outputs.append(output))
    try:
        with torch.no_grad():
            logits = model(input_ids=ids).logits
    finally:
        handle.remove()
    return len(outputs) == 1 and torch.equal(outputs[0].float(), logits.float())


@contextmanager
def _captured_head_input(model: PreTrainedModel) -> Iterator[list[Tensor]]:
    """Run the model's own forward, but hand its head no rows: any architecture's last hidden states, no logits."""
    captured: list[Tensor] = []

    def keep(_module, args):
        captured.append(args[0])
        return (args[0][:, :0],)

    handle = _head(model).register_forward_pre_hook(keep)
    try:
        yield captured
    finally:
        handle.remove()


def _head(model: PreTrainedModel) -> torch.nn.Module:
    head = model.get_output_embeddings()
    if head is None:
        raise ValueError(f"{type(model).__name__} has no language-model head; a causal language model is needed")
    return head


def _head_logps(head: Callable[[Tensor], Tensor], hidden: Tensor, targets: Tensor) -> Tensor:
    return _pick(head(hidden), targets)


def _pick(logits: Tensor, targets: Tensor) -> Tensor:
    # Half precision keeps 8 bits of a log-probability: the normaliser and the difference need float32.
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits.gather(-1, targets.long()[:, None])[:, 0] - logits.logsumexp(-1)
