"""Losses in a run: values from the scorer, memories in checkpoints, errors."""

import math
from functools import partial

import pytest
import torch

from lightning_dpo import CachedReference, CopyReference, DPOModule, losses
from lightning_dpo.scoring import Scorer, full_logits_logps
from lightning_dpo.scoring.attention import plain_attention
from tests.conftest import llama, random_pairs
from tests.losses.pairs import NAMES, REFERENCE_FREE, shipped
from tests.test_module import SGD, Rows, loader, perturbed, trainer


def log_probabilities(model, prompt: torch.Tensor, response: torch.Tensor) -> torch.Tensor:
    """log-softmax at the positions that predict the response, [token, vocabulary], from a plain forward pass."""
    ids = torch.cat([prompt, response])
    with plain_attention(model):
        logits = model(input_ids=ids[None]).logits
    return logits[0, len(prompt) - 1 : len(ids) - 1].double().log_softmax(-1)


@pytest.mark.parametrize("tokens_at_once", [3, 1000])
def test_collision_and_kl_cover_the_whole_vocabulary(tokens_at_once):
    policy, reference, batch = llama(0), llama(1), random_pairs()
    scorer = Scorer(policy, chunk_logits=tokens_at_once * 61)
    scores = scorer.score(batch, {"collision", "reference_kl"}, Scorer(reference))
    for side in ("chosen", "rejected"):
        for i in range(len(batch)):
            prompt, response = batch.prompt.row(i), getattr(batch, side).row(i)
            own, ref = (log_probabilities(m, prompt, response) for m in (policy, reference))
            for found, true in (
                (scores.collision, (own.exp() ** 2).sum(-1).log()),
                (scores.kl, (ref.exp() * (ref - own)).sum(-1)),
                (scores.reference, full_logits_logps(reference, prompt, response)),
                (scores.logps, full_logits_logps(policy, prompt, response)),
            ):
                torch.testing.assert_close(getattr(found, side).row(i).double(), true, atol=1e-5, rtol=1e-5)


def test_chunks_do_not_change_the_gradient_of_the_kl_and_the_reference_gets_none():
    gradients, batch = [], random_pairs()
    for chunk in (3, 1000):
        policy, reference = llama(0), llama(1)
        scores = Scorer(policy, chunk_logits=chunk * 61).score(batch, {"reference_kl"}, Scorer(reference))
        scores.kl.chosen.values.sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in policy.parameters()]))
        assert all(p.grad is None for p in reference.parameters())
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-5)


def test_the_kl_of_equal_models_is_zero():
    scores = Scorer(llama()).score(random_pairs(), {"reference_kl"}, Scorer(llama()))
    assert not scores.kl.chosen.values.any()


@pytest.mark.parametrize("loss", [partial(losses.tdpo1, beta=0.1), partial(losses.tdpo2, beta=0.1, alpha=0.5)])
def test_tdpo_starts_at_log_2_with_one_forward_of_each_model_and_trains(loss):
    rows, run = Rows(), DPOModule(llama(), loss, CopyReference(), SGD)
    trainer(logger=rows).validate(run, loader(random_pairs(), 6), verbose=False)
    assert rows.rows[0][1]["val/loss"] == pytest.approx(0.693147, abs=1e-6)
    assert run.reference.forwards == run.scorer.forwards == 1
    trainer().fit(perturbed(run), loader(random_pairs(), 3))
    assert not torch.equal(run.policy.lm_head.weight, run.reference.model.lm_head.weight)


def test_tdpo_refuses_a_cached_reference(tmp_path):
    with pytest.raises(ValueError, match="reference=copy"):
        DPOModule(llama(), partial(losses.tdpo1, beta=0.1), CachedReference(cache_dir=tmp_path))


def test_wpo_weighs_by_the_policys_own_probability():
    run, batch = perturbed(DPOModule(llama(), partial(losses.wpo, beta=0.1), CopyReference())), random_pairs()
    found = losses.wpo(run._score(batch)[0], beta=0.1).loss / losses.dpo(run._score(batch)[0], beta=0.1).loss
    weight = torch.zeros(len(batch), dtype=torch.float64)
    for i in range(len(batch)):
        for side in ("chosen", "rejected"):
            prompt, response = batch.prompt.row(i), getattr(batch, side).row(i)
            own = full_logits_logps(run.policy, prompt, response)
            weight[i] += (own - (log_probabilities(run.policy, prompt, response).exp() ** 2).sum(-1).log()).mean()
    torch.testing.assert_close(found.double(), weight.clamp(max=0).exp(), atol=1e-4, rtol=1e-4)


def test_sft_scores_and_logs_no_rejected_response():
    rows, run, batch = Rows(), DPOModule(llama(), losses.sft, optimizer=SGD), random_pairs()
    tokens = []
    run.policy.register_forward_pre_hook(
        lambda _m, _a, inputs: tokens.append(inputs["input_ids"].numel()), with_kwargs=True
    )
    fit = trainer(logger=rows, log_every_n_steps=1)
    fit.fit(run, loader(batch, 6), loader(batch, 6))
    assert max(tokens) == len(batch.prompt.values) + len(batch.chosen.values)
    names = {name for _, row in rows.rows for name in row}
    assert {"train/loss", "val/logps/chosen"} <= names and not any("rejected" in n or "margin" in n for n in names)


def test_sft_in_a_sum_does_not_remove_the_rejected_side():
    mix = losses.Mix({"dpo": partial(losses.dpo, beta=0.1), "sft": losses.sft}, {"dpo": 1.0, "sft": 1.0})
    run = perturbed(DPOModule(llama(), mix, CopyReference()))
    assert len(run._score(random_pairs())[0].tokens.rejected.values) == len(random_pairs().rejected.values)


@pytest.mark.parametrize(
    "loss",
    [
        losses.BCOPair(beta=0.1),
        losses.Mix({"a": losses.BetaDPO(beta=0.1), "b": losses.sft}, {"a": 1.0, "b": 1.0}),
    ],
)  # fmt: skip
def test_a_memory_is_saved_in_the_checkpoint_and_restored(tmp_path, loss):
    run = perturbed(DPOModule(llama(), loss, CopyReference(), SGD))
    fit = trainer()
    fit.fit(run, loader(random_pairs(), 3))
    fit.save_checkpoint(tmp_path / "last.ckpt")
    loaded = DPOModule.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    memory, again = run.loss.state_dict(), loaded.loss.state_dict()
    assert memory and any(value.item() for value in memory.values())
    assert all(torch.equal(value, again[name]) for name, value in memory.items())


@pytest.mark.parametrize("name", NAMES)
def test_every_loss_trains_from_its_yaml(name):
    """Two steps under a plain trainer: the weights change, and every logged number is finite."""
    batch, rows = random_pairs(), Rows()
    batch.margin = torch.arange(6.0) if name == "odpo" else None
    run = DPOModule(llama(), shipped(name), None if name in REFERENCE_FREE else CopyReference(), SGD)
    before = perturbed(run).policy.lm_head.weight.clone()
    trainer(logger=rows, log_every_n_steps=1).fit(run, loader(batch, 3), loader(batch, 6))
    assert not torch.equal(run.policy.lm_head.weight, before)
    logged = [row["train/loss"] for _, row in rows.rows if "train/loss" in row]
    assert len(logged) == 2 and all(math.isfinite(v) for _, row in rows.rows for v in row.values())


@pytest.mark.parametrize("loss", [losses.BCOPair(beta=0.1), partial(losses.aot, beta=0.1)])
def test_a_loss_with_batch_statistics_refuses_accumulation(loss):
    run = DPOModule(llama(), loss, CopyReference(), SGD)
    with pytest.raises(ValueError, match="accumulate_grad_batches=1"):
        trainer(accumulate_grad_batches=2).fit(run, loader(random_pairs(), 2))


def test_pair_weights_scale_the_losses_and_losses_of_a_batch_refuse_them():
    batch, weight = random_pairs(), torch.tensor([0.0, 1.0, 2.0, 0.5, 1.0, 3.0])
    run = perturbed(DPOModule(llama(), partial(losses.dpo, beta=0.1), CopyReference()))
    _, plain, _ = run._losses(batch)
    batch.weight = weight
    torch.testing.assert_close(run._losses(batch)[1], weight * plain)
    for loss in (partial(losses.dr_dpo, beta=0.1), partial(losses.aot, beta=0.1)):
        with pytest.raises(ValueError, match="cannot be weighted"):
            DPOModule(llama(), loss, CopyReference())._losses(batch)


def test_margins_reach_odpo_and_other_losses_refuse_them():
    batch = random_pairs()
    batch.margin = torch.arange(6.0)
    run = DPOModule(llama(), partial(losses.odpo, beta=0.1), CopyReference())
    run.reference.prepare(run.policy, trainer())
    torch.testing.assert_close(run._losses(batch)[1], -torch.nn.functional.logsigmoid(-batch.margin))
    with pytest.raises(ValueError, match="loss=odpo"):
        DPOModule(llama(), partial(losses.dpo, beta=0.1), CopyReference())._losses(batch)
