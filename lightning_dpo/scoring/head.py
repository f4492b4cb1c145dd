"""The head: log-probabilities of tokens from hidden states, in chunks, never [tokens, vocabulary] at once."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from lightning_dpo.scoring.attention import plain_attention

CHUNK_LOGITS = {"cpu": 2**23, "cuda": 2**26}
"""Logits held at once (32 and 256 MiB in float32). A chunk has this many divided by the vocabulary, in tokens."""

AFTERWARDS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "final_logit_softcapping": lambda logits, cap: cap * torch.tanh(logits / cap),  # Gemma
    "logits_scaling": lambda logits, scale: logits / scale,  # Granite
    "logit_scale": lambda logits, scale: logits * scale,  # Cohere
    "lm_head_multiplier": lambda logits, scale: logits * scale,  # Falcon-H1
}
"""How models transform the head's output, by configuration key. `find_head` measures before it accepts one."""


class Head(NamedTuple):
    """rows [token, width] -> logits [token, vocabulary], equal to the model's own.

    `linear` is set where the logits are the plain output of this layer: their gradient then has a closed form.
    """

    logits: Callable[[Tensor], Tensor]
    linear: torch.nn.Linear | None = None


class States(NamedTuple):
    """Hidden states that predict the response tokens, shape [response token, width], and the head for them."""

    head: Head
    rows: Tensor


def find_head(model: PreTrainedModel) -> Head | None:
    """The model's head and the transformation after it, if they reproduce the model's own logits on a few tokens.

    None where they do not: then only the model's own forward pass gives its logits.
    """
    layer = output_layer(model)
    raw, logits = _few_logits(model, layer)
    if raw is None:
        return None
    if torch.equal(raw, logits):
        # An adapter on the head is another class, and a hook may do anything.
        plain = type(layer) is torch.nn.Linear and not layer._forward_hooks and not layer._forward_pre_hooks
        return Head(layer, layer if plain else None)  # type: ignore[arg-type]
    config = model.config.get_text_config()
    tolerance = 8 * torch.finfo(model.dtype).eps
    close: Any = {"rtol": tolerance, "atol": tolerance * float(raw.abs().max())}
    for key, change in AFTERWARDS.items():
        factor = getattr(config, key, None)
        if factor and torch.allclose(change(raw, factor), logits, **close):
            return Head(lambda rows, change=change, factor=factor: change(to_float32(layer(rows)), factor))
    return None


def _few_logits(model: PreTrainedModel, layer: torch.nn.Module) -> tuple[Tensor | None, Tensor]:
    # Several tokens: a pad token's embedding may be zero, and zero logits look the same under any scaling.
    ids = torch.arange(min(8, model.config.get_text_config().vocab_size), device=model.device)[None]
    outputs: list[Any] = []
    hook = layer.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    with hook, torch.no_grad(), plain_attention(model):
        logits = model(input_ids=ids, use_cache=False).logits
    return (to_float32(outputs[0]) if len(outputs) == 1 else None), to_float32(logits)


def output_layer(model: PreTrainedModel) -> torch.nn.Module:
    head = model.get_output_embeddings()
    if head is None:
        raise ValueError(f"{type(model).__name__} has no language-model head; a causal language model is needed")
    return head


@contextmanager
def captured_head_input(model: PreTrainedModel) -> Iterator[list[Tensor]]:
    """Inside the block, capture the input of the model's head, for any architecture, and compute no logits."""
    captured: list[Tensor] = []

    def keep(_module, args):
        captured.append(args[0])
        return (args[0][:, :0],)

    with output_layer(model).register_forward_pre_hook(keep):
        yield captured


def in_chunks(
    models: list[States], targets: Tensor, chunk_logits: int | None = None, collision: bool = False
) -> dict[str, Tensor]:
    """Measures of each target token, shape [token] each: `logps`, on request `collision`, and, where `models` holds the
    reference after the policy, `kl` and `reference` (defined at Scores). The backward pass recomputes the logits.
    """
    head, rows = models[0]
    names = ["logps", *(["collision"] if collision else []), *(["kl", "reference"] if len(models) > 1 else [])]
    chunk = _chunk(models[0], targets, chunk_logits)
    if head.linear is not None and names == ["logps"]:
        weight, bias = head.linear.weight, head.linear.bias
        return {"logps": _LinearLogps.apply(rows, weight, bias, targets.long(), chunk)}  # type: ignore[dict-item]
    heads = [model.head.logits for model in models]
    if len(targets) <= chunk:
        measured = _measure(heads, targets, collision, *(model.rows for model in models))
    else:
        pieces = zip(targets.split(chunk), *(model.rows.split(chunk) for model in models), strict=True)
        parts = [checkpoint(_measure, heads, t, collision, *states, use_reentrant=False) for t, *states in pieces]
        measured = torch.cat(parts, dim=1)  # type: ignore[arg-type]
    return dict(zip(names, measured, strict=True))


def _chunk(states: States, targets: Tensor, chunk_logits: int | None) -> int:
    budget = chunk_logits or CHUNK_LOGITS.get(targets.device.type, CHUNK_LOGITS["cpu"])
    if states.head.linear is not None:
        return max(1, budget // states.head.linear.out_features)
    with torch.no_grad():
        vocabulary = states.head.logits(states.rows[:1]).shape[-1]
    return max(1, budget // vocabulary)


class _LinearLogps(torch.autograd.Function):
    """log softmax(rows @ weight.T + bias)[targets]. The backward pass computes (onehot - softmax) times the gradient,
    one chunk at a time, and sums the weight's gradient over the chunks in float32."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, chunk: int) -> Tensor:
        device = rows.device.type
        # The type that autocast would use, kept because autocast is off in the backward pass.
        ctx.dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        with torch.autocast(device, enabled=False):
            states, matrix, shift = _cast(ctx.dtype, rows, weight, bias)
            logps, normalisers = [], []
            for state, target in zip(states.split(chunk), targets.split(chunk), strict=True):
                logits = to_float32(F.linear(state, matrix, shift))
                normalisers.append(logits.logsumexp(-1))
                logps.append(gather_targets(logits, target) - normalisers[-1])
        ctx.save_for_backward(rows, weight, bias, targets, torch.cat(normalisers))
        ctx.chunk = chunk
        return torch.cat(logps)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        rows, weight, bias, targets, normalisers = ctx.saved_tensors
        states, matrix, shift = _cast(ctx.dtype, rows, weight, bias)
        of_rows, of_weight, of_bias = ctx.needs_input_grad[:3]
        total = torch.zeros_like(weight, dtype=normalisers.dtype) if of_weight else None
        total_bias = torch.zeros_like(bias, dtype=normalisers.dtype) if of_bias else None
        found = []
        pieces = (t.split(ctx.chunk) for t in (states, targets, normalisers, gradient))
        for state, target, normaliser, g in zip(*pieces, strict=True):
            slope = to_float32(F.linear(state, matrix, shift)).sub_(normaliser[:, None]).exp_().mul_(-g[:, None])
            slope.scatter_add_(1, target[:, None], g[:, None].to(slope.dtype))
            if total_bias is not None:
                total_bias += slope.sum(0)
            slope = slope.to(ctx.dtype)
            if of_rows:
                found.append(slope @ matrix)
            if total is not None:
                _add_product(total, slope.T, state)
        return (
            torch.cat(found).to(rows.dtype) if found else None,
            None if total is None else total.to(weight.dtype),
            None if total_bias is None else total_bias.to(bias.dtype),
            None,
            None,
        )


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b in the dtype of the sum: rounding each chunk's product to bf16 would bias the gradient."""
    if a.dtype == total.dtype or not a.is_cuda:
        total.addmm_(a.to(total.dtype), b.to(total.dtype))
    else:
        total += torch.mm(a, b, out_dtype=total.dtype)  # type: ignore[call-overload]


def _cast(
    dtype: torch.dtype, rows: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    return rows.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)


def _measure(heads: list[Callable], targets: Tensor, collision: bool, rows: Tensor, *ref_rows: Tensor) -> Tensor:
    """Shape [measure, token]: log-probabilities, then collision on request, then KL and the reference's own."""
    logits = to_float32(heads[0](rows))
    normaliser = logits.logsumexp(-1)
    measured = [gather_targets(logits, targets) - normaliser]
    if collision:
        measured.append((2 * logits).logsumexp(-1) - 2 * normaliser)
    for ref in ref_rows:
        with torch.no_grad():
            ref_logits = to_float32(heads[1](ref))
            # Not log_softmax, which rounds differently: the KL of equal models must be exactly 0.
            ref_logp = ref_logits - ref_logits.logsumexp(-1, keepdim=True)
        if ref_logp.shape != logits.shape:
            raise ValueError(f"policy and reference differ in vocabulary: {logits.shape[-1]} and {ref_logp.shape[-1]}")
        share = ref_logp.exp()
        # 0 log 0 = 0: a token that the reference excludes with a logit of -inf would give nan.
        difference = (ref_logp - (logits - normaliser[:, None])).masked_fill(share == 0, 0.0)
        measured += [(share * difference).sum(-1), gather_targets(ref_logp, targets)]
    return torch.stack(measured)


def to_float32(logits: Tensor) -> Tensor:
    # bf16 keeps 8 bits of a log-probability: the normaliser and the difference need float32.
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def gather_targets(rows: Tensor, targets: Tensor) -> Tensor:
    return rows.gather(-1, targets.long()[:, None])[:, 0]
