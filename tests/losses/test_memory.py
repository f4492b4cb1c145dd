"""Losses with a memory, sums of losses, and losses as plain values."""

import copy
from functools import partial

import pytest
import torch

from lightning_dpo import losses
from lightning_dpo.losses.memory import RunningMean
from lightning_dpo.losses.plain import from_plain, to_plain
from tests.losses.pairs import full


def test_bco_shifts_by_the_mean_of_all_rewards_so_far():
    loss, batches = losses.BCOPair(beta=0.5), [full(seed=s) for s in range(3)]
    for n, batch in enumerate(batches, start=1):
        found = loss(batch).loss
        rewards = [0.5 * x for b in batches[:n] for x in b.log_ratios()]
        delta = torch.cat(rewards).mean().item()
        torch.testing.assert_close(found, losses.bco_pair(batch, beta=0.5, delta=delta).loss)


def test_beta_dpo_averages_the_gap_with_its_momentum():
    loss, batch = losses.BetaDPO(beta=0.1, m0=1.0, momentum=0.75, drop=0.0), full()
    u, v = batch.log_ratios()
    m0 = 0.75 * 1.0 + 0.25 * (u - v).mean().item()
    torch.testing.assert_close(loss(batch).loss, losses.beta_dpo(batch, beta=0.1, m0=m0).loss)


@pytest.mark.parametrize("loss", [losses.BCOPair(beta=0.1), losses.BetaDPO(beta=0.1)])
def test_validation_leaves_the_memory_unchanged(loss):
    loss = copy.deepcopy(loss).train()
    loss(full(seed=1))
    before = copy.deepcopy(loss.state_dict())
    loss.eval()(full(seed=2))
    assert all(torch.equal(before[k], v) for k, v in loss.state_dict().items())
    loss.train()(full(seed=2))
    assert any(not torch.equal(before[k], v) for k, v in loss.state_dict().items())


def test_a_memory_is_saved_and_restored():
    loss, fresh = losses.BCOPair(beta=0.1), losses.BCOPair(beta=0.1)
    loss(full(seed=1))
    fresh.load_state_dict(loss.state_dict())
    assert torch.equal(fresh(full(seed=2)).loss, loss(full(seed=2)).loss)


def test_a_cast_to_half_precision_does_not_round_the_memory():
    mean = RunningMean()
    mean.update(torch.tensor(1 / 3))
    exact = mean.mean.clone()
    assert torch.equal(mean.to(torch.bfloat16).mean, exact)


def test_a_mix_is_the_weighted_sum_of_its_terms():
    batch, dpo, ipo = full(), partial(losses.dpo, beta=0.1), partial(losses.ipo, beta=0.5)
    mix = losses.Mix({"dpo": dpo, "ipo": ipo, "sft": losses.sft}, {"sft": 2.0, "dpo": 0.5, "ipo": 0.25})
    expected = 0.5 * dpo(batch).loss + 0.25 * ipo(batch).loss + 2 * losses.sft(batch).loss
    torch.testing.assert_close(mix(batch).loss, expected)
    assert torch.equal(mix(batch).margin, dpo(batch).margin)


def test_a_mix_holds_the_memories_of_its_terms():
    mix = losses.Mix({"bco": losses.BCOPair(beta=0.1), "sft": losses.sft}, {"bco": 1, "sft": 1})
    mix(full())
    assert mix.state_dict()["remembering.bco.delta.mean"] != 0
    mix.eval()
    assert not mix.terms["bco"].training


BOTH = {"a": losses.sft, "b": losses.sft}


@pytest.mark.parametrize(("terms", "weights"), [({}, {}), (BOTH, {"a": 1.0}), (BOTH, {"a": 1.0, "b": -1.0})])
def test_a_mix_refuses_weights_that_do_not_match_its_terms(terms, weights):
    with pytest.raises(ValueError, match="must name the same losses"):
        losses.Mix(terms, weights)


@pytest.mark.parametrize(
    "loss",
    [
        partial(losses.dpo, beta=0.1),
        losses.sft,
        losses.BetaDPO(beta=0.2, drop=0.0),
        losses.Mix({"a": partial(losses.ipo, beta=0.1), "b": losses.BCOPair(beta=0.3)}, {"a": 1.0, "b": 0.5}),
    ],
)  # fmt: skip
def test_a_loss_is_restored_from_its_plain_values(loss):
    plain = to_plain(loss)
    restored = from_plain(plain)
    assert to_plain(restored) == plain
    assert torch.equal(restored(full()).loss, copy.deepcopy(loss)(full()).loss)


def test_a_loss_from_another_package_has_no_plain_values():
    assert to_plain(partial(lambda logps: logps)) is None
    assert to_plain(losses.Mix({"own": lambda logps: logps}, {"own": 1.0})) is None
