"""Known properties of each method: values and slopes at the reference, invariances, limits."""

from functools import partial
from math import exp, log

import pytest
import torch

from lightning_dpo import losses
from lightning_dpo.losses import PairLogps
from tests.losses.pairs import changed, from_tokens, full, random_tokens, shipped

LOG2 = log(2)


def start(pairs: int = 4) -> PairLogps:
    """Policy = reference: 3 and 5 tokens of -1/2 nats a pair, K = 0, and collision terms that make WPO's weights 1."""
    _, reference = random_tokens(pairs, longest=2)
    policy = type(reference)(*(type(s).from_rows([[-0.5] * n] * pairs, dtype=torch.float64)
                               for s, n in zip(reference, (3, 5), strict=True)))  # fmt: skip
    for side in policy:
        side.values.requires_grad_()
    same = type(policy)(*(type(s)(s.values.detach(), s.lengths) for s in policy))
    zero = torch.zeros(pairs, dtype=torch.float64)
    return from_tokens(
        policy, same, chosen_kl=zero, rejected_kl=zero, target_margin=zero + 0.75,
        chosen_collision=zero - 1.5, rejected_collision=zero - 2.5,
    )  # fmt: skip


def L(x: float) -> float:
    return log(1 + exp(-x))


AT_THE_START = {
    **dict.fromkeys(
        "dpo cdpo robust sigmoid_norm dpop ld_dpo sampo wpo tdpo1 tdpo2 chipo fdpo aot aot_unpaired dr_dpo".split(),
        LOG2,
    ),
    "ipo": 25.0,
    "hinge": 1.0,
    "exo_pair": -LOG2 - 0.5 * log(1e-3 * (1 - 1e-3)),
    "nca_pair": 2 * LOG2,
    "bco_pair": 2 * LOG2,
    "sppo_hard": 5e5,
    "apo_zero": 1.0,
    "apo_down": 1.0,
    "discopop": 0.5 + 0.5 * LOG2,
    "rdpo": L(0.01 * (3 - 5)),
    "cal_dpo": LOG2 + 0.5 / (2 * 0.1**2),
    "odpo": L(-0.75),
    "hdpo": L(0.1 * (0.95 - 1) * (-1.5 + 2.5)),
    "gpo_exponential": 1.0,
    "square_chipo": 0.125,
    "kto_pair": 0.5,
    "simpo": L(-0.5),
    "alphapo": L(-0.25),
    "cpo": L(0.1 * (-1.5 + 2.5)) + 0.5,
    "orpo": 0.5 + 0.1 * LOG2,
    "slic": 1 + 1.5 - 2.5 + 0.1 * 1.5,
    "simper": 0.0,
    "sft": 0.5,
    "rpo": LOG2 + 0.5,
    "mpo": (0.8 + 0.4) * LOG2 + 0.5,
    "mix": LOG2 + 0.5,
}


@pytest.mark.parametrize(("name", "value"), AT_THE_START.items())
def test_the_value_where_the_policy_equals_its_reference(name, value):
    assert shipped(name)(start()).loss.tolist() == pytest.approx([value] * 4, rel=1e-12)


def test_the_value_of_beta_dpo_at_the_start():
    """One pair in five is dropped, and the mean is over the others."""
    loss = shipped("beta_dpo")(start(5)).loss
    assert loss.mean().item() == pytest.approx(LOG2) and sorted(loss.tolist())[0] == 0


def test_every_loss_has_a_value_at_the_start():
    from tests.losses.pairs import NAMES

    assert set(AT_THE_START) | {"beta_dpo"} == set(NAMES)


def test_ld_dpo_of_the_policy_alone_has_a_gap_at_the_start():
    """The rejected side has 5 tokens of -1/2 nats, the last 2 with weight 1/2: half a nat less."""
    assert shipped("ld_dpo", policy_only=True)(start()).loss[0].item() == pytest.approx(L(0.1 * -0.5))


SLOPES = {
    "dpo": -0.05,
    "cdpo": -0.1 * (0.5 - 0.1),
    "robust": -0.1 / (2 * 0.8),
    "ipo": -10.0,
    "hinge": -0.1,
    "bco_pair": -0.05,
    "nca_pair": -0.025,
    "apo_zero": -0.025,
    "apo_down": 0.0,
    "kto_pair": -0.0125,  # the mean over both sides of -β/4
    "dpop": -0.05,
    "chipo": -0.1,
    "discopop": 0.0784,
    "square_chipo": -0.0125,
}


@pytest.mark.parametrize(("name", "slope"), SLOPES.items())
def test_the_slope_where_the_policy_equals_its_reference(name, slope):
    """dL/d log π(chosen), at beta 0.1."""
    logps = start()
    assert slope_of_chosen(shipped(name, beta=0.1), logps) == pytest.approx(slope, rel=1e-3)


@pytest.mark.parametrize(
    ("divergence", "slope"), dict(reverse_kl=-0.05, forward_kl=-0.05, alpha=-0.05, js=-0.025).items()
)
def test_the_slope_of_each_divergence(divergence, slope):
    assert slope_of_chosen(shipped("fdpo", divergence=divergence), start()) == pytest.approx(slope)


def slope_of_chosen(loss, logps) -> float:
    gradient = torch.autograd.grad(loss(logps).loss.sum(), logps.tokens.chosen.values)[0]
    return gradient[0].item()


SHIFTS = """
    dpo cdpo robust ipo sigmoid_norm hinge exo_pair nca_pair bco_pair sppo_hard apo_zero apo_down discopop dpop rdpo
    ld_dpo sampo tdpo1 tdpo2 cal_dpo chipo odpo gpo_exponential square_chipo fdpo aot aot_unpaired kto_pair
    beta_dpo dr_dpo
""".split()


@pytest.mark.parametrize("name", SHIFTS)
def test_a_common_shift_of_policy_and_reference_changes_nothing(name):
    logps = full()

    def up(side, first=7.0):
        values = side.values.detach().clone()
        values[side.lengths.cumsum(0) - side.lengths] += first  # 7 nats on the first token of every response
        return type(side)(values, side.lengths)

    moved = from_tokens(
        logps.tokens._replace(chosen=up(logps.tokens.chosen)),
        logps.ref_tokens._replace(chosen=up(logps.ref_tokens.chosen)),
        **{k: v for k, v in vars(logps).items() if v is not None and k.split("_")[-1] in ("margin", "kl", "index")},
    )
    torch.testing.assert_close(shipped(name)(moved).loss, shipped(name)(logps).loss)


def test_limits():
    logps = full()

    def same(one, other):
        torch.testing.assert_close(one(logps).loss, other(logps).loss, rtol=1e-5, atol=1e-7)

    dpo = partial(losses.dpo, beta=0.1)
    same(shipped("fdpo", divergence="reverse_kl"), dpo)
    same(shipped("fdpo", divergence="alpha", alpha=1e-7), dpo)
    same(shipped("fdpo", divergence="alpha", alpha=1 - 1e-9), shipped("fdpo", divergence="forward_kl"))
    same(shipped("ld_dpo", alpha=1.0), dpo)
    same(shipped("hdpo", alpha=1.0), dpo)
    same(shipped("rdpo", alpha=0), dpo)
    same(shipped("dpop", lam=0, beta=0.1), dpo)
    same(lambda x: losses.odpo(changed(x, target_margin=None), beta=0.1, offset=0), dpo)
    same(shipped("tdpo2", alpha=0), dpo)
    same(shipped("tdpo2", alpha=1), shipped("tdpo1"))
    same(shipped("rpo", nll_weight=0), dpo)
    same(shipped("mpo", wp=1, wq=0, wg=0), dpo)
    same(shipped("bco_pair", shift=False), partial(losses.bco_pair, beta=0.1))
    same(shipped("alphapo", alpha=1e-7, beta=2.0, gamma=0.5), shipped("simpo"))
    assert losses.dr_dpo(logps, beta=0.1, beta_prime=1e7).loss[0].item() == pytest.approx(dpo(logps).loss.mean().item())


def test_ipo_penalises_a_gap_beyond_its_target():
    """IPO is not monotone: the loss rises beyond a gap of 1/(2 beta) = 5 nats."""
    gap = torch.tensor([4.0, 5.0, 6.0])
    zero = torch.zeros(3)
    result = losses.ipo(PairLogps(gap, zero, ref_chosen=zero, ref_rejected=zero), beta=0.1)
    assert result.loss.tolist() == pytest.approx([1, 0, 1])


def test_tdpo2_stops_the_gradient_of_the_chosen_sides_kl_and_tdpo1_does_not():
    for name, flows in (("tdpo1", True), ("tdpo2", False)):
        logps = full()
        chosen, rejected = torch.autograd.grad(
            shipped(name)(logps).loss.sum(), [logps.chosen_kl, logps.rejected_kl], allow_unused=True
        )
        assert (chosen is not None) == flows and rejected is not None


def test_orpo_is_finite_where_a_response_is_certain():
    for certain in (0.0, -1e-9, -1e-7):
        chosen, one = torch.tensor([certain], requires_grad=True), torch.tensor([1])
        loss = losses.orpo(PairLogps(chosen, torch.tensor([-3.0]), chosen_tokens=one, rejected_tokens=one)).loss
        loss.sum().backward()
        assert loss.isfinite().all() and chosen.grad.item() == -1  # the slope of the likelihood; the odds have none


class PlainPreferenceLoss:
    """A common class for DPO and IPO: three parameters, four tensors."""

    def __init__(self, beta: float, label_smoothing: float = 0.0, ipo: bool = False):
        self.beta, self.label_smoothing, self.ipo = beta, label_smoothing, ipo

    def __call__(self, policy_chosen, policy_rejected, reference_chosen, reference_rejected):
        logits = (policy_chosen - policy_rejected) - (reference_chosen - reference_rejected)
        if self.ipo:
            values = (logits - 1 / (2 * self.beta)) ** 2
        else:
            right, wrong = (torch.log(torch.sigmoid(x * self.beta)) for x in (logits, -logits))
            values = -(right * (1 - self.label_smoothing) + wrong * self.label_smoothing)
        rewards = ((p - r).detach() * self.beta for p, r in
                   ((policy_chosen, reference_chosen), (policy_rejected, reference_rejected)))  # fmt: skip
        return values.mean(), *rewards


@pytest.mark.parametrize("settings", [dict(beta=0.1), dict(beta=0.5, label_smoothing=0.2), dict(beta=0.1, ipo=True)])
def test_dpo_and_ipo_agree_with_a_common_class(settings):
    logps = full()
    expected = PlainPreferenceLoss(**settings)(logps.chosen, logps.rejected, logps.ref_chosen, logps.ref_rejected)
    function = losses.ipo if settings.pop("ipo", False) else losses.dpo
    result = function(logps, **settings)
    for found, value in zip((result.loss.mean(), result.chosen_reward, result.rejected_reward), expected, strict=True):
        torch.testing.assert_close(found, value)
