"""The CHES score against a slow loop, and on pairs with a known answer."""

import pytest
import torch

from lightning_dpo.batch import PairBatch
from lightning_dpo.ragged import Ragged
from lightning_dpo.scoring.ches import ches_scores
from tests.conftest import llama, random_pairs


def summed(model, prompt: list[int], response: list[int]) -> torch.Tensor:
    """One forward pass per response token: the last hidden state of the tokens before it."""
    total = torch.zeros(model.config.hidden_size, dtype=torch.float64)
    for k in range(len(response)):
        with torch.no_grad():
            total += model.model(torch.tensor([prompt + response[:k]])).last_hidden_state[0, -1]
    return total


@pytest.mark.parametrize("length_normalised", [False, True])
def test_every_pair_scores_like_a_token_by_token_loop(length_normalised):
    model, pairs = llama().double(), random_pairs(7)
    expected = []
    for i in range(7):
        prompt, chosen, rejected = (getattr(pairs, s).row(i).tolist() for s in ("prompt", "chosen", "rejected"))
        h, g = summed(model, prompt, chosen), summed(model, prompt, rejected)
        if length_normalised:
            h, g = h / len(chosen), g / len(rejected)
        expected.append(sum(a * b for a, b in zip(h, g, strict=True)) - sum(a * a for a in h))
    scores = ches_scores(model, pairs, length_normalised=length_normalised, batch_size=3)
    assert scores.tolist() == pytest.approx([e.item() for e in expected], rel=1e-5)
    assert not scores.requires_grad and scores.shape == (7,)


def test_equal_responses_score_zero_and_the_last_token_does_not_count():
    """The hidden state at the last response token predicts nothing."""
    ids = [[5, 6, 7], [5, 6, 9], [5, 8, 7]]
    pairs = PairBatch(
        prompt=Ragged.from_rows([[1, 2]] * 3), chosen=Ragged.from_rows([[5, 6, 7]] * 3),
        rejected=Ragged.from_rows(ids), index=torch.arange(3),
    )  # fmt: skip
    same, other_end, other_middle = ches_scores(llama(), pairs).tolist()
    assert same == pytest.approx(0, abs=1e-4) and other_end == pytest.approx(0, abs=1e-4) and abs(other_middle) > 0.1


def test_tokens_that_are_not_trained_on_do_not_count():
    """[5, 6] with a mask on its first token is [6] after a prompt that ends with 5."""
    ragged, mask = Ragged.from_rows([[5, 6]]), Ragged.from_rows([[0, 1]], dtype=torch.uint8)
    other, whole = Ragged.from_rows([[5, 8, 9]]), Ragged.from_rows([[0, 1, 1]], dtype=torch.uint8)
    masked = PairBatch(Ragged.from_rows([[1, 2]]), ragged, other, index=torch.arange(1), trained=(mask, whole))
    longer = PairBatch(
        Ragged.from_rows([[1, 2, 5]]), Ragged.from_rows([[6]]), Ragged.from_rows([[8, 9]]), index=torch.arange(1)
    )
    for length_normalised in (False, True):
        scores = (ches_scores(llama(), pairs, length_normalised) for pairs in (masked, longer))
        torch.testing.assert_close(*scores, atol=1e-4, rtol=1e-4)


def test_half_precision_is_summed_in_float32():
    assert ches_scores(llama().bfloat16(), random_pairs(3)).dtype == torch.float32
