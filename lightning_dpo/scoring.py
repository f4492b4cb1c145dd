"""model + PairBatch -> TokenLogps: the only place with the shift by one, the mask and the head."""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from lightning_dpo.batch import PairBatch, Ragged, TokenLogps

CHUNK_LOGITS = 2**24
"""Logits held at once (64 MiB in float32): a chunk is this many divided by the vocabulary, in tokens."""


class Scores(NamedTuple):
    """Log-probabilities of a batch, and what the loss asked for besides; each value sums to that of its response.

    `collision` is log Σ_k π(k)² and `kl` is KL(π_ref || π) at each response position, over the whole vocabulary.
    """

    logps: TokenLogps
    collision: TokenLogps | None = None
    kl: TokenLogps | None = None
    reference: TokenLogps | None = None


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
        return self.score(batch).logps

    def score(self, batch: PairBatch, needs: Collection[str] = (), reference: "Scorer | None" = None) -> Scores:
        """What a loss `needs` (losses.types.needs); "reference_kl" takes a scorer of the reference.

        With "chosen_only" the rejected side is not scored: its rows are empty.
        """
        only = slice(1 if "chosen_only" in needs else 2)
        prompt, response = (
            Ragged.cat([batch.prompt, batch.prompt][only]),
            Ragged.cat([batch.chosen, batch.rejected][only]),
        )
        trained = batch.trained and Ragged.cat(batch.trained[only]).values.bool()
        targets = response.values if trained is None else response.values[trained]
        states = [self._states(prompt, response, trained=trained)]
        if reference is not None and "reference_kl" in needs:
            with torch.no_grad():
                states.append(reference._states(prompt, response, trained=trained))
        rows = self._in_chunks(states, targets, collision="collision" in needs)
        chosen, rejected = batch.trained_lengths()
        rejected = torch.zeros_like(rejected) if "chosen_only" in needs else rejected
        split = int(chosen.sum())
        sides = {n: TokenLogps(Ragged(row[:split], chosen), Ragged(row[split:], rejected)) for n, row in rows.items()}
        return Scores(**sides)

    def responses(self, prompt: Ragged, response: Ragged, padding_side: str = "right") -> Tensor:
        """Log-probability of each response token given all before it, end to end, shape [sum of response lengths]."""
        return self._in_chunks([self._states(prompt, response, padding_side)], response.values)["logps"]

    def _states(
        self, prompt: Ragged, response: Ragged, padding_side: str = "right", trained: Tensor | None = None
    ) -> "States":
        """One forward pass; `trained` (bool) are the response tokens to score, None: all."""
        layout = padded(prompt, response, padding_side)
        predictors = layout.predictors if trained is None else layout.predictors[trained]
        self.forwards += 1
        if self._plain_head is None:
            self._plain_head = has_plain_head(self.model)
        if not self._plain_head:
            width = layout.inputs["input_ids"].shape[1]
            columns, inverse = (predictors % width).unique(return_inverse=True)
            logits = self.model(**layout.inputs, use_cache=False, logits_to_keep=columns).logits
            return States(torch.nn.Identity(), logits[predictors // width, inverse])
        with _captured_head_input(self.model) as captured:
            self.model(**layout.inputs, use_cache=False)
        return States(_head(self.model), captured[0].flatten(0, 1)[predictors])

    def _in_chunks(self, models: "list[States]", targets: Tensor, collision: bool = False) -> dict[str, Tensor]:
        """`models` is the policy's states and, for the KL divergence, the reference's."""
        names = ["logps", *(["collision"] if collision else []), *(["kl", "reference"] if len(models) > 1 else [])]
        chunk = max(1, self.chunk_logits // self.model.config.get_text_config().vocab_size)
        heads = [model.head for model in models]
        if len(targets) <= chunk:
            measured = _measure(heads, targets, collision, *(model.rows for model in models))
        else:
            pieces = zip(targets.split(chunk), *(model.rows.split(chunk) for model in models), strict=True)
            parts = [checkpoint(_measure, heads, t, collision, *rows, use_reentrant=False) for t, *rows in pieces]
            measured = torch.cat(parts, dim=1)  # type: ignore[arg-type]
        return dict(zip(names, measured, strict=True))


class States(NamedTuple):
    """What predicts each response token, shape [response token, width], and the head that makes logits of it."""

    head: Callable[[Tensor], Tensor]
    rows: Tensor


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


def _measure(heads: list[Callable], targets: Tensor, collision: bool, rows: Tensor, *ref_rows: Tensor) -> Tensor:
    """Shape [measure, token]: log-probabilities, and with them the collision term, the KL and the reference's."""
    logits = _exact(heads[0](rows))
    normaliser = logits.logsumexp(-1)
    measured = [_pick(logits, targets) - normaliser]
    if collision:
        measured.append((2 * logits).logsumexp(-1) - 2 * normaliser)
    for ref in ref_rows:
        with torch.no_grad():
            ref_logits = _exact(heads[1](ref))
            # not log_softmax, which rounds otherwise: the KL of equal models is exactly 0
            ref_logp = ref_logits - ref_logits.logsumexp(-1, keepdim=True)
        if ref_logp.shape != logits.shape:
            raise ValueError(f"policy and reference differ in vocabulary: {logits.shape[-1]} and {ref_logp.shape[-1]}")
        share = ref_logp.exp()
        # a token that both exclude with a logit of -inf has no difference
        difference = (ref_logp - (logits - normaliser[:, None])).masked_fill(share == 0, 0.0)
        measured += [(share * difference).sum(-1), _pick(ref_logp, targets)]
    return torch.stack(measured)


def _exact(logits: Tensor) -> Tensor:
    # Half precision keeps 8 bits of a log-probability: the normaliser and the difference need float32.
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _pick(rows: Tensor, targets: Tensor) -> Tensor:
    return rows.gather(-1, targets.long()[:, None])[:, 0]
