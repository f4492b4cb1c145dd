"""model + PairBatch -> TokenLogps. layout.py has the shift by one, attention.py the attention, head.py the head."""

import logging
from collections.abc import Collection
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lightning_dpo.batch import PairBatch, TokenLogps
from lightning_dpo.errors import ConfigError
from lightning_dpo.losses.types import PairLogps
from lightning_dpo.models.checks import rope_limit
from lightning_dpo.models.layers import base_model
from lightning_dpo.ragged import Ragged, Sharing, ranges
from lightning_dpo.scoring.attention import packed_attention, plain_attention
from lightning_dpo.scoring.causality import check_causal
from lightning_dpo.scoring.head import Head, States, captured_head_input, find_head, in_chunks
from lightning_dpo.scoring.layout import Layout, padded_groups, shared_prefix
from lightning_dpo.scoring.load_balancing import load_balancing_loss
from lightning_dpo.scoring.packing_check import probe_packing, why_not_packed

log = logging.getLogger(__name__)

Scoring = Literal["auto", "shared_prefix", "padded"]


class Scores(NamedTuple):
    """Log-probabilities of a batch and what else the loss needs, per token; a response's value is the sum.

    `collision` is log Σ_k π(k)² and `kl` is KL(π_ref || π) at each response position, over the whole vocabulary.
    `aux_loss` is the load-balancing loss of a mixture of experts, a scalar; None for other models.
    """

    logps: TokenLogps
    collision: TokenLogps | None = None
    kl: TokenLogps | None = None
    reference: TokenLogps | None = None
    aux_loss: Tensor | None = None


class Scorer:
    """Scores response tokens with a causal language model.

    The head runs on response positions only, in chunks that the backward pass recomputes, so the [tokens, vocabulary]
    logits never exist at once. Values are float32 (float64 for a float64 model).

    Rows are picked by index_select: the backward pass of `rows[index]` adds in an order that depends on threads, so
    two runs on a CPU would differ.

    Args:
        scoring: how a batch is laid out. `padded` works for every model. `shared_prefix` computes each distinct prompt
            and response once, in one packed row. `auto` takes it if it gives the model's own numbers, and pads if not.
        chunk_logits: logits held at once.

    Errors: ConfigError for `shared_prefix` where it is unsound; ValueError for a pair without a prompt token.
    """

    def __init__(self, model: PreTrainedModel, scoring: Scoring = "auto", chunk_logits: int | None = None):
        self.model = model
        self.chunk_logits = chunk_logits
        self.scoring: Scoring = scoring
        self.why_not_packed = None if scoring == "padded" else why_not_packed(model)
        """Why `auto` pads batches; None where it does not."""
        self._refuse()
        self._rope_limit = rope_limit(model.config)
        self._prepared = False
        self._head: Head | None = None
        self.forwards = 0
        """Batches scored so far."""

    def __call__(self, batch: PairBatch) -> TokenLogps:
        """Log-probabilities of every trained token of the chosen and rejected responses, in nats."""
        return self.score(batch).logps

    def score(self, batch: PairBatch, needs: Collection[str] = (), reference: "Scorer | None" = None) -> Scores:
        """What a loss `needs` (losses/needs.py). "reference_kl" requires a scorer of the reference; with "chosen_only"
        the rejected side is not scored and its rows are empty."""
        only = slice(1 if "chosen_only" in needs else 2)
        prompt = Ragged.cat([batch.prompt, batch.prompt][only])
        response = Ragged.cat([batch.chosen, batch.rejected][only])
        shared = batch.sharing.first(len(response))
        tokens, back = _distinct_tokens(response, shared, batch.trained and Ragged.cat(batch.trained[only]).values)
        states, aux_loss = self._states(prompt, response, shared, tokens)
        models = [states]
        if reference is not None and "reference_kl" in needs:
            with torch.no_grad():
                models.append(reference._states(prompt, response, shared, tokens)[0])
        targets = response.values if tokens is None else response.values[tokens.to(response.values.device)]
        rows = in_chunks(models, targets, self.chunk_logits, collision="collision" in needs)
        rows = rows if back is None else {name: row.index_select(0, back.to(row.device)) for name, row in rows.items()}
        chosen, rejected = batch.trained_lengths()
        rejected = torch.zeros_like(rejected) if "chosen_only" in needs else rejected
        split = int(chosen.sum())
        sides = {n: TokenLogps(Ragged(row[:split], chosen), Ragged(row[split:], rejected)) for n, row in rows.items()}
        return Scores(**sides, aux_loss=aux_loss)

    def responses(self, prompt: Ragged, response: Ragged) -> Tensor:
        """Log-probability of each response token, end to end, shape [sum of response lengths]."""
        states, _ = self._states(prompt, response, Sharing.of(prompt, response))
        return in_chunks([states], response.values, self.chunk_logits)["logps"]

    @property
    def layout(self) -> Literal["shared_prefix", "padded"]:
        """How batches are laid out; before `prepare`, judged by the model's class only."""
        return "padded" if self.scoring == "padded" or self.why_not_packed else "shared_prefix"

    def _states(
        self, prompt: Ragged, response: Ragged, shared: Sharing, tokens: Tensor | None = None
    ) -> tuple[States, Tensor | None]:
        """States that predict the response tokens of these numbers (ascending; None: all), and the experts' loss."""
        if (prompt.lengths == 0).any():
            raise ValueError("a pair has no prompt token, so nothing predicts its first response token")
        longest = int((prompt.lengths + response.lengths).max())
        if self._rope_limit is not None and longest > self._rope_limit:
            raise ConfigError(
                f"a row of {longest} tokens would change the rotary angles of the rows beside it, which this model "
                f"chooses by the longest one from {self._rope_limit} tokens on; type data.max_length={self._rope_limit}"
            )
        self.prepare()
        self.forwards += 1
        if self.layout == "shared_prefix":
            # The backward pass recomputes checkpointed layers, so for them the attention stays enabled.
            recomputes = base_model(self.model).is_activation_checkpointing
            with packed_attention(self.model, stay=torch.is_grad_enabled() and recomputes):
                return self._forward([shared_prefix(prompt, response, shared)], tokens)
        with plain_attention(self.model):
            return self._forward(padded_groups(prompt, response), tokens)

    def prepare(self) -> None:
        """Check that the model is causal, settle the layout by the probe, and find the head. The first batch does this
        if nothing did before."""
        if self._prepared:
            return
        self._prepared = True
        check_causal(self.model)
        if self.layout == "shared_prefix":
            self.why_not_packed = probe_packing(self.model)
            self._refuse()
            if self.why_not_packed:
                log.warning("scoring=auto pads batches because packed rows would be wrong: %s", self.why_not_packed)
        self._head = find_head(self.model)

    def _refuse(self) -> None:
        if self.scoring == "shared_prefix" and self.why_not_packed:
            raise ConfigError(f"scoring=shared_prefix is unsound: {self.why_not_packed}; type scoring=auto or padded")

    def _forward(self, layouts: list[Layout], tokens: Tensor | None) -> tuple[States, Tensor | None]:
        parts, order, routed = [], [], []
        for layout in layouts:
            predictors, numbers = _wanted(layout, tokens)
            if self._head is None:
                outputs, rows = self._logits(layout, predictors)
            else:
                with captured_head_input(self.model) as captured:
                    outputs = self.model(**layout.inputs, use_cache=False)
                rows = captured[0].flatten(0, 1).index_select(0, predictors)
            parts.append(rows)
            order.append(numbers)
            routed.append((getattr(outputs, "router_logits", None), layout.members))
        if len(parts) > 1:
            parts = [torch.cat(parts).index_select(0, torch.cat(order).argsort().to(parts[0].device))]
        return States(self._head or Head(torch.nn.Identity()), parts[0]), load_balancing_loss(self.model, routed)

    def _logits(self, layout: Layout, predictors: Tensor) -> tuple[object, Tensor]:
        """Logits by the model's own forward pass, for a head that find_head does not know."""
        width = layout.inputs["input_ids"].shape[1]
        columns, inverse = (predictors % width).unique(return_inverse=True)
        outputs = self.model(**layout.inputs, use_cache=False, logits_to_keep=columns)
        logits = outputs.logits
        if logits.shape[1] != len(columns):  # a model that ignores logits_to_keep returns those of every column
            logits = logits.index_select(1, columns)
        return outputs, logits.flatten(0, 1).index_select(0, predictors // width * len(columns) + inverse)


def _distinct_tokens(response: Ragged, shared: Sharing, trained: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Numbers of the response tokens to score, those of equal sequences once, and for each trained token its place
    among them; (None, None) where these are all tokens in order."""
    twin = torch.tensor(shared.twin)
    if trained is None and torch.equal(twin, torch.arange(len(twin))):
        return None, None
    first = response.lengths.cumsum(0) - response.lengths
    numbers = ranges(first[twin], response.lengths)
    return (numbers if trained is None else numbers[trained.cpu().bool()]).unique(return_inverse=True)


def _wanted(layout: Layout, tokens: Tensor | None) -> tuple[Tensor, Tensor]:
    """Predictors of those of the tokens that this layout holds, and the tokens' numbers, on the CPU."""
    own = torch.arange(len(layout.predictors)) if layout.tokens is None else layout.tokens
    if tokens is None:
        return layout.predictors, own
    inside = torch.isin(own, tokens, assume_unique=True)
    return layout.predictors[inside.to(layout.predictors.device)], own[inside]


def full_logits_logps(model: PreTrainedModel, prompt: Tensor, response: Tensor) -> Tensor:
    """For checks, the simplest possible path: one unpadded sequence, all logits, log-softmax in float64."""
    ids = torch.cat([prompt, response]).long()
    with plain_attention(model):
        logps = model(input_ids=ids[None], use_cache=False).logits[0].double().log_softmax(-1)
    return torch.stack([logps[i - 1, ids[i]] for i in range(len(prompt), len(ids))])


def pair_logps(scores: Scores, index: Tensor | None = None, margin: Tensor | None = None) -> PairLogps:
    """What a loss receives: sums over each response's tokens, and the tokens themselves."""
    policy, reference, collision, kl = scores.logps, scores.reference, scores.collision, scores.kl
    device = policy.chosen.values.device
    return PairLogps(
        chosen=policy.chosen.sum(),
        rejected=policy.rejected.sum(),
        chosen_tokens=policy.chosen.lengths.to(device),
        rejected_tokens=policy.rejected.lengths.to(device),
        ref_chosen=reference and reference.chosen.sum(),
        ref_rejected=reference and reference.rejected.sum(),
        target_margin=None if margin is None else margin.to(policy.chosen.values),
        index=index,
        chosen_collision=collision and collision.chosen.sum(),
        rejected_collision=collision and collision.rejected.sum(),
        chosen_kl=kl and kl.chosen.sum(),
        rejected_kl=kl and kl.rejected.sum(),
        tokens=policy,
        ref_tokens=reference,
    )
