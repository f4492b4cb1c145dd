"""The private names of Lightning in `lightning_dpo/run/resume.py` exist and behave as resuming needs.

If a version of Lightning moves one, the other tests of resuming fail in obscure ways; these name it and the version.
"""

import ast
from operator import attrgetter

import lightning as L
import pytest
from lightning.pytorch.loops import progress

from tests.conftest import ROOT, random_pairs
from tests.test_module import loader, module, trainer

NAMES = (
    "fit_loop._restarting",
    "fit_loop._data_fetcher",
    "fit_loop._should_accumulate",
    "fit_loop.reset_restart_stage",
    "fit_loop.epoch_loop.restarting",
    "fit_loop.epoch_loop._batches_that_stepped",
    "fit_loop.epoch_loop._should_check_val_fx",
    "fit_loop.epoch_loop.update_lr_schedulers",
    "fit_loop.epoch_loop.reset_restart_stage",
    "fit_loop.epoch_loop.val_loop.reset_restart_stage",
)
"""Attributes of a trainer; most are private, all are undocumented."""


def changed(name: str) -> str:
    return f"Lightning {L.__version__} has moved or changed {name}; adapt lightning_dpo/run/resume.py"


@pytest.mark.parametrize("name", NAMES)
def test_a_name_exists(name):
    try:
        attrgetter(name)(trainer())
    except AttributeError as error:
        pytest.fail(f"{changed(f'trainer.{name}')} ({error})")


def test_the_tracker_of_progress_exists_and_takes_four_counts():
    tracker = getattr(progress, "_ProcessedTracker", None)
    assert tracker is not None, changed("lightning.pytorch.loops.progress._ProcessedTracker")
    found = tracker(*[3] * 4)
    assert (found.ready, found.started, found.processed, found.completed) == (3, 3, 3, 3), changed("_ProcessedTracker")
    assert type(trainer().fit_loop.epoch_progress.current) is tracker, changed(
        "trainer.fit_loop.epoch_progress.current"
    )


def test_every_private_name_is_in_the_list():
    tree = ast.parse((ROOT / "lightning_dpo" / "run" / "resume.py").read_text())
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    used |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    listed = {part for name in NAMES for part in name.split(".")} | {"_ProcessedTracker"}
    assert {name for name in used if name.startswith("_")} <= listed


class Watch(L.Callback):
    """Records what resume.py says at the end of each batch, and after which batches a validation follows."""

    def __init__(self):
        self.within_step: list[bool] = []
        self.announced: list[bool] = []
        self.validated: list[bool] = []

    def on_train_batch_end(self, trainer, *args) -> None:
        from lightning_dpo.run import resume

        self.within_step.append(resume.is_within_step(trainer))
        self.announced.append(resume.validates_now(trainer))
        self.validated.append(False)

    def on_validation_start(self, *args) -> None:
        self.validated[-1] = True


def test_steps_and_validations_are_recognised():
    """Seven batches, two per step, the last step shorter; a validation after every third batch."""
    watch, pairs = Watch(), random_pairs(7)
    options = dict(accumulate_grad_batches=2, val_check_interval=3, max_epochs=1)
    trainer(callbacks=[watch], **options).fit(module(), loader(pairs, 1), loader(pairs, 7))
    assert watch.within_step == [True, False] * 3 + [False], changed("trainer.fit_loop._should_accumulate")
    assert watch.announced == watch.validated, changed("trainer.fit_loop.epoch_loop._should_check_val_fx")
    assert sum(watch.validated) == 2


def test_an_epoch_begins_as_in_an_uninterrupted_run():
    from lightning_dpo.run import resume

    run = trainer(max_steps=9)
    loop = run.fit_loop
    loop.load_state_dict(loop.state_dict())
    assert loop.restarting and loop.epoch_loop.restarting, changed("trainer.fit_loop.restarting")
    resume.begin_epoch(run, 3)
    assert run.current_epoch == 3, changed("trainer.fit_loop.epoch_progress")
    restarting = (loop.restarting, loop.epoch_loop.restarting, loop.epoch_loop.val_loop.restarting)
    assert restarting == (False, False, False), changed("trainer.fit_loop._restarting")
