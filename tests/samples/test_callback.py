"""Completions during validation: KL, scores and texts."""

import json
from functools import partial
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn

from lightning_dpo import CachedReference, CopyReference, DPOModule, PreferenceDataModule, losses
from lightning_dpo.demo import grammar
from lightning_dpo.samples import SampleCallback
from lightning_dpo.samples.measures import Completion, named_scores, summarise
from lightning_dpo.scoring import Scorer
from tests.samples.kinds import make
from tests.test_module import trainer


def completion(logp: float, ref_logp: float | None, reward: float = 0.0) -> Completion:
    return Completion("p", "t", 3, logp, ref_logp, {"reward": reward})


def test_kl_is_the_mean_log_ratio_with_its_standard_error():
    summary = summarise([completion(-1, -2), completion(-1, -4), completion(-5, -4, reward=3.0)])
    assert summary["kl"] == pytest.approx(1.0)
    assert summary["kl_se"] == pytest.approx(2 / 3**0.5)  # sd of 1, 3, -1 is 2
    assert summary["samples/reward"] == 1.0 and summary["samples/length"] == 3


def test_without_a_reference_there_is_no_kl():
    assert "kl" not in summarise([completion(-1, None)])


def test_a_scorer_returns_one_number_or_named_numbers_per_text():
    assert named_scores(lambda texts: [len(t) for t in texts], ["ab", "c"]) == {"reward": [2.0, 1.0]}
    assert named_scores(grammar.score, ["x"]) == {"reward": [-4.0], "valid": [0.0]}
    with pytest.raises(ValueError, match="1 values of 'reward' for 2 texts"):
        named_scores(lambda texts: [1], ["a", "b"])


@pytest.mark.parametrize("reference", ["cached", "copy", "none"])
def test_a_validation_writes_completions_and_their_true_log_probabilities(reviews, few_reviews, tmp_path, reference):
    loss = partial(losses.simpo, beta=2.0, gamma=0.5)
    references = {"cached": CachedReference(cache_dir=tmp_path / "cache"), "copy": CopyReference(), "none": None}
    module = DPOModule(reviews / "model", loss, references[reference], partial(torch.optim.AdamW, lr=1e-3))
    data = PreferenceDataModule(reviews / "model", few_reviews, val=few_reviews, batch_size=16)
    samples = SampleCallback(n=40, max_new_tokens=40, scorer=grammar.score, output_dir=tmp_path)
    trainer = L.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[samples], num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.validate(module, data, verbose=False)
    start = dict(trainer.callback_metrics)
    trainer.fit(module, datamodule=data)
    end = trainer.callback_metrics

    rows = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0] * 40 + [3] * 40
    assert len({row["prompt"] for row in rows}) < 40, "prompts repeat where there are too few"
    assert [r["reward"] for r in rows] == [grammar.oracle_reward(r["text"]) for r in rows]
    ids = [data.tokenizer(row["prompt"])["input_ids"] for row in rows[40:]]
    with torch.no_grad():
        for row, prompt in list(zip(rows[40:], ids, strict=True))[:5]:
            response = data.tokenizer(row["text"] + " </s>")["input_ids"][: row["tokens"]]
            logits = module.policy(torch.tensor([prompt + response])).logits[0].log_softmax(-1)
            logp = sum(logits[len(prompt) + t - 1, token].item() for t, token in enumerate(response))
            assert row["logp"] == pytest.approx(logp, abs=1e-3)
    if reference == "none":
        assert "val/kl" not in end
    else:
        assert start["val/kl"] == pytest.approx(0, abs=1e-4) and end["val/kl"] > 0.001
        assert end["val/kl"] == pytest.approx(sum(r["logp"] - r["ref_logp"] for r in rows[40:]) / 40, rel=1e-4)


def test_a_resumed_run_batches_as_its_first_draw_decided(reviews, few_reviews, tmp_path, caplog):
    """Prompts of equal length, as a recurrence reads padding. A state that was saved without a decision decides."""
    rows = [json.loads(line) for line in few_reviews.read_text().splitlines()]
    for i, row in enumerate(rows):
        row["prompt"] = " ".join(row["prompt"].split()[i % 3 :])
    few_reviews.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = PreferenceDataModule(reviews / "model", few_reviews, val=few_reviews, batch_size=16)
    model = make("recurrent_gemma", vocab_size=len(data.tokenizer))
    module = DPOModule(model, partial(losses.simpo, beta=2.0, gamma=0.5))

    def validated(state: dict | None) -> SampleCallback:
        samples = SampleCallback(n=8, max_new_tokens=8, output_dir=tmp_path)
        if state is not None:
            samples.load_state_dict(state)
        trainer(callbacks=[samples]).validate(module, data, verbose=False)
        return samples

    first = validated(None)
    old = {name: value for name, value in first.state_dict().items() if name != "batches"}
    for state, warnings in ((first.state_dict(), 0), (old, 1)):
        caplog.clear()
        again = validated(state)
        assert again.last == first.last and again.batches == first.batches == "equal"
        assert sum("share a batch" in record.message for record in caplog.records) == warnings


@pytest.mark.parametrize(("steps_left", "expected"), [(1, [1, 3, 5]), (0, [1, 2, 3, 4, 5])])
def test_completions_are_drawn_at_every_nth_validation_and_at_the_end(steps_left, expected):
    drawn = []
    callback = SampleCallback(n=1, every=2)
    callback.draw = lambda *_: drawn.append(callback.validations) or [completion(0, 0)]  # type: ignore[method-assign]

    class Stub:
        global_step = 0
        estimated_stepping_batches = steps_left
        state = SimpleNamespace(fn=TrainerFn.FITTING)
        loggers = ()
        log_dict = staticmethod(lambda *_, **__: None)

    for _ in range(5):
        callback.on_validation_epoch_end(Stub(), Stub())  # type: ignore[arg-type]
    assert drawn == expected


def test_completions_must_fit_into_the_models_positions(reviews, few_reviews):
    module = DPOModule(reviews / "model", partial(losses.simpo, beta=2.0, gamma=0.5))
    data = PreferenceDataModule(reviews / "model", few_reviews, val=few_reviews)
    data.setup()
    with pytest.raises(ValueError, match="samples.max_new_tokens=60"):
        SampleCallback(n=4, max_new_tokens=60)._prompts(module, data.val_sets.values())
    assert Scorer(module.policy).forwards == 0
