"""Whether a model is what it seems: its weights, its positions, its vocabulary."""

import logging
from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from lightning_dpo.batch import PairBatch
from lightning_dpo.errors import ConfigError

log = logging.getLogger(__name__)

COMPARED_ROWS = 64
"""Rows of each source whose texts both tokenizers encode."""


def positions(config: PreTrainedConfig) -> int | None:
    """Longest row, in tokens, that the model scores as it was trained to; None: no limit."""
    limits = (getattr(config.get_text_config(), "max_position_embeddings", None), rope_limit(config))
    return min((limit for limit in limits if limit), default=None)


def rope_limit(config: PreTrainedConfig) -> int | None:
    """Longest row, in tokens, whose rotary angles do not depend on the batch; None: no limit.

    The types `longrope` and `dynamic` choose the angles of a whole batch by its longest row: beside one beyond the
    original length, a short row gets other log-probabilities.
    """
    text = config.get_text_config()
    rope: Any = getattr(text, "rope_parameters", None) or {}
    for part in [rope, *(value for value in rope.values() if isinstance(value, dict))]:  # some have one per layer type
        if part.get("rope_type") == "longrope":
            return part.get("original_max_position_embeddings") or text.max_position_embeddings
        if part.get("rope_type") == "dynamic":
            return text.max_position_embeddings
    return None


def check_fits(
    config: PreTrainedConfig, sources: Mapping[str, PairBatch], key: str = "model.path", embeddings: int = 0
) -> None:
    """Errors: ConfigError for a pair with more tokens than the model has positions, or a token without an embedding.

    Args:
        embeddings: that the model will have at least, once it is resized.
    """
    limit, embeddings = positions(config), max(config.get_text_config().vocab_size, embeddings)
    kind = " with the same rotary angles" if limit is not None and limit == rope_limit(config) else ""
    for name, pairs in sources.items():
        longest = int((pairs.prompt.lengths + torch.maximum(pairs.chosen.lengths, pairs.rejected.lengths)).max())
        if limit is not None and longest > limit:
            raise ConfigError(
                f"{key}: the longest pair of {name} has {longest} tokens, but the model has {limit} positions{kind}; "
                f"type data.max_length={limit}"
            )
        largest = max(int(side.values.max()) for side in (pairs.prompt, pairs.chosen, pairs.rejected))
        if largest >= embeddings:
            raise ConfigError(
                f"{key}: {name} has token {largest}, but the model has {embeddings} embeddings; "
                "the tokenizer belongs to another model, or tokens were added to it: then type "
                "model.resize_embeddings=true"
            )


def check_tokenizers(
    tokenizer: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase, sources: Mapping[str, PairBatch], key: str
) -> None:
    """Errors: ConfigError if another model's tokenizer gives the data's texts other ids: the model would score other
    texts."""
    for name, pairs in sources.items():
        for row in range(0, len(pairs), max(1, len(pairs) // COMPARED_ROWS)):
            for side in (pairs.prompt, pairs.chosen, pairs.rejected):
                text = tokenizer.decode(side.row(row))
                own, others = (t(text, add_special_tokens=False)["input_ids"] for t in (tokenizer, other))
                if own != others:
                    raise ConfigError(
                        f"{key}: its tokenizer gives {text[:60]!r} ({name}) the ids {others[:8]}..., "
                        f"the policy's {own[:8]}...; a reference must share the policy's vocabulary"
                    )


def check_weights(model: PreTrainedModel, found: Mapping[str, Any], where: str) -> None:
    """Errors: ConfigError for weights that are missing in the folder, have another shape, or are not finite. Weights
    that are all zero, and tensors of the folder that the model does not have, are warned about.

    Args:
        found: what `from_pretrained(output_loading_info=True)` reports.
    """
    name = type(model).__name__
    for what in ("missing_keys", "mismatched_keys"):
        if keys := sorted(map(str, found[what])):
            raise ConfigError(
                f"{where}: {len(keys)} weights of {name} are {what.split('_')[0]} and would be random: {_few(keys)}"
            )
    if keys := sorted(map(str, found["unexpected_keys"])):
        text = "%s: %d tensors are not part of %s, so they are neither trained nor exported: %s"
        log.warning(text, where, len(keys), name, _few(keys))
    peaks = {n: torch.linalg.vector_norm(p.detach(), float("inf")) for n, p in model.named_parameters() if p.numel()}
    if keys := [n for n, peak in peaks.items() if not peak.isfinite()]:
        raise ConfigError(f"{where}: {len(keys)} weights are NaN or infinite: {_few(keys)}; the file is broken")
    zero = [n for n, p in model.named_parameters() if p.ndim > 1 and not peaks.get(n, 1)]
    if zero:
        log.warning("%s: %d weight matrices are all zero, as after a failed save: %s", where, len(zero), _few(zero))


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + ", ..." * (len(names) > 3)
