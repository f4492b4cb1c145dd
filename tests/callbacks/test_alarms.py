"""The warning: when it speaks, when it keeps silent, where it is read."""

import logging
from types import SimpleNamespace

import pytest
import torch

from lightning_dpo.callbacks.alarms import DisplacementWarning


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
        ([(-40, -40), (-41, -43), (-42.5, -47)], True),  # slowly: the start counts, not the validation before
        ([(-40, -40), (-41, -47)], False),  # 0.05 nats per token are little
        ([(-40, -40), (-38, -47)], False),  # the chosen ones rise
        ([(-40, -40), (-50, -45)], False),  # a collapse, but the margin shrinks: not this trap
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


def test_once_in_a_run_and_a_continued_run_remembers(caplog):
    callback = DisplacementWarning()
    validated(callback, [(-40, -40), (-43, -50), (-44, -52)])
    assert len(caplog.records) == 1
    continued = DisplacementWarning()
    continued.load_state_dict(callback.state_dict())
    validated(continued, [(-45, -55), (-50, -65)])
    assert len(caplog.records) == 1

    early = DisplacementWarning()
    validated(early, [(-40, -40)])
    continued = DisplacementWarning()
    continued.load_state_dict(early.state_dict())
    validated(continued, [(-43, -50)])
    assert len(caplog.records) == 2, "the start is that of the whole run"
