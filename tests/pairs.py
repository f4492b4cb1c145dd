"""Random pairs that share prompts and responses, as rows of a ranked list do."""

import torch

from lightning_dpo.batch import PairBatch
from lightning_dpo.ragged import Ragged


def tree_pairs(pairs: int = 8, seed: int = 0, vocabulary: int = 61, longest: int = 12) -> PairBatch:
    """Pairs drawn from few prompts with few responses each, of 1 to `longest` tokens."""
    generator = torch.Generator().manual_seed(seed)

    def number(below: int) -> int:
        return int(torch.randint(0, below, (), generator=generator))

    def ids() -> list[int]:
        return torch.randint(0, vocabulary, (1 + number(longest),), generator=generator).tolist()

    tree = [(ids(), [ids() for _ in range(2 + number(3))]) for _ in range(3)]
    rows = []
    for _ in range(pairs):
        prompt, responses = tree[number(len(tree))]
        chosen = number(len(responses))
        rejected = (chosen + 1 + number(len(responses) - 1)) % len(responses)
        rows.append((prompt, responses[chosen], responses[rejected]))
    sides = (Ragged.from_rows(side) for side in zip(*rows, strict=True))
    return PairBatch(*sides, index=torch.arange(pairs))
