"""Properties of every loss of conf/loss, whatever its formula."""

import inspect

import pytest
import torch
from hydra.utils import get_method
from torch.nn.functional import logsigmoid

from lightning_dpo import losses
from lightning_dpo.losses import PairLogps, ReferenceRequired, needs_of
from lightning_dpo.losses.needs import needs
from lightning_dpo.signatures import ArgumentError, check_arguments
from tests.losses.pairs import (
    NAMES,
    REFERENCE_FREE,
    TEXTS,
    changed,
    full,
    parameters,
    permuted,
    shipped,
    swapped,
    with_tokens,
)

WITH_REFERENCE = sorted(set(NAMES) - REFERENCE_FREE)
NO_REFERENCE = dict(ref_chosen=None, ref_rejected=None, ref_tokens=None)
IN_NATS = {"cal_dpo", "ipo", "sppo_hard"}
"""Their margin is u - v in nats, without beta."""
OWN_MARGIN = {
    *("aot", "aot_unpaired", "beta_dpo", "chipo", "hdpo", "ld_dpo", "rdpo", "sampo", "sigmoid_norm", "tdpo1", "tdpo2"),
}
"""Their margin is the argument of σ, which is not the difference of the rewards."""
WITHOUT_BETA = {"orpo", "slic", "simper", "sft"}


@pytest.mark.parametrize("name", NAMES)
class TestContract:
    def test_every_field_has_one_value_per_pair(self, name):
        result = shipped(name)(full())
        assert all(t.shape == (5,) for t in vars(result).values())

    def test_rewards_and_margin_are_detached_and_the_loss_is_not(self, name):
        result = shipped(name)(full())
        assert result.loss.requires_grad
        assert not any(t.requires_grad for t in (result.chosen_reward, result.rejected_reward, result.margin))

    def test_permuting_the_pairs_permutes_the_losses(self, name):
        logps, order = full(), [3, 0, 4, 1, 2]
        result, other = shipped(name)(logps), shipped(name)(permuted(logps, order))
        torch.testing.assert_close(other.loss, result.loss[order])
        torch.testing.assert_close(other.margin, result.margin[order])

    def test_swapping_the_sides_negates_the_margin_and_swaps_the_rewards(self, name):
        result, other = shipped(name)(full()), shipped(name)(swapped(full()))
        torch.testing.assert_close(other.chosen_reward, result.rejected_reward)
        # aot_unpaired matches each u with a v of another pair, and beta_dpo's β follows the sign of the mean gap
        if name not in ("aot_unpaired", "beta_dpo"):
            torch.testing.assert_close(other.margin, -result.margin)

    def test_gradients_agree_with_finite_differences(self, name):
        if name in ("wpo", "kto_pair", "beta_dpo"):
            pytest.skip("finite differences ignore a stopped gradient; test_oracle.py covers it")
        logps, loss = full(3, longest=4), shipped(name)
        if isinstance(loss, torch.nn.Module):
            loss.eval()
        leaves = (logps.tokens.chosen.values, logps.tokens.rejected.values)
        assert torch.autograd.gradcheck(lambda *values: loss(with_tokens(logps, *values)).loss, leaves)

    def test_its_yaml_documents_beta_and_the_paper(self, name):
        text = TEXTS[name]
        if name in WITHOUT_BETA:
            assert "\nbeta:" not in text and "No beta" in text or "no beta" in text
        else:
            assert "\nbeta:" in text and "# beta: " in text
        assert "arXiv" in text or name in ("cdpo", "sft", "mix")

    def test_its_docstring_has_equation_parameters_value_and_source(self, name):
        doc = get_method(f"lightning_dpo.losses.{target(name)}").__doc__
        doc = " ".join(doc.split())
        assert " L = " in doc
        assert "Args:" in doc and "References:" in doc
        assert "where the policy equals the reference" in doc or "where a policy equals its reference" in doc

    def test_defaults_in_yaml_and_python_are_those_of_the_papers(self, name):
        expected = {"beta": 0.1, **DEFAULTS.get(name, {})}
        in_yaml = {k: v for k, v in parameters(name).items() if k not in ("seed", "terms", "weights")}
        assert in_yaml == {k: v for k, v in expected.items() if v is not ABSENT}
        signature = inspect.signature(getattr(losses, target(name))).parameters
        in_python = {k: p.default for k, p in signature.items() if p.default is not p.empty and k in in_yaml}
        assert in_python == {k: in_yaml[k] for k in in_python}


ABSENT = object()
DEFAULTS = {
    "alphapo": {"beta": 2.5, "alpha": 0.25, "gamma": 0.25},
    "aot": {"label_smoothing": 0.0},
    "aot_unpaired": {"label_smoothing": 0.0},
    "bco_pair": {"shift": True},
    "beta_dpo": {"a": 0.6, "m0": 0.0, "momentum": 0.9, "drop": 0.2},
    "cal_dpo": {"cal_weight": 0.5},
    "cdpo": {"label_smoothing": 0.1},
    "chipo": {"r_max": 10.0},
    "cpo": {"nll_weight": 1.0},
    "discopop": {"tau": 0.05},
    "dpo": {"label_smoothing": 0.0},
    "dpop": {"beta": 0.3, "lam": 50.0},
    "dr_dpo": {"beta_prime": 1.0},
    "exo_pair": {"label_smoothing": 1e-3},
    "fdpo": {"divergence": "reverse_kl", "alpha": 0.5},
    "hdpo": {"alpha": 0.95},
    "ipo": {"average_log_prob": False},
    "ld_dpo": {"alpha": 0.5, "policy_only": False},
    "mix": {"beta": ABSENT},
    "mpo": {"wp": 0.8, "wq": 0.2, "wg": 1.0},
    "odpo": {"offset": None},
    "orpo": {"beta": ABSENT, "lam": 0.1},
    "rdpo": {"alpha": 0.01},
    "robust": {"label_smoothing": 0.1},
    "rpo": {"nll_weight": 1.0},
    "sft": {"beta": ABSENT},
    "sigmoid_norm": {"beta": 5.0},
    "simper": {"beta": ABSENT},
    "simpo": {"beta": 2.0, "gamma": 0.5},
    "slic": {"beta": ABSENT, "delta": 1.0, "lam": 0.1},
    "sppo_hard": {"beta": 0.001},
    "square_chipo": {"r_max": None},
    "tdpo2": {"alpha": 0.5},
    "wpo": {"beta": 0.01, "clamp": True},
}
"""Defaults from the papers other than beta 0.1 only. Where a paper has none, the YAML says so."""


def target(name: str) -> str:
    return {"bco_pair": "BCOPair", "beta_dpo": "BetaDPO", "mix": "Mix"}.get(name, name)


@pytest.mark.parametrize("name", WITH_REFERENCE)
class TestWithReference:
    def test_rewards_are_beta_times_the_summed_log_ratio(self, name):
        logps = full()
        result = shipped(name, beta=0.3)(logps)
        torch.testing.assert_close(result.chosen_reward, 0.3 * (logps.chosen - logps.ref_chosen).detach())
        torch.testing.assert_close(result.rejected_reward, 0.3 * (logps.rejected - logps.ref_rejected).detach())

    def test_the_margin_is_the_difference_of_the_rewards_unless_documented_otherwise(self, name):
        result = shipped(name, beta=0.3)(full())
        difference = result.chosen_reward - result.rejected_reward
        if name in IN_NATS:
            difference = difference / 0.3
        assert torch.allclose(result.margin, difference) != (name in OWN_MARGIN)

    def test_without_a_reference_the_error_names_what_to_type(self, name):
        with pytest.raises(ReferenceRequired, match="reference=cached"):
            shipped(name)(changed(full(), **NO_REFERENCE))


@pytest.mark.parametrize("name", sorted(OWN_MARGIN))
def test_another_margin_is_the_argument_of_the_loss(name):
    result = shipped(name, beta=0.3, **({"drop": 0.0} if name == "beta_dpo" else {}))(full())
    torch.testing.assert_close(result.loss, -logsigmoid(result.margin))


@pytest.mark.parametrize("name", sorted(REFERENCE_FREE - {"orpo"}))
def test_the_margin_of_a_reference_free_loss_is_the_difference_of_its_rewards(name):
    """Except orpo's, which is the difference of log-odds."""
    result = shipped(name)(full())
    torch.testing.assert_close(result.margin, result.chosen_reward - result.rejected_reward)


@pytest.mark.parametrize("name", sorted(REFERENCE_FREE))
def test_a_reference_free_loss_does_not_use_a_reference(name):
    with_one, without = shipped(name)(full()), shipped(name)(changed(full(), **NO_REFERENCE))
    for field, value in vars(with_one).items():
        assert torch.equal(value, getattr(without, field))


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        *[(name, dict(beta=value)) for name in sorted(set(NAMES) - WITHOUT_BETA - {"mix"}) for value in (0, -1)],
        *[(name, dict(label_smoothing=0.5)) for name in ("dpo", "cdpo", "robust", "exo_pair", "aot", "aot_unpaired")],
        ("exo_pair", dict(label_smoothing=0)),
        ("robust", dict(label_smoothing=-0.1)),
        ("fdpo", dict(alpha=1)),
        ("fdpo", dict(alpha=0)),
        ("fdpo", dict(divergence="kl")),
        ("ld_dpo", dict(alpha=1.5)),
        ("chipo", dict(r_max=0)),
        ("discopop", dict(tau=0)),
        ("dpop", dict(lam=-1)),
        ("dr_dpo", dict(beta_prime=0)),
        ("beta_dpo", dict(drop=1)),
        ("hdpo", dict(alpha=0)),
    ],
)  # fmt: skip
def test_a_parameter_out_of_range_is_named(name, wrong):
    (key,) = wrong
    with pytest.raises(ArgumentError, match=f"^{key}: found"):
        check_arguments(getattr(losses, target(name)), wrong, allow_missing=True)


def test_a_module_checks_its_own_parameters():
    with pytest.raises(ArgumentError, match="beta: found -1"):
        losses.BCOPair(beta=-1)


def test_mismatched_shapes_are_named():
    with pytest.raises(ValueError, match=r"rejected.*\(2,\)"):
        PairLogps(torch.zeros(3), torch.zeros(2))
    with pytest.raises(ValueError, match=r"tokens.*\(4, 4\)"):
        changed(full(5), tokens=full(4).tokens)


def test_a_missing_field_is_named():
    with pytest.raises(ValueError, match="chosen_collision"):
        shipped("wpo")(changed(full(), chosen_collision=None))
    with pytest.raises(ValueError, match="found neither"):
        shipped("odpo")(changed(full(), target_margin=None))
    with pytest.raises(ValueError, match="found both"):
        shipped("odpo", offset=1.0)(full())


def test_needs_of_partials_and_sums():
    assert needs_of(shipped("tdpo1")) == {"reference_kl"} and needs_of(shipped("dpo")) == frozenset()
    assert needs_of(shipped("bco_pair")) == {"whole_batch"} and not needs_of(shipped("bco_pair", shift=False))
    dpo, sft, wpo = (shipped(name) for name in ("dpo", "sft", "wpo"))
    assert needs_of(losses.Mix({"a": dpo, "b": sft}, {"a": 1.0, "b": 1.0})) == frozenset()
    assert needs_of(losses.Mix({"a": sft}, {"a": 1.0})) == {"chosen_only"}
    assert needs_of(losses.Mix({"a": wpo, "b": shipped("aot")}, {"a": 1, "b": 1})) == {
        "collision", "whole_batch", "equal_weights",
    }  # fmt: skip

    @needs("tokens")
    def custom(logps):
        return losses.dpo(logps, beta=1.0)

    assert needs_of(custom) == {"tokens"}
