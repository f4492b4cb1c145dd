"""Streams: the same pairs as from disk, in a seeded order, reading ahead no more than the buffer."""

import json
from collections import Counter

import pytest

from lightning_dpo import PreferenceDataModule
from lightning_dpo.data import stream
from lightning_dpo.errors import DataError
from tests.data.test_tokenize import CHATML, byte_level


@pytest.fixture
def make(reviews, few_reviews):
    def make(train=few_reviews, **options) -> PreferenceDataModule:
        data = PreferenceDataModule(reviews / "model", train, batch_size=5, streaming=True, **options)
        data.setup()
        return data

    return make


def texts(data: PreferenceDataModule, loader=None) -> list[str]:
    batches = data.train_dataloader() if loader is None else loader
    return [data.tokenizer.decode(row.tolist()) for batch in batches for row in batch.chosen.rows()]


def test_a_stream_gives_every_pair_once_per_epoch_in_a_new_order(make, few_reviews, monkeypatch):
    monkeypatch.setattr(stream, "BUFFER", 10)
    data = make()
    expected = Counter(json.loads(line)["chosen"].strip() + " </s>" for line in few_reviews.read_text().splitlines())
    loader = data.train_dataloader()
    first, second = texts(data, loader), texts(data, loader)
    assert Counter(first) == Counter(second) == expected and first != second
    assert texts(make()) == first and texts(make(seed=1)) != first


def test_without_shuffle_a_stream_keeps_the_order_of_the_file(make, few_reviews):
    rows = [json.loads(line)["chosen"].strip() + " </s>" for line in few_reviews.read_text().splitlines()]
    assert texts(make(shuffle=False)) == rows


def test_weights_are_passes_over_a_stream(make, few_reviews):
    counts = Counter(texts(make([{"path": str(few_reviews), "weight": 2.5}])))
    once = Counter(texts(make()))
    assert all(2 * once[t] <= counts[t] <= 3 * once[t] for t in once) and 100 < sum(counts.values()) < 140


def test_only_the_buffer_is_read_ahead(make, reviews, tmp_path, monkeypatch):
    monkeypatch.setattr(stream, "BUFFER", 10)
    monkeypatch.setattr(stream, "AT_ONCE", 4)
    monkeypatch.setattr("lightning_dpo.data.sources.CHUNK", 8)
    lines = [json.dumps(dict(prompt="plot", chosen=f" witty cast {i}", rejected=" dull")) for i in range(60)]
    (tmp_path / "rows.jsonl").write_text("\n".join([*lines, "broken"]))
    batches = iter(make(tmp_path / "rows.jsonl").train_dataloader())
    for _ in range(5):
        next(batches)
    with pytest.raises(DataError, match=r"rows.jsonl:61: not JSON.*data.on_bad_row=drop"):
        list(batches)


def test_bad_rows_of_a_stream_can_be_dropped_and_are_counted(make, few_reviews, tmp_path):
    (tmp_path / "rows.jsonl").write_text("broken\n" + few_reviews.read_text() + '{"prompt": 1}\n')
    data = make(tmp_path / "rows.jsonl", on_bad_row="drop")
    for batch in data.train_dataloader():
        data.used(batch, epoch=0)
    assert data.stream_counts == {"pairs": 48, "json": 1, "missing": 1}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(val=0.1), "a stream cannot be split by prompt"),
        (dict(num_workers=2), "one process reads a stream"),
    ],
)
def test_what_a_stream_cannot_do_is_refused(make, options, message):
    with pytest.raises(DataError, match=message):
        make(**options)


def test_rows_after_the_last_batch_are_counted_too(make, few_reviews, tmp_path):
    lines = few_reviews.read_text().splitlines(keepends=True)[:5]
    same = json.dumps(dict(prompt="plot", chosen=" cast", rejected=" cast")) + "\n"
    (tmp_path / "rows.jsonl").write_text("".join(lines) + same * 3 + "broken\n")
    data = make(tmp_path / "rows.jsonl", on_bad_row="drop", shuffle=False)
    for batch in data.train_dataloader():
        data.used(batch, epoch=0)
    assert data.stream_counts == {"pairs": 5, "identical": 3, "json": 1}


def test_a_resumed_run_counts_each_row_once(make, few_reviews, tmp_path, monkeypatch):
    monkeypatch.setattr(stream, "BUFFER", 8)
    lines = few_reviews.read_text().splitlines(keepends=True)
    (tmp_path / "rows.jsonl").write_text("".join(line + "broken\n" for line in lines))
    stopped, resumed = (make(tmp_path / "rows.jsonl", on_bad_row="drop") for _ in range(2))
    for _, batch in zip(range(4), stopped.train_dataloader(), strict=False):
        stopped.used(batch, epoch=0)
    resumed.load_state_dict(stopped.state_dict())
    for batch in resumed.train_dataloader():
        resumed.used(batch, epoch=0)
    assert resumed.stream_counts == {"pairs": 48, "json": 48}


def test_a_stream_without_pairs_is_refused(make, tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps(dict(prompt="plot", chosen=" cast", rejected=" cast")))
    with pytest.raises(DataError, match="no usable pairs in the stream: {'identical': 1}"):
        list(make(tmp_path / "rows.jsonl").train_dataloader())


def test_the_ends_of_turn_of_a_stream_are_known_once_they_were_trained(tmp_path):
    """An export stops there."""
    row = {"prompt": [{"role": "user", "content": "is it"}], "chosen": "yes", "rejected": "no"}
    (tmp_path / "chat.jsonl").write_text(json.dumps(row))
    data = PreferenceDataModule(byte_level(template=CHATML), tmp_path / "chat.jsonl", streaming=True)
    data.setup()
    assert data.stop_ids == [2]
    for batch in data.train_dataloader():
        data.used(batch.to("cpu"), epoch=0)
    resumed = PreferenceDataModule(byte_level(template=CHATML), tmp_path / "chat.jsonl", streaming=True)
    resumed.load_state_dict(data.state_dict())
    assert data.stop_ids == resumed.stop_ids == [2, 4]
