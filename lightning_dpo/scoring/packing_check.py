"""Whether packed rows reproduce a model's own numbers: a rule on its class, then a measurement.

Both must pass: the flags of transformers alone are silently wrong for a third of all model types (a recurrence leaks
from one sequence to the next, a window exists only in a mask that is not built, positions do not start at 0).
"""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lightning_dpo.models.layers import base_model
from lightning_dpo.ragged import Ragged, Sharing
from lightning_dpo.scoring.attention import NAME, Segments, packed_attention, plain_attention
from lightning_dpo.scoring.layout import Layout, padded, shared_prefix

LAYERS = {"full_attention", "sliding_attention"}
TOLERANCE, HALF = 1e-3, 0.03
"""Root mean square of the difference, relative to that of the logits. Measured: rounding gives 1e-7 in float32 and up
to 4e-3 in bfloat16; a leak from another prompt or response gives 0.07 to 0.8."""
MULTIPLE, LEAK = 4, 0.06
"""Deep models of experts round by more than HALF: a token near the border between two experts takes the other one, and
the tokens after it read the change. They may differ by this multiple of what padding changes, and by less than a leak.
Measured with 24 layers of 8 experts in bfloat16: packing changes up to 0.12, padding up to 0.06."""


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
    prompt, response = _probe(model)
    layout = shared_prefix(prompt, response, Sharing([[0, 1], [2, 3]], [0, 1, 2, 3]))
    segments = layout.inputs["dpo_segments"]
    with torch.autocast(model.device.type, enabled=False):
        try:
            with packed_attention(model, stay=False):
                if model.config._attn_implementation != NAME:
                    return "the model does not accept another attention function"
                packed = _logits(model, layout)
        except torch.OutOfMemoryError:
            raise  # says nothing about the model
        except (RuntimeError, TypeError, ValueError, IndexError, AttributeError, AssertionError) as error:
            return (str(error) or type(error).__name__).splitlines()[0]
        with plain_attention(model):
            return _calls(model, segments) or _difference(model, packed, prompt, response) or _window(model, segments)


def _probe(model: PreTrainedModel) -> tuple[Ragged, Ragged]:
    """Prompts and responses of four sequences: two prompts with two responses each."""
    vocabulary = model.config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(0)

    def ids(*lengths: int) -> Ragged:
        rows = [torch.randint(0, vocabulary, (n,), generator=generator) for n in lengths]
        return Ragged.from_rows(rows).to(model.device)

    return ids(11, 4).select([0, 0, 1, 1]), ids(7, 5, 3, 6)


def _logits(model: PreTrainedModel, layout: Layout) -> Tensor:
    """Of each token of each sequence, in the order of the sequences."""
    return model(**layout.inputs, use_cache=False).logits.flatten(0, 1)[layout.members].float()


def _calls(model: PreTrainedModel, segments: Segments) -> str | None:
    layers = model.config.get_text_config().num_hidden_layers
    return None if segments.calls == layers else f"{segments.calls} of {layers} layers use the attention function"


def _difference(model: PreTrainedModel, packed: Tensor, prompt: Ragged, response: Ragged) -> str | None:
    rows = [torch.cat(pair).long()[None] for pair in zip(prompt.rows(), response.rows(), strict=True)]
    own = torch.cat([model(input_ids=row, use_cache=False).logits[0] for row in rows]).float()

    def distance(logits: Tensor) -> float:
        return ((logits - own).norm() / own.norm().clamp(min=1e-9)).item()

    difference, allowed = distance(packed), HALF if model.dtype.itemsize < 4 else TOLERANCE
    if allowed == HALF and difference > HALF:
        allowed = max(HALF, min(MULTIPLE * distance(_logits(model, padded(prompt, response))), LEAK))
    if not difference <= allowed:
        return f"logits of packed rows differ by {difference:.2g} (relative) from the model's own"
    return None


def _window(model: PreTrainedModel, segments: Segments) -> str | None:
    """A window longer than the probe's rows changes no logits, so look for it in the arguments of the attention."""
    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None)
    slides = "sliding_attention" in kinds if kinds else getattr(config, "sliding_window", None) is not None
    if slides and getattr(config, "use_sliding_window", True) and not segments.windows:
        return "the model has a sliding window but does not pass it to the attention function"
    return None
