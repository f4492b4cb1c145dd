"""The same rows from every kind of source give the same pairs; sources that cannot be honoured are refused."""

import gzip
import json

import datasets
import pytest
import torch

from lightning_dpo import PreferenceDataModule
from lightning_dpo.data.sources import Source, sources
from lightning_dpo.errors import DataError


@pytest.fixture
def made(few_reviews, tmp_path):
    """The 48 rows of few_reviews in every format."""
    rows = [json.loads(line) for line in few_reviews.read_text().splitlines()]
    table = datasets.Dataset.from_list(rows)
    table.save_to_disk(str(tmp_path / "saved"))
    datasets.DatasetDict(train=table, test=table.select(range(3))).save_to_disk(str(tmp_path / "splits"))
    table.to_parquet(str(tmp_path / "rows.parquet"))
    (tmp_path / "rows.json").write_text(json.dumps(rows, indent=1))
    (tmp_path / "lines.json").write_text(few_reviews.read_text())
    with gzip.open(tmp_path / "rows.jsonl.gz", "wt") as file:
        file.write(few_reviews.read_text())
    return tmp_path


@pytest.mark.parametrize(
    ("name", "options", "where"),
    [
        ("rows.jsonl.gz", {}, "rows.jsonl.gz:48"),
        ("rows.json", {}, "rows.json:237"),
        ("lines.json", {}, "lines.json:48"),
        ("rows.parquet", {}, "rows.parquet, row 48"),
        ("saved", {}, "saved, row 48"),
        ("splits", {"split": "train"}, "splits, row 48"),
    ],
)
def test_every_kind_of_source_gives_the_same_pairs(made, reviews, few_reviews, name, options, where):
    pairs = []
    for path, extra in ((few_reviews, {}), (made / name, options)):
        data = PreferenceDataModule(reviews / "model", [{"path": str(path), **extra}])
        data.setup()
        pairs.append(data.train_pairs)
    one, other = (p.select(range(48)) for p in pairs)
    for side in ("prompt", "chosen", "rejected"):
        assert torch.equal(getattr(one, side).values, getattr(other, side).values)
    assert pairs[1].where(47).endswith(where)


@pytest.mark.parametrize(
    ("entries", "options", "message"),
    [
        ([], {}, "the list is empty"),
        ([{"path": "rows.parquet", "wieght": 2}], {}, "unknown wieght; a source has path, weight"),
        ([{"weight": 2}], {}, "a source needs a path"),
        ([{"path": "rows.parquet", "subset": "en"}], {}, "subset of rows.parquet would be ignored"),
        ([{"path": "rows.parquet", "name": "x"}], {}, "unknown name"),
        ([{"path": "rows.parquet", "weight": 0}], {}, r"weight=0 .* allowed: a number in \(0, inf\)"),
        ([{"path": "rows.parquet", "weight": "2"}], {}, "weight=2 of"),
        ("rows.parquet", {"split": "train"}, "split=train would be ignored; a file has no splits"),
        ("rows.parquet", {"subset": "en"}, "data.subset=en: only a hub data set has a subset"),
        ("rows.parquet", {"revision": "main"}, "data.revision=main: only a hub data set"),
    ],
)
def test_what_a_source_cannot_honour_is_refused(made, entries, options, message, monkeypatch):
    monkeypatch.chdir(made)
    with pytest.raises(DataError, match=message):
        sources(entries, "data.train", **options)


def test_a_weight_of_validation_is_refused(few_reviews, reviews):
    data = PreferenceDataModule(reviews / "model", few_reviews, val=[{"path": str(few_reviews), "weight": 2}])
    with pytest.raises(DataError, match="the weight of .* would be ignored; each pair counts once"):
        data.setup()


def test_an_unknown_split_of_a_saved_folder_is_refused(made, reviews):
    for split, message in ((None, "split=None; the folder holds train, test"), ("dev", "split=dev; the folder holds")):
        data = PreferenceDataModule(reviews / "model", [{"path": str(made / "splits"), "split": split}])
        with pytest.raises(DataError, match=message):
            data.setup()
    data = PreferenceDataModule(reviews / "model", str(made / "saved"), split="train")
    with pytest.raises(DataError, match="would be ignored; the folder holds one data set"):
        data.setup()


@pytest.mark.parametrize(
    ("name", "split", "first", "size"),
    [
        ("splits", "train[:10]", 1, 10),
        ("splits", "train[25%:50%]", 13, 12),
        ("splits", "test[-2:]", 2, 2),
        ("saved", "train[40:]", 41, 8),
    ],
)
def test_a_slice_of_a_saved_folder_gives_those_rows_by_their_own_numbers(made, name, split, first, size):
    (part,) = sources(str(made / name), "data.train", split=split)
    (whole,) = sources(str(made / name), "data.train", split=split.partition("[")[0] if name == "splits" else None)
    ((numbers, items), (_, everything)) = (next(source.chunks()) for source in (part, whole))
    assert (numbers[0], len(items)) == (first, size) and items == everything[first - 1 : first - 1 + size]
    assert part.where(first).endswith(f"{name}, row {first}")
    assert part.content() == part.content() != whole.content()


def test_another_name_of_a_slice_of_a_saved_folder_is_refused(made):
    (source,) = sources(str(made / "saved"), "data.train", split="test[:3]")
    with pytest.raises(DataError, match="split=test.:3.; the folder holds train"):
        source.content()


def test_a_hub_id_takes_subset_split_and_revision(few_reviews, monkeypatch):
    asked = []
    table = datasets.Dataset.from_list([json.loads(line) for line in few_reviews.read_text().splitlines()])
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: asked.append((a, k)) or table)
    (source,) = sources("org/name", "data.train", subset="en", split="train", revision="abc")
    assert source == Source("org/name", 1.0, "en", "train", "abc")
    assert sum(len(chunk.items) for chunk in source.chunks()) == 48
    assert asked == [(("org/name", "en"), {"split": "train", "revision": "abc", "streaming": False})]


def test_an_error_of_the_hub_library_becomes_one_line(monkeypatch):
    def fail(*_, **__):
        raise ConnectionError("Couldn't reach 'org/name' on the Hub\nTraceback")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(DataError, match="^org/name: `datasets` cannot load it: Couldn't reach 'org/name' on the Hub$"):
        Source("org/name", split="train").content()
