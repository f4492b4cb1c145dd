"""How ragged sequences are laid out for a model: padded rows, or one packed row in which each prompt stands once.

All of it is index arithmetic on lengths, which live on the CPU: nothing here waits for a GPU.
"""

from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_dpo.ragged import Ragged, Sharing, ranges
from lightning_dpo.scoring.attention import Segments

GROUP_COST = 64
"""What one more forward pass costs, in tokens: padded rows are split by length where that saves more."""
MAX_GROUPS = 4


class Layout(NamedTuple):
    """One forward pass over some or all of the sequences.

    inputs: for the model. predictors: flat positions [row x column] of the hidden states that predict the response
    tokens. tokens: the numbers of those in the flat list of all response tokens; None: all of them, in order. members:
    flat positions of the tokens of every sequence; a shared prompt counts for each sequence that it belongs to.
    """

    inputs: dict[str, Any]
    predictors: Tensor
    tokens: Tensor | None
    members: Tensor


def padded(prompt: Ragged, response: Ragged, side: str = "right") -> Layout:
    """One padded row per sequence. Masks come from lengths, so a pad token that equals the end token hides nothing."""
    device, lengths = prompt.values.device, prompt.lengths + response.lengths
    rows, width = len(lengths), int(lengths.max())
    start = torch.arange(rows) * width + (width - lengths if side == "left" else 0)
    members = ranges(start, lengths)
    position, mask = torch.zeros(2, rows * width, dtype=torch.long)
    position[members] = ranges(torch.zeros_like(lengths), lengths)
    mask[members] = 1
    ids = torch.zeros(rows * width, dtype=torch.long, device=device)
    pieces = [piece for pair in zip(prompt.rows(), response.rows(), strict=True) for piece in pair]
    ids[members.to(device)] = torch.cat(pieces).long()
    flat = {"input_ids": ids, "attention_mask": mask.to(device), "position_ids": position.to(device)}
    inputs = {name: tensor.view(rows, width) for name, tensor in flat.items()}
    predictors = ranges(start + prompt.lengths - 1, response.lengths)
    return Layout(inputs, predictors.to(device), None, members.to(device))


def padded_groups(prompt: Ragged, response: Ragged) -> list[Layout]:
    """Padded rows, split by length into up to MAX_GROUPS forward passes where that saves tokens."""
    lengths = (prompt.lengths + response.lengths).numpy()
    order = np.argsort(-lengths, kind="stable")
    bounds = _cheapest_bounds(lengths[order])
    if len(bounds) == 2:
        return [padded(prompt, response)]
    first = response.lengths.cumsum(0) - response.lengths
    layouts = []
    for start, end in pairwise(bounds):
        rows = np.sort(order[start:end])
        layout = padded(prompt.select(rows.tolist()), response.select(rows.tolist()))
        layouts.append(layout._replace(tokens=ranges(first[rows], response.lengths[rows])))
    return layouts


def _cheapest_bounds(lengths: np.ndarray) -> list[int]:
    """Where to cut the rows, longest first, so that they cost the fewest tokens, padding and GROUP_COST included."""
    rows = len(lengths)
    cost, cut = np.full((MAX_GROUPS + 1, rows + 1), np.inf), np.zeros((MAX_GROUPS + 1, rows + 1), int)
    cost[0, 0] = 0.0
    for group in range(1, MAX_GROUPS + 1):
        for end in range(1, rows + 1):
            costs = cost[group - 1, :end] + (end - np.arange(end)) * lengths[:end] + GROUP_COST
            cut[group, end], cost[group, end] = costs.argmin(), costs.min()
    groups, bounds = int(cost[:, rows].argmin()), [rows]
    for group in range(groups, 0, -1):
        bounds.append(int(cut[group, bounds[-1]]))
    return bounds[::-1]


def shared_prefix(prompt: Ragged, response: Ragged, shared: Sharing) -> Layout:
    """One packed row without a pad token: each distinct prompt once, followed by its distinct responses.

    Positions go on behind the prompt for each response, and a prompt's last token predicts the first token of all of
    them. `dpo_segments` tells the attention function who attends to whom.
    """
    device = prompt.values.device
    prompt_length, response_length = prompt.lengths.tolist(), response.lengths.tolist()
    prompt_source = (prompt.lengths.cumsum(0) - prompt.lengths).tolist()
    response_source = (response.lengths.cumsum(0) - response.lengths + len(prompt.values)).tolist()
    pieces, prompt_at, response_at, end = [], {}, {}, 0
    for rows in shared.groups:
        length = prompt_length[rows[0]]
        pieces.append((prompt_source[rows[0]], length, 0))
        prompt_end = end = end + length
        for row in rows:
            pieces.append((response_source[row], response_length[row], length))
            prompt_at[row], response_at[row] = prompt_end - length, end
            end += response_length[row]
    source, lengths, first_position = torch.tensor(pieces).unbind(1)
    tree = [(prompt_length[rows[0]], [response_length[row] for row in rows]) for rows in shared.groups]
    inputs = {
        "input_ids": torch.cat([prompt.values, response.values])[ranges(source, lengths).to(device)].long()[None],
        "position_ids": ranges(first_position, lengths)[None].to(device),
        "dpo_segments": Segments(tree).to(device),
    }
    of_row = torch.tensor([(prompt_at[twin], response_at[twin]) for twin in shared.twin])
    predictors = ranges(of_row[:, 1] - 1, response.lengths)
    first = (response.lengths.cumsum(0) - response.lengths)[response.lengths > 0]
    predictors[first] = (of_row[:, 0] + prompt.lengths - 1)[response.lengths > 0]
    members = ranges(of_row.flatten(), torch.stack([prompt.lengths, response.lengths], 1).flatten())
    return Layout(inputs, predictors.to(device), None, members.to(device))
