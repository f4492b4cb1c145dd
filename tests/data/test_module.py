"""PreferenceDataModule by itself: files in, ragged batches out."""

import json

import lightning as L
import pytest
import torch

from lightning_dpo import PreferenceDataModule
from lightning_dpo.errors import ConfigError, DataError
from lightning_dpo.samples.measures import distinct_prompts


def test_batches_hold_every_pair_once_and_decode_to_their_rows(reviews, few_reviews):
    data = PreferenceDataModule(reviews / "model", few_reviews, batch_size=10)
    data.setup()
    rows = [json.loads(line) for line in few_reviews.read_text().splitlines()]
    seen = []
    for batch in data.train_dataloader():
        for i, index in enumerate(batch.index.tolist()):
            ids = torch.cat([batch.prompt.row(i), batch.chosen.row(i)]).tolist()
            assert data.tokenizer.decode(ids) == rows[index]["prompt"] + rows[index]["chosen"] + " </s>"
            seen.append(index)
    assert sorted(seen) == list(range(48)) and seen != sorted(seen)


def order(data: PreferenceDataModule, epoch: int) -> list[int]:
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
    return [i for batch in loader for i in batch.index.tolist()]


def test_the_order_is_a_function_of_seed_and_epoch(reviews, few_reviews):
    def make(**options):
        data = PreferenceDataModule(reviews / "model", few_reviews, **options)
        data.setup()
        return data

    assert order(make(seed=1), 0) == order(make(seed=1), 0)
    assert order(make(seed=1), 0) != order(make(seed=1), 1)
    assert order(make(seed=1), 0) != order(make(seed=2), 0)
    assert order(make(shuffle=False), 3) == list(range(48))
    assert order(make(seed=1, num_workers=2), 0) == order(make(seed=1), 0)


def test_training_sees_every_row_once_per_epoch_in_a_new_order(reviews, few_reviews):
    class Seen(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(()))
            self.rows: list[int] = []

        def training_step(self, batch, batch_idx):
            self.rows += batch.index.tolist()
            return self.weight * 0

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.0)

    seen = Seen()
    silent = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    trainer = L.Trainer(max_epochs=2, accelerator="cpu", **silent)
    trainer.fit(seen, datamodule=PreferenceDataModule(reviews / "model", few_reviews, batch_size=10))
    first, second = seen.rows[:48], seen.rows[48:]
    assert sorted(first) == sorted(second) == list(range(48)) and first != second


def test_validation_is_a_file_a_fraction_of_the_prompts_or_nothing(reviews, few_reviews):
    none = PreferenceDataModule(reviews / "model", few_reviews)
    none.setup()
    assert none.val_sets == {} and none.val_dataloader() == []
    file = PreferenceDataModule(reviews / "model", few_reviews, val=few_reviews)
    file.setup()
    assert len(file.val_sets["val"]) == 48
    split = PreferenceDataModule(reviews / "model", few_reviews, val=0.2)
    split.setup()
    prompts = {name: set(distinct(pairs)) for name, pairs in split.sets().items()}
    assert not prompts["train"] & prompts["val"]
    assert len(split.train_pairs) + len(split.val_sets["val"]) == 48


def distinct(pairs):
    return (tuple(prompt) for prompt in distinct_prompts([pairs]))


def test_named_validation_sets_keep_their_names(reviews, few_reviews, tmp_path):
    other = tmp_path / "other.jsonl"
    other.write_text("".join(few_reviews.read_text().splitlines(keepends=True)[:7]))
    data = PreferenceDataModule(reviews / "model", few_reviews, val={"all": few_reviews, "seven": [other]})
    data.setup()
    assert {name: len(pairs) for name, pairs in data.sets().items()} == {"train": 48, "val/all": 48, "val/seven": 7}
    assert len(data.val_dataloader()) == 2


def test_a_chat_template_is_text_or_a_file(reviews, tmp_path):
    template = "{% for m in messages %}{{ m.content }} {% endfor %}"
    (tmp_path / "t.jinja").write_text(template)
    rows = tmp_path / "chat.jsonl"
    rows.write_text(json.dumps(dict(prompt=[{"role": "user", "content": "plot"}], chosen="music", rejected="cast")))
    batches = []
    for value in (template, str(tmp_path / "t.jinja")):
        data = PreferenceDataModule(reviews / "model", rows, chat_template=value)
        data.setup()
        batches.append(data.train_pairs.select([0]))
    assert torch.equal(batches[0].chosen.values, batches[1].chosen.values)
    with pytest.raises(DataError, match="data.chat_template=no_such"):
        PreferenceDataModule(reviews / "model", rows, chat_template="no_such.jinja")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"overfit_batches": 2}, "trainer.overfit_batches=2: it replaces the order of the data"),
        ({"strategy": "ddp"}, "trainer.strategy=DDPStrategy: one device is supported so far"),
    ],
)
def test_a_trainer_that_would_replace_the_order_is_refused(reviews, few_reviews, options, message):
    data = PreferenceDataModule(reviews / "model", few_reviews)
    data.setup()
    data.trainer = L.Trainer(accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, **options)
    with pytest.raises(ConfigError, match=message):
        data.train_dataloader()
