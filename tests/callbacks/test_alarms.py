"""Warnings during training: when each is given, what it says, and that it is given once."""

import logging
from types import SimpleNamespace

import pytest
import torch

from lightning_dpo.callbacks.alarms import (
    CollapseWarning,
    DisplacementWarning,
    fell_significantly,
    share_rounded_away,
)
from lightning_dpo.samples.measures import Completion


def validated(callback: DisplacementWarning, series: list[tuple[float, float]], tokens: float = 20.0) -> None:
    """The callback after validations with these mean log-probabilities of chosen and rejected, in nats."""
    for step, (chosen, rejected) in enumerate(series):
        names = {"val/logps/chosen": chosen, "val/logps/rejected": rejected, "val/lengths/chosen": tokens}
        trainer = SimpleNamespace(
            callback_metrics={k: torch.tensor(v) for k, v in names.items()}, global_step=100 * step,
            is_global_zero=True, loggers=[],
        )  # fmt: skip
        callback.on_validation_end(trainer, None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("series", "warns"),
    [
        ([(-40, -40), (-43, -50)], True),  # both fall, the rejected ones faster
        ([(-40, -40), (-41, -43), (-42.5, -47)], True),  # slowly: compared with the start of the run
        ([(-40, -40), (-41, -47)], False),  # 0.05 nats per token are below the threshold
        ([(-40, -40), (-38, -47)], False),  # the chosen ones rise
        ([(-40, -40), (-50, -45)], False),  # both fall, but the margin shrinks: not displacement
        ([(-40, -90), (-43, -93.5)], True),  # whatever the margin was at the start
        ([(-40, -40)], False),
    ],
)
def test_it_warns_when_the_margin_grows_while_the_chosen_responses_fall(series, warns, caplog):
    with caplog.at_level(logging.WARNING):
        validated(DisplacementWarning(), series)
    assert len(caplog.records) == warns


def test_it_names_numbers_and_remedies(caplog):
    validated(DisplacementWarning(), [(-40, -40), (-43, -50)])
    (record,) = caplog.records
    for part in ("step 100", "0.15 nats per token (3.0 per", "margin grew by 7.0 nats", "dpop", "rpo", "cal_dpo", "ipo",
                 "larger beta", "CHES"):  # fmt: skip
        assert part in record.getMessage()


def test_it_warns_once_in_a_run_even_if_the_run_was_resumed(caplog):
    callback = DisplacementWarning()
    validated(callback, [(-40, -40), (-43, -50), (-44, -52)])
    assert len(caplog.records) == 1
    resumed = DisplacementWarning()
    resumed.load_state_dict(callback.state_dict())
    validated(resumed, [(-45, -55), (-50, -65)])
    assert len(caplog.records) == 1

    early = DisplacementWarning()
    validated(early, [(-40, -40)])
    resumed = DisplacementWarning()
    resumed.load_state_dict(early.state_dict())
    validated(resumed, [(-43, -50)])
    assert len(caplog.records) == 2, "the start is that of the whole run"


def validated_with_scores(callback: CollapseWarning, series: list[tuple[float, float, list[float]]]) -> None:
    """The callback after validations with this KL, accuracy and rewards of the samples."""
    for step, (kl, accuracy, rewards) in enumerate(series):
        callback.samples.last = [Completion("p", "t", 1, 0.0, 0.0, {"reward": r}) for r in rewards]
        metrics = {"val/kl": torch.tensor(kl), "val/rewards/accuracies": torch.tensor(accuracy)}
        run = SimpleNamespace(callback_metrics=metrics, global_step=step, is_global_zero=True, loggers=[])
        callback.on_validation_end(run, None)  # type: ignore[arg-type]


HIGH, LOW = [5.0, 6.0, 7.0, 6.0] * 8, [4.0, 5.0, 6.0, 5.0] * 8


@pytest.mark.parametrize(
    ("series", "words"),
    [
        ([(1, 0.5, HIGH), (120, 0.5, HIGH), (130, 0.5, HIGH)], ["KL 120.0 nats", "warn_kl=100"]),  # once
        ([(1, 0.5, HIGH), (99, 0.9, HIGH)], []),
        (
            [(1, 0.5, HIGH), (2, 0.9, LOW), (2, 0.9, LOW)],
            ["accuracy rose from 0.500 to 0.900", "reward fell from 6 to 5"],
        ),
        ([(1, 0.5, HIGH), (2, 0.4, LOW)], []),  # worse by both measures
        ([(0, 0.0, HIGH), (2, 0.4, LOW)], []),  # all ties at the start; 0.4 is below chance
        ([(0, 0.0, HIGH), (2, 0.9, LOW)], ["accuracy rose from 0.500 to 0.900"]),
        ([(1, 0.5, LOW), (2, 0.9, HIGH)], []),
        ([(1, 0.5, [1.0, 9.0]), (2, 0.9, [0.9, 8.9])], []),  # within the noise of two completions
    ],
)
def test_it_warns_of_a_large_kl_and_of_a_scorer_that_disagrees(series, words, caplog):
    callback = CollapseWarning(SimpleNamespace(last=[]), 100.0)  # type: ignore[arg-type]
    with caplog.at_level(logging.WARNING):
        validated_with_scores(callback, series)
    assert len(caplog.records) == bool(words) and all(word in caplog.text for word in words)


def test_a_resumed_run_compares_with_its_start(caplog):
    first = CollapseWarning(SimpleNamespace(last=[]), 100.0)  # type: ignore[arg-type]
    validated_with_scores(first, [(1, 0.5, HIGH)])
    second = CollapseWarning(SimpleNamespace(last=[]), 100.0)  # type: ignore[arg-type]
    second.load_state_dict(first.state_dict())
    validated_with_scores(second, [(2, 0.9, LOW)])
    assert "reward fell" in caplog.text


def test_a_fall_is_significant_beyond_twice_its_standard_error():
    assert fell_significantly(HIGH, LOW) and not fell_significantly(LOW, HIGH) and not fell_significantly([1.0], [0.0])
    assert not fell_significantly([0.0, 2.0], [-0.5, 1.5])


def test_the_share_of_weights_that_a_step_leaves_unchanged():
    """bfloat16 has 8 bits: the weights next to 1 are 1 + 2^-7 and 1 - 2^-8, and half a step rounds to 1."""
    weight = torch.ones(10, dtype=torch.bfloat16)
    assert share_rounded_away([weight], 1e-3) == 1 and share_rounded_away([weight], 2.0**-8) == 0
    assert share_rounded_away([torch.tensor([1.0, 1e-4], dtype=torch.bfloat16)], 1e-4) == 0.5
    assert share_rounded_away([torch.ones(10)], 1e-9) == 0, "float32 weights do not count"


def test_pure_bfloat16_with_a_small_learning_rate_gives_a_warning(command, short):
    pure = ["model.dtype=bfloat16", "trainer.precision=bf16-true", "optimizer.lr=1e-6", "samples.n=0", "logger=csv"]
    code, output = command(*short, *pure, "trainer.max_steps=1")
    assert code == 0 and "rounds to nothing for" in output and "trainer.precision=bf16-mixed" in output, output
