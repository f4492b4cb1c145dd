"""Write a policy in Hugging Face format."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightning_dpo.models.loading import Dtype, router_logits
from lightning_dpo.models.tokenizers import save_tokenizer


def export(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    card: str,
    dtype: Dtype | None = None,
    stop_ids: Sequence[int] = (),
) -> str:
    """Write the policy in Hugging Face format: safetensors, configuration, tokenizer and a model card. Returns a
    sentence on where generation stops, or nothing if that is as it was.

    A mixture of experts is written with the `output_router_logits` that it came with, so that the result generates.

    Args:
        card: its text, in which {dtype} stands for that of the weights; the sentence follows.
        dtype: of the weights in the file; None: as in the folder that the model came from.
        stop_ids: tokens that end completions in training; generation stops there too.
    """
    kept: Any = getattr(torch, dtype) if dtype else getattr(policy, "stored_dtype", policy.dtype)
    shown = str(kept).removeprefix("torch.")
    asked = getattr(policy.config.get_text_config(), "output_router_logits", False)
    with router_logits(policy, getattr(policy, "_own_router_logits", asked)):
        policy.save_pretrained(folder, state_dict=None if kept == policy.dtype else _cast(policy, kept))
    if kept != policy.dtype:  # save_pretrained writes that of the policy into the configuration
        path = folder / "config.json"
        keys = json.loads(path.read_text(encoding="utf-8"))
        _write_json(path, keys | {"dtype": shown})
    save_tokenizer(tokenizer, folder)
    stops = _save_stops(policy, tokenizer, folder, stop_ids)
    text = card.replace("{dtype}", shown) + (f"- {stops}\n" if stops else "")
    (folder / "README.md").write_text(text, encoding="utf-8")
    return stops


def _save_stops(policy: Any, tokenizer: Any, folder: Path, stop_ids: Sequence[int]) -> str:
    """Add the stop ids to those of generation_config.json; the sentence that says so, empty if it has them already."""
    path = folder / "generation_config.json"
    if not path.is_file():
        return ""
    settings = json.loads(path.read_text(encoding="utf-8"))
    found = settings.get("eos_token_id")
    if found is None:
        found = getattr(policy.config.get_text_config(), "eos_token_id", None)
    before = list(found) if isinstance(found, list | tuple) else [] if found is None else [found]
    if not (added := [i for i in stop_ids if i not in before]):
        return ""
    settings.pop("_from_model_config", None)  # with it, older versions of transformers ignore this file
    # Not GenerationConfig.save_pretrained, which refuses a changed file that has other settings without effect.
    _write_json(path, settings | {"eos_token_id": [*before, *added]})

    def names(ids: Sequence[int]) -> str:
        return " and ".join(f"`{tokenizer.convert_ids_to_tokens(i)}` (id {i})" for i in ids)

    kept = f", and at {names(before)}, as before" if before else ""
    return f"generation stops at {names(added)}, as completions do in training{kept}"


def _write_json(path: Path, content: dict[str, Any]) -> None:
    """As transformers writes it."""
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _cast(policy: PreTrainedModel, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The weights in this dtype, on the CPU. Tied weights stay one tensor, and what the model keeps in float32, such as
    the gates of experts, stays so."""
    names = {*(policy._keep_in_fp32_modules or ()), *(policy._keep_in_fp32_modules_strict or ())}
    kept = re.compile("|".join(rf"(?:^|\.){re.escape(name)}(?:\.|$)" for name in names) or r"(?!)")
    cast: dict[Any, torch.Tensor] = {}
    for name, t in policy.state_dict().items():
        wanted = dtype if t.is_floating_point() and not kept.search(name) else t.dtype
        cast[name] = cast.setdefault((t.data_ptr(), t.shape), t.to("cpu", wanted))
    return {name: tensor for name, tensor in cast.items() if isinstance(name, str)}
