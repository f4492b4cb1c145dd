"""The models and batches of a benchmark: named shapes and length profiles, or a model and a file."""

import json
import math
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, Qwen3Config

from lightning_dpo.batch import PairBatch
from lightning_dpo.models import load_model, load_tokenizer
from lightning_dpo.ragged import Ragged

SHAPES: dict[str, Any] = {
    "mini": LlamaConfig(
        vocab_size=4096, hidden_size=256, intermediate_size=688, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=4096,
    ),
    "small": LlamaConfig(
        vocab_size=8192, hidden_size=384, intermediate_size=1024, num_hidden_layers=8, num_attention_heads=6,
        num_key_value_heads=6, max_position_embeddings=4096,
    ),
    "wide-head": LlamaConfig(
        vocab_size=128256, hidden_size=256, intermediate_size=688, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=4096,
    ),
    "llama-3.2-1b": LlamaConfig(
        vocab_size=128256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
        num_key_value_heads=8, head_dim=64, max_position_embeddings=131072, tie_word_embeddings=True,
    ),
    "qwen3-0.6b": Qwen3Config(
        vocab_size=151936, hidden_size=1024, intermediate_size=3072, num_hidden_layers=28, num_attention_heads=16,
        num_key_value_heads=8, head_dim=128, max_position_embeddings=40960, tie_word_embeddings=True,
    ),
}  # fmt: skip
"""Model shapes for random weights. The head of `small` is 18 % of the parameters, as in models of 1B."""


class Lengths(NamedTuple):
    """Median and 90th percentile of log-normal lengths in tokens; if equal, the length is constant."""

    prompt: tuple[int, int]
    chosen: tuple[int, int]
    rejected: tuple[int, int]
    longest: int


PROFILES = {
    "hh": Lengths((98, 276), (29, 90), (38, 116), 512),
    "long-prompt": Lengths((512, 512), (64, 64), (64, 64), 1024),
    "long-answer": Lengths((150, 150), (400, 400), (400, 400), 1024),
    "document": Lengths((2048, 2048), (256, 256), (256, 256), 4096),
}
"""`hh` has the quantiles of HH-RLHF's helpful dialogues. Sequences are truncated to `longest` tokens."""


def batches(data: str, model: str, policy: PreTrainedModel, number: int, pairs: int) -> list[PairBatch]:
    """Batches with the lengths of a profile, or of a file, which is tokenised with the model's tokenizer.

    Errors: ValueError for data that is neither, or for a file with a model shape, which has no tokenizer.
    """
    if data in PROFILES:
        return random_batches(PROFILES[data], number, pairs, policy.config.get_text_config().vocab_size)
    if not Path(data).is_file():
        raise ValueError(f"--data {data}: neither a file nor one of {', '.join(PROFILES)}")
    if model in SHAPES:
        raise ValueError(f"--data {data}: text needs a tokenizer, and the shape {model} has none; type --model FOLDER")
    return file_batches(Path(data), model, number, pairs)


def random_batches(profile: Lengths, batches: int, pairs: int, vocabulary: int) -> list[PairBatch]:
    """Batches of random tokens with the lengths of a profile."""
    generator = torch.Generator().manual_seed(0)

    def draw(quantiles: tuple[int, int]) -> int:
        median, ninth = quantiles
        spread = math.log(ninth / median) / 1.2816
        return max(1, round(median * math.exp(spread * float(torch.randn((), generator=generator)))))

    def side(lengths: Sequence[int]) -> Ragged:
        rows = [torch.randint(0, vocabulary, (n,), generator=generator, dtype=torch.int32) for n in lengths]
        return Ragged.from_rows(rows)

    made = []
    for _ in range(batches):
        prompts = [min(draw(profile.prompt), profile.longest - 16) for _ in range(pairs)]
        answers = [
            [min(draw(quantiles), profile.longest - p) for p in prompts]
            for quantiles in (profile.chosen, profile.rejected)
        ]
        made.append(PairBatch(side(prompts), *map(side, answers), index=torch.arange(pairs)))
    return made


def file_batches(path: Path, model: str, batches: int, pairs: int, longest: int = 1024) -> list[PairBatch]:
    """Batches of a JSONL file with `prompt`, `chosen` and `rejected` as text, truncated to `longest` tokens."""
    tokenizer: Any = load_tokenizer(model)
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]

    def response(text: str) -> list[int]:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        return [*ids[: longest // 2 - 1], tokenizer.eos_token_id]

    made = []
    for start in range(0, min(len(rows), batches * pairs), pairs):
        texts = rows[start : start + pairs]
        prompt = [tokenizer(row["prompt"])["input_ids"][: longest // 2] for row in texts]
        chosen, rejected = ([response(row[side]) for row in texts] for side in ("chosen", "rejected"))
        parts = (Ragged.from_rows(side, torch.int32) for side in (prompt, chosen, rejected))
        made.append(PairBatch(*parts, index=torch.arange(len(texts))))
    return made


def build(model: str, dtype: torch.dtype, device: str) -> PreTrainedModel:
    """A model of SHAPES with the same random weights at each call, or one from a folder or hub id."""
    if model not in SHAPES:
        return load_model(model, str(dtype).removeprefix("torch.")).to(device)  # type: ignore[arg-type, return-value]
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(deepcopy(SHAPES[model]), dtype=dtype).to(device).eval()


def needed_flops(model: PreTrainedModel, batch: PairBatch) -> float:
    """The FLOP of a training step that no algorithm avoids: forward and backward of each token once through the body,
    causal attention, and the head on response tokens. Excludes the reference."""
    config = model.config.get_text_config()
    head = model.get_output_embeddings().weight.numel()  # type: ignore[union-attr, operator]
    body = sum(p.numel() for n, p in model.named_parameters() if "embed_tokens" not in n and "lm_head" not in n)
    heads = config.num_attention_heads
    width = heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)
    p, c, r = (side.lengths.double() for side in (batch.prompt, batch.chosen, batch.rejected))
    seen = p * p / 2 + c * (p + c / 2) + r * (p + r / 2)
    attention = 4 * width * config.num_hidden_layers * seen.sum()
    return float(3 * (2 * body * (p + c + r).sum() + attention + 2 * head * (c + r).sum()))
