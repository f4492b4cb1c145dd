"""Attention over packed rows in which responses share a prompt, as an attention function of transformers.

A packed row is prompt, response, response, prompt, response, ... Queries come in segments: a prompt with its first
response, and each further response on its own. A segment attends to its prompt and to itself, so a further response
sees the prompt, which is computed once, and nothing of the other responses. On a GPU in half precision this is one
variable-length call; elsewhere it is one call of scaled_dot_product_attention per segment.
"""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface, PreTrainedModel

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # before torch 2.10
    varlen_attn = None

NAME = "lightning_dpo_shared_prefix"
"""Deliberately not registered with transformers' mask interface: the model then builds no mask."""
HARMLESS = {
    "cache_position", "is_causal", "output_attentions", "output_hidden_states", "output_router_logits",
    "past_key_values", "position_embeddings", "position_ids", "return_dict", "use_cache",
}  # fmt: skip
"""Arguments that do not change the attention. Any other one that is set is refused."""


class Segments:
    """Which tokens of a packed row attend to which.

    Args:
        tree: for each prompt its length and the lengths of its responses, in the order of the row, in tokens.

    probe_packing reads `calls`, the number of attention calls, and `windows`, the sliding windows that layers passed.
    """

    # A plain class: it travels through the model's keyword arguments, and torch.compile must see one opaque object.
    def __init__(self, tree: Sequence[tuple[int, Sequence[int]]]):
        self.tree = tree
        self.calls = 0
        self.windows: set[int] = set()
        self.device = torch.device("cpu")
        self._masks: dict[tuple[int, int, int | None], Tensor] = {}

    def to(self, device: Any, **_: Any) -> "Segments":
        self.device = torch.device(device)
        return self

    @cached_property
    def pieces(self) -> list[int]:
        """Lengths of prompts and responses in the order of the row."""
        return [length for prompt, responses in self.tree for length in (prompt, *responses)]

    @cached_property
    def queries(self) -> list[int]:
        """Lengths of the query segments in the order of the row."""
        return [length for prompt, (first, *rest) in self.tree for length in (prompt + first, *rest)]

    @cached_property
    def keys(self) -> list[tuple[int, int]]:
        """For each segment, the numbers of the pieces that are its prompt and its response."""
        pairs, prompt = [], 0
        for _, responses in self.tree:
            pairs += [(prompt, prompt + 1 + i) for i in range(len(responses))]
            prompt += 1 + len(responses)
        return pairs

    def visible(self, queries: int, keys: int, window: int | None) -> Tensor:
        """Mask [query, key], shared by all layers. Queries are the last positions; a window includes the query."""
        if (queries, keys, window) not in self._masks:
            key = torch.arange(keys, device=self.device)
            query = key[keys - queries :, None]
            causal = key <= query
            self._masks[queries, keys, window] = causal if window is None else causal & (key > query - window)
        return self._masks[queries, keys, window]

    @cached_property
    def varlen(self) -> "tuple[Tensor, Tensor, Tensor, int, int]":
        """For one variable-length call: rows of the keys, cumulative lengths and longest of the queries and keys."""
        starts = [0, *torch.tensor(self.pieces).cumsum(0).tolist()]
        rows = [torch.arange(starts[i], starts[i + 1]) for pair in self.keys for i in pair]
        keys = [self.pieces[p] + self.pieces[r] for p, r in self.keys]
        ends = [F.pad(torch.tensor(side).cumsum(0), (1, 0)).int().to(self.device) for side in (self.queries, keys)]
        return torch.cat(rows).to(self.device), ends[0], ends[1], max(self.queries), max(keys)


@torch.compiler.disable
def shared_prefix_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    dpo_segments: Segments | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Called by transformers in each layer.

    Args:
        query, key, value: [1, head, token, width]; groups of query heads may share a key head.
        sliding_window: a query sees this many keys, itself included. softcap: c tanh(score / c). s_aux: sinks, [head].

    Errors: RuntimeError for arguments under which the result would differ from the model's own attention.
    """
    if dpo_segments is None:
        raise RuntimeError(
            "packed rows are on, but a layer got no dpo_segments; call the model inside "
            "lightning_dpo.scoring.attention.plain_attention(model) for inputs that are not packed"
        )
    options = {"attention_mask": attention_mask, "dropout": dropout or None, **others}
    refused = sorted(k for k, v in options.items() if v is not None and v is not False and k not in HARMLESS)
    if refused:
        raise RuntimeError(f"attention over packed rows does not support {', '.join(refused)}")
    tokens = sum(dpo_segments.pieces)
    if query.shape[0] != 1 or not query.shape[2] == key.shape[2] == tokens:
        raise RuntimeError(f"expected one packed row of {tokens} tokens and no prefix; found {tuple(query.shape)}")
    dpo_segments.calls += 1
    if sliding_window is not None:
        dpo_segments.windows.add(sliding_window)
    plain = softcap is None and s_aux is None
    if plain and _fits_varlen(query, value):
        return _one_call(query, key, value, dpo_segments, scaling, sliding_window), None
    keys, values = (side.split(dpo_segments.pieces, dim=2) for side in (key, value))
    outputs = []
    for q, (p, r) in zip(query.split(dpo_segments.queries, dim=2), dpo_segments.keys, strict=True):
        k, v = torch.cat([keys[p], keys[r]], 2), torch.cat([values[p], values[r]], 2)
        k, v = _for_each_head(q, k, v)
        whole = q.shape[2] == k.shape[2] and (sliding_window is None or sliding_window >= k.shape[2])
        # With fewer queries than keys, is_causal would align the first query with the first key.
        mask = None if whole and plain else dpo_segments.visible(q.shape[2], k.shape[2], sliding_window)
        if plain:
            outputs.append(F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None, scale=scaling))
        else:
            outputs.append(_by_hand(q, k, v, scaling, mask, softcap, s_aux))
    return torch.cat(outputs, 2).transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, shared_prefix_attention)


def _fits_varlen(query: Tensor, value: Tensor) -> bool:
    half_on_gpu = query.is_cuda and query.dtype in (torch.float16, torch.bfloat16)
    return varlen_attn is not None and half_on_gpu and query.shape[-1] == value.shape[-1] <= 256


def _one_call(q: Tensor, k: Tensor, v: Tensor, segments: Segments, scaling: float | None, window: int | None) -> Tensor:
    """Output [1, token, head, width]. Causal from the bottom right: a segment's last query sees its last key."""
    assert varlen_attn is not None
    rows, ends_q, ends_k, longest_q, longest_k = segments.varlen
    q, k, v = (side[0].transpose(0, 1) for side in (q, k, v))
    options: dict[str, Any] = {"scale": scaling, "window_size": (-1 if window is None else window - 1, 0)}
    if k.shape[1] != q.shape[1]:
        if "enable_gqa" in inspect.signature(varlen_attn).parameters:
            options["enable_gqa"] = True
        else:
            k, v = _for_each_head(q, k, v)
    k, v = k.index_select(0, rows), v.index_select(0, rows)
    return varlen_attn(q.contiguous(), k, v, ends_q, ends_k, longest_q, longest_k, **options)[None]  # type: ignore[index]


def _for_each_head(q: Tensor, k: Tensor, v: Tensor, heads: int = 1) -> tuple[Tensor, Tensor]:
    """Repeat keys and values for the query heads that share them; `heads` is the dimension of heads."""
    groups = q.shape[heads] // k.shape[heads]
    return (k, v) if groups == 1 else (k.repeat_interleave(groups, heads), v.repeat_interleave(groups, heads))


def _by_hand(
    q: Tensor, k: Tensor, v: Tensor, scaling: float | None, mask: Tensor | None, softcap: float | None, s_aux: Any
) -> Tensor:
    """Softmax attention for soft-capped scores and for attention sinks, which no kernel supports."""
    scores = q @ k.transpose(2, 3) * (q.shape[-1] ** -0.5 if scaling is None else scaling)
    scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
    scores = scores if mask is None else scores.masked_fill(~mask, float("-inf"))
    if s_aux is not None:
        sinks = s_aux.reshape(1, -1, 1, 1).expand(1, -1, q.shape[2], 1).to(scores.dtype)
        scores = torch.cat([scores, sinks], -1)
    shares = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(v.dtype)
    return shares[..., : k.shape[2]] @ v


def enable(model: PreTrainedModel) -> None:
    """Use shared_prefix_attention in the model until `disable`: the backward pass recomputes checkpointed layers."""
    if model.config._attn_implementation != NAME:
        model._own_attention = model.config._attn_implementation  # type: ignore[assignment]
        model.set_attn_implementation(NAME)


def disable(model: PreTrainedModel) -> None:
    """Restore the model's own attention."""
    if model.config._attn_implementation == NAME:
        # None is transformers' default: another model that shares this configuration may have enabled packed rows.
        model.set_attn_implementation(getattr(model, "_own_attention", None))  # type: ignore[arg-type]


@contextmanager
def packed_attention(model: PreTrainedModel, stay: bool) -> Iterator[None]:
    """Packed rows inside the block and, with `stay`, after it."""
    before = model.config._attn_implementation == NAME
    enable(model)
    try:
        yield
    except BaseException:
        disable(model)
        raise
    if not (before or stay):
        disable(model)


@contextmanager
def plain_attention(model: PreTrainedModel) -> Iterator[None]:
    """The model's own attention inside the block: for generation and every input that is not a packed row."""
    packed = model.config._attn_implementation == NAME
    disable(model)
    try:
        yield
    finally:
        if packed:
            enable(model)
