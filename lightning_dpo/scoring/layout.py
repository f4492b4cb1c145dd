"""How ragged sequences are laid out for a model: padded rows, or one packed row that holds each prompt once.

All of this is index arithmetic on lengths, which are on the CPU, so nothing here waits for a GPU.
"""

from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_dpo.ragged import Ragged, Sharing, ranges
from lightning_dpo.scoring.attention import Segments

GROUP_COST = 64
"""Cost of one more forward pass, in tokens: padded rows are split by length where that saves more."""
MAX_GROUPS = 4


class Layout(NamedTuple):
    """One forward pass over some or all of the sequences.

    inputs: for the model. predictors: flat positions [row x column] of the hidden states that predict response tokens.
    tokens: the numbers of these response tokens in the flat list of all; None: all, in order. members: flat positions
    of the tokens of every sequence; a shared prompt counts once for each sequence that it belongs to.
    """

    inputs: dict[str, Any]
    predictors: Tensor
    tokens: Tensor | None
    members: Tensor


def padded(prompt: Ragged, response: Ragged, side: str = "right") -> Layout:
    """One padded row per sequence. Masks come from lengths, so the pad token may equal the end token."""
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
    """Padded rows in up to MAX_GROUPS forward passes, split by length where that saves tokens."""
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
    """Where to cut the rows, longest first, for the fewest tokens with padding and GROUP_COST (dynamic programming)."""
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
    """One packed row without padding: each distinct prompt once, followed by its distinct responses.

    The positions of each response continue from its prompt's, whose last token predicts the first token of each
    response. `dpo_segments` tells the attention function which tokens attend to which.
    """
    device = prompt.values.device
    prompt_length, response_length = prompt.lengths.tolist(), response.lengths.tolist()
    prompt_source = (prompt.lengths.cumsum(0) - prompt.lengths).tolist()
    first_token = response.lengths.cumsum(0) - response.lengths
    response_source = (first_token + len(prompt.values)).tolist()
    pieces, starts, end = [], {}, 0
    for rows in shared.groups:
        length = prompt_length[rows[0]]
        pieces.append((prompt_source[rows[0]], length, 0))
        prompt_start, end = end, end + length
        for row in rows:
            pieces.append((response_source[row], response_length[row], length))
            starts[row] = prompt_start, end
            end += response_length[row]
    source, lengths, first_position = torch.tensor(pieces).unbind(1)
    tree = [(prompt_length[rows[0]], [response_length[row] for row in rows]) for rows in shared.groups]
    inputs = {
        "input_ids": torch.cat([prompt.values, response.values])[ranges(source, lengths).to(device)].long()[None],
        "position_ids": ranges(first_position, lengths)[None].to(device),
        "dpo_segments": Segments(tree).to(device),
    }
    of_row = torch.tensor([starts[twin] for twin in shared.twin])
    predictors, nonempty = ranges(of_row[:, 1] - 1, response.lengths), response.lengths > 0
    predictors[first_token[nonempty]] = (of_row[:, 0] + prompt.lengths - 1)[nonempty]
    members = ranges(of_row.flatten(), torch.stack([prompt.lengths, response.lengths], 1).flatten())
    return Layout(inputs, predictors.to(device), None, members.to(device))
