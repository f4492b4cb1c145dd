"""Every loss: a contract for all of them, laws by family, and an oracle in exact arithmetic."""

import math
from fractions import Fraction

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from lightning_dpo import losses
from lightning_dpo.losses import PairLogps, ReferenceRequired
from tests.conftest import ROOT

NAMES = sorted(path.stem for path in (ROOT / "conf" / "loss").glob("*.yaml"))
WITH_REFERENCE = ["dpo", "hinge", "ipo"]


def shipped(name: str, **changes):
    """The loss as its YAML names it."""
    node = OmegaConf.load(ROOT / "conf" / "loss" / f"{name}.yaml")
    node.update({"beta": changes.pop("beta", node.beta)})
    node.loss.update(changes)
    return instantiate(node.loss)


def pairs(n: int = 5, seed: int = 0, dtype=torch.float64) -> PairLogps:
    g = torch.Generator().manual_seed(seed)
    chosen, rejected, ref_chosen, ref_rejected = -40 * torch.rand((4, n), generator=g, dtype=dtype) - 1
    tokens = torch.randint(1, 20, (2, n), generator=g)
    return PairLogps(chosen.requires_grad_(), rejected.requires_grad_(), *tokens, ref_chosen, ref_rejected)


@pytest.mark.parametrize("name", NAMES)
class TestContract:
    def test_every_field_has_one_value_per_pair(self, name):
        result = shipped(name)(pairs())
        assert all(t.shape == (5,) for t in vars(result).values())

    def test_rewards_and_margin_are_detached_and_the_loss_is_not(self, name):
        result = shipped(name)(pairs())
        assert result.loss.requires_grad
        assert not any(t.requires_grad for t in (result.chosen_reward, result.rejected_reward, result.margin))

    def test_permuting_the_pairs_permutes_the_losses(self, name):
        logps, order = pairs(), torch.tensor([3, 0, 4, 1, 2])
        permuted = PairLogps(**{k: v[order] for k, v in vars(logps).items()})
        assert torch.equal(shipped(name)(permuted).loss, shipped(name)(logps).loss[order])

    def test_swapping_the_sides_negates_the_margin_and_swaps_the_rewards(self, name):
        a = pairs()
        b = PairLogps(a.rejected, a.chosen, a.rejected_tokens, a.chosen_tokens, a.ref_rejected, a.ref_chosen)
        result, swapped = shipped(name)(a), shipped(name)(b)
        torch.testing.assert_close(swapped.margin, -result.margin)
        torch.testing.assert_close(swapped.chosen_reward, result.rejected_reward)

    def test_gradients_agree_with_finite_differences(self, name):
        logps = pairs()
        rest = (logps.chosen_tokens, logps.rejected_tokens, logps.ref_chosen, logps.ref_rejected)
        loss = shipped(name)
        assert torch.autograd.gradcheck(lambda c, r: loss(PairLogps(c, r, *rest)).loss, (logps.chosen, logps.rejected))

    def test_value_and_gradient_are_finite_at_500_nats(self, name):
        for gap in (-500.0, 500.0):
            chosen = torch.tensor([-600.0 + gap], requires_grad=True)
            rejected = torch.tensor([-600.0], requires_grad=True)
            same = torch.tensor([-600.0])
            loss = shipped(name)(PairLogps(chosen, rejected, *torch.tensor([[1], [900]]), same, same)).loss
            loss.sum().backward()
            assert torch.isfinite(torch.cat([loss, chosen.grad, rejected.grad])).all()

    def test_its_yaml_sets_beta_and_explains_it(self, name):
        text = (ROOT / "conf" / "loss" / f"{name}.yaml").read_text()
        assert "# beta:" in text and "arXiv" in text


@pytest.mark.parametrize("name", WITH_REFERENCE)
class TestWithReference:
    def test_a_common_shift_of_policy_and_reference_changes_nothing(self, name):
        a, shift = pairs(), 7.0
        b = PairLogps(
            a.chosen + shift, a.rejected, a.chosen_tokens, a.rejected_tokens, a.ref_chosen + shift, a.ref_rejected
        )
        torch.testing.assert_close(shipped(name)(a).loss, shipped(name)(b).loss)

    def test_rewards_are_beta_times_the_summed_log_ratio(self, name):
        logps = pairs()
        result = shipped(name, beta=0.3)(logps)
        torch.testing.assert_close(result.chosen_reward, 0.3 * (logps.chosen - logps.ref_chosen).detach())
        torch.testing.assert_close(result.rejected_reward, 0.3 * (logps.rejected - logps.ref_rejected).detach())

    def test_without_a_reference_it_says_what_to_type(self, name):
        a = pairs()
        with pytest.raises(ReferenceRequired, match="reference=cached"):
            shipped(name)(PairLogps(a.chosen, a.rejected, a.chosen_tokens, a.rejected_tokens))


def test_simpo_does_not_look_at_a_reference():
    a = pairs()
    bare = PairLogps(a.chosen, a.rejected, a.chosen_tokens, a.rejected_tokens)
    assert torch.equal(shipped("simpo")(a).loss, shipped("simpo")(bare).loss)


# One pair in small rational numbers: u = -1/2, v = -3, h = 5/2; 4 and 6 tokens.
PAIR = dict(chosen=-8.5, rejected=-15.0, ref_chosen=-8.0, ref_rejected=-12.0)
ONE = PairLogps(
    **{k: torch.tensor([v], dtype=torch.float64) for k, v in PAIR.items()},
    chosen_tokens=torch.tensor([4]),
    rejected_tokens=torch.tensor([6]),
)


def log_sigmoid(x: Fraction) -> float:
    return -math.log1p(math.exp(-float(x)))


@pytest.mark.parametrize(
    ("loss", "parameters", "expected"),
    [
        ("dpo", dict(beta=0.5), -log_sigmoid(Fraction(5, 4))),
        (
            "dpo",
            dict(beta=0.5, label_smoothing=0.25),
            -0.75 * log_sigmoid(Fraction(5, 4)) - 0.25 * log_sigmoid(Fraction(-5, 4)),
        ),
        ("ipo", dict(beta=0.5), (Fraction(5, 2) - 1) ** 2),
        ("ipo", dict(beta=0.5, average_log_prob=True), (Fraction(-1, 8) + Fraction(1, 2) - 1) ** 2),
        ("hinge", dict(beta=0.1), 1 - Fraction(1, 4)),
        ("hinge", dict(beta=1.0), 0),
        ("simpo", dict(beta=2.0, gamma=0.5), -log_sigmoid(2 * (Fraction(-17, 8) + Fraction(5, 2)) - Fraction(1, 2))),
    ],
)
def test_one_pair_by_hand(loss, parameters, expected):
    result = getattr(losses, loss)(ONE, **parameters)
    assert result.loss.item() == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.parametrize(
    ("loss", "slope"),
    [("dpo", -0.05), ("ipo", -10.0), ("hinge", -0.1)],
)
def test_slope_where_the_policy_is_its_reference(loss, slope):
    """dL/d log π(chosen) at beta 0.1: -β/2 for dpo, -1/β for ipo, -β for hinge."""
    chosen = torch.tensor([-8.0], requires_grad=True)
    rest = torch.tensor([-12.0])
    getattr(losses, loss)(
        PairLogps(chosen, rest, *torch.tensor([[4], [6]]), chosen.detach(), rest), beta=0.1
    ).loss.backward()
    assert chosen.grad.item() == pytest.approx(slope, rel=1e-6)


def test_ipo_pulls_back_beyond_its_target():
    """IPO is not monotone: beyond a gap of 1/(2 beta) = 5 nats a larger gap costs."""
    gap = torch.tensor([4.0, 5.0, 6.0])
    zero = torch.zeros(3)
    result = losses.ipo(PairLogps(gap, zero, zero.long() + 1, zero.long() + 1, zero, zero), beta=0.1)
    assert result.loss.tolist() == pytest.approx([1, 0, 1])


def test_mismatched_shapes_are_named():
    with pytest.raises(ValueError, match=r"rejected.*\(2,\)"):
        PairLogps(torch.zeros(3), torch.zeros(2), torch.ones(3), torch.ones(3))
