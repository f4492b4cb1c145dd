"""Losses of tokens against their formulas with 260 digits, and SamPO's sample."""

import pytest
import torch
from mpmath import mpf

from lightning_dpo import losses
from lightning_dpo.batch import TokenLogps
from lightning_dpo.losses.token_level import drawn_tokens
from lightning_dpo.ragged import Ragged
from tests.losses.oracle import Dual, L
from tests.losses.pairs import from_tokens, sixty_fourths
from tests.losses.test_oracle import agree, exactly

LENGTHS = [(4, 6), (6, 4), (5, 5), (1, 1), (1, 900), (900, 1), (3, 7)]


def tokens(dtype, equal: bool = False):
    """Rows of these lengths; the last pair has differences of 500 nats."""
    g = torch.Generator().manual_seed(0)

    def side(which: int) -> Ragged:
        rows = [sixty_fourths(n[which], g, -2, 0) for n in LENGTHS]
        return Ragged.from_rows([torch.tensor(r, dtype=dtype) for r in rows])

    policy, reference = (TokenLogps(side(0), side(1)) for _ in range(2))
    policy.chosen.values[-1] = -500.0
    reference.rejected.values[-1] = -500.0
    for ragged in policy:
        ragged.values.requires_grad_()
    return policy, reference


def ld_dpo(w, l, ref_w, ref_l, beta, alpha, policy_only):  # noqa: E741
    p = min(len(w), len(l))

    def desensitised(row, weight):
        return sum(row[:p]) + weight * sum(row[p:])

    ref = 1 if policy_only else alpha
    gap = desensitised(w, alpha) - desensitised(ref_w, ref) - (desensitised(l, alpha) - desensitised(ref_l, ref))
    return L(beta * gap)


def compare(loss, oracle):
    """The loss and slopes of tokens; the oracle takes the four rows of tokens of a pair."""
    for dtype in (torch.float64, torch.float32):
        policy, reference = tokens(dtype)
        found = loss(from_tokens(policy, reference)).loss
        gradients = torch.autograd.grad(found.sum(), [side.values for side in policy])
        slopes = [Ragged(g, side.lengths).rows() for g, side in zip(gradients, policy, strict=True)]
        values, true_slopes = [], ([], [])
        for i in range(len(LENGTHS)):
            rows = [[mpf(x) for x in side.row(i).tolist()] for side in (*policy, *reference)]
            values.append(oracle(i, *rows))
            for which in (0, 1):
                for t in (0, len(rows[which]) // 2, len(rows[which]) - 1):
                    moved = [list(r) for r in rows]
                    moved[which][t] = Dual(rows[which][t], [mpf(1)])
                    slope = (oracle(i, *moved) + Dual(0, [mpf(0)])).slopes[0]
                    true_slopes[which].append((slope, slopes[which][i][t]))
        agree(found, values, "loss")
        for side in true_slopes:
            agree(torch.stack([f for _, f in side]), [s for s, _ in side], "slope of a token")


@pytest.mark.parametrize("policy_only", [False, True])
def test_ld_dpo_follows_its_formula(policy_only):
    settings = dict(beta=0.1, alpha=0.25, policy_only=policy_only)
    exact = exactly(settings)
    compare(lambda x: losses.ld_dpo(x, **settings), lambda i, *rows: ld_dpo(*rows, **exact))


def test_sampo_follows_its_formula():
    kept = [Ragged(m, s.lengths) for m, s in zip(drawn(seed=3), tokens(torch.float64)[0], strict=True)]

    def oracle(i, w, l, ref_w, ref_l):  # noqa: E741
        sides = []
        for row, ref, mask in ((w, ref_w, kept[0]), (l, ref_l, kept[1])):
            sides.append(sum((x - r for x, r, k in zip(row, ref, mask.row(i).tolist(), strict=True) if k), mpf(0)))
        return L(mpf(0.1) * (sides[0] - sides[1]))

    compare(lambda x: losses.sampo(x, beta=0.1, seed=3), oracle)


def drawn(seed: int, index=None):
    policy, _ = tokens(torch.float64)
    return drawn_tokens(policy, torch.arange(len(LENGTHS)) if index is None else index, seed)


def test_sampo_keeps_the_whole_shorter_side_and_as_many_tokens_of_the_longer():
    policy, _ = tokens(torch.float64)
    kept = [Ragged(m, s.lengths).sum().tolist() for m, s in zip(drawn(0), policy, strict=True)]
    assert kept[0] == kept[1] == [min(n) for n in LENGTHS]


def test_sampos_sample_is_a_function_of_seed_and_row_and_uniform_over_positions():
    assert all(torch.equal(a, b) for a, b in zip(drawn(1), drawn(1), strict=True))
    assert not torch.equal(drawn(1)[0], drawn(2)[0])
    pair = TokenLogps(Ragged.from_rows([[0.0] * 2] * 400), Ragged.from_rows([[0.0] * 8] * 400))
    _, mask = drawn_tokens(pair, torch.arange(400), seed=0)
    share = mask.view(400, 8).mean(0)
    assert (share - 0.25).abs().max() < 0.1
