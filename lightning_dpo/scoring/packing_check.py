"""Whether packed rows reproduce a model's own numbers: a rule on its class, then a measurement.

Both must pass: the flags of transformers alone are silently wrong for a third of all model types (a recurrence leaks
from one sequence to the next, a window exists only in a mask that is not built, positions do not start at 0).
"""

from typing import Any

import torch
from transformers import PreTrainedModel

from lightning_dpo.models.layers import base_model
from lightning_dpo.ragged import Ragged, Sharing
from lightning_dpo.scoring.attention import NAME, disable, enable, plain_attention
from lightning_dpo.scoring.layout import shared_prefix

LAYERS = {"full_attention", "sliding_attention"}
TOLERANCE, HALF = 1e-3, 0.03
"""Root mean square of the difference, relative to that of the logits. Measured: rounding gives 1e-7 in float32 and up
to 4e-3 in bfloat16; a leak from another prompt or response gives 0.07 to 0.8."""


def why_not_packed(model: PreTrainedModel) -> str | None:
    """Why packed rows would be unsound, by the model's class and configuration; None if they allow it."""
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        return "prompt learning inserts tokens before each row"
    base: Any = base_model(model)
    name, config = type(base).__name__, base.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ()) - LAYERS
    registered = base._can_set_attn_implementation() and base._supports_attention_backend
    rules = {
        f"{name} does not take its attention from transformers' registry": not registered,
        f"{name} needs a mask with more than a window": not base._supports_flash_attn,
        f"{name} carries a state from token to token": base._is_stateful,
        f"{name} has layers of type {', '.join(sorted(kinds))}": bool(kinds),
    }
    return next((reason for reason, holds in rules.items() if holds), None)


@torch.no_grad()
def probe_packing(model: PreTrainedModel) -> str | None:
    """Why packed rows failed in a forward pass; None if their logits agree with those of single sequences.

    Two prompts with two responses each run through the real weights, in the model's dtype and without autocast.
    """
    vocabulary = model.config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(0)

    def ids(*lengths: int) -> Ragged:
        rows = [torch.randint(0, vocabulary, (n,), generator=generator) for n in lengths]
        return Ragged.from_rows(rows).to(model.device)

    prompts, response = ids(11, 4), ids(7, 5, 3, 6)
    prompt = prompts.select([0, 0, 1, 1])
    layout = shared_prefix(prompt, response, Sharing([[0, 1], [2, 3]], [0, 1, 2, 3]))
    segments = layout.inputs["dpo_segments"]
    with torch.autocast(model.device.type, enabled=False):
        try:
            enable(model)
            if model.config._attn_implementation != NAME:
                return "the model does not accept another attention function"
            packed = model(**layout.inputs, use_cache=False).logits[0, layout.members]
        except torch.OutOfMemoryError:
            raise  # says nothing about the model
        except (RuntimeError, TypeError, ValueError, IndexError, AttributeError, AssertionError) as error:
            disable(model)
            return (str(error) or type(error).__name__).splitlines()[0]
        with plain_attention(model):
            rows = [torch.cat(pair).long()[None] for pair in zip(prompt.rows(), response.rows(), strict=True)]
            own = torch.cat([model(input_ids=row, use_cache=False).logits[0] for row in rows])
    packed, own = packed.float(), own.float()
    difference = ((packed - own).norm() / own.norm().clamp(min=1e-9)).item()
    reason = _disagreement(model, segments, difference)
    if reason is not None:
        disable(model)
    return reason


def _disagreement(model: PreTrainedModel, segments: Any, difference: float) -> str | None:
    config = model.config.get_text_config()
    if segments.calls != config.num_hidden_layers:
        return f"{segments.calls} of {config.num_hidden_layers} layers use the attention function"
    if not difference <= (HALF if model.dtype.itemsize < 4 else TOLERANCE):
        return f"logits of packed rows differ by {difference:.2g} (relative) from the model's own"
    # A window longer than the probe's rows changes no logits, so look for it in the arguments of the attention calls.
    kinds = getattr(config, "layer_types", None)
    slides = "sliding_attention" in kinds if kinds else getattr(config, "sliding_window", None) is not None
    if slides and getattr(config, "use_sliding_window", True) and not segments.windows:
        return "the model has a sliding window but does not pass it to the attention function"
    return None
