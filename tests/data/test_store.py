"""Tokenised sources are found by what changes their tokens, and several processes write the same entry."""

import json
from functools import partial

import numpy as np
import pytest
import torch

from lightning_dpo import PreferenceDataModule
from lightning_dpo.data import columns
from lightning_dpo.data.report.facts import data_report
from lightning_dpo.data.sources import Chunk, Source
from lightning_dpo.errors import DataError
from lightning_dpo.models import load_tokenizer
from tests.data.test_tokenize import byte_level

TEMPLATE = "{% for m in messages %}{{ m.content }} {% endfor %}"


@pytest.fixture
def entries(tmp_path, reviews):
    """Sets up a data module and returns the number of entries in the store."""

    def entries(train, **options) -> int:
        data = PreferenceDataModule(
            load_tokenizer(reviews / "model"), train, cache_dir=tmp_path / "tokens", **{"val": 0.25, **options}
        )
        data.setup()
        return len(list((tmp_path / "tokens").glob("*/manifest.json")))

    return entries


def test_a_second_run_reads_the_entry_of_the_first(entries, few_reviews, tmp_path, monkeypatch):
    assert entries(few_reviews) == 1
    monkeypatch.setattr(columns.RowEncoder, "__call__", lambda *_: pytest.fail("tokenised again"))
    same = tmp_path / "same content, other name.jsonl"
    same.write_bytes(few_reviews.read_bytes())
    assert entries(few_reviews, val=0.5, seed=4, batch_size=2, shuffle=False) == entries(same) == 1


@pytest.mark.parametrize(
    "options",
    [
        dict(max_length=14),
        dict(max_prompt_length=4),
        dict(turns="all"),
        dict(ranked="adjacent"),
        dict(columns={"ranks": "rank"}),
        dict(chat_template=TEMPLATE),
    ],
)
def test_an_option_that_changes_the_tokens_makes_another_entry(entries, few_reviews, options):
    assert entries(few_reviews) == 1
    assert entries(few_reviews, **options) == 2


def test_another_text_or_tokenizer_makes_another_entry(entries, few_reviews, tmp_path, reviews):
    assert entries(few_reviews) == 1
    few_reviews.write_text(few_reviews.read_text().replace("witty", "moving"))
    assert entries(few_reviews) == 2
    tokenizer = load_tokenizer(reviews / "model")
    tokenizer.add_tokens(["witty plot"])
    PreferenceDataModule(tokenizer, few_reviews, cache_dir=tmp_path / "tokens").setup()
    assert len(list((tmp_path / "tokens").glob("*/manifest.json"))) == 3


def test_the_entry_of_a_source_does_not_depend_on_other_sources(reviews, few_reviews, tmp_path):
    """Encoding a source changes settings of the tokenizer, which must not change the key of the next source."""
    second = tmp_path / "second.jsonl"
    second.write_text("".join(few_reviews.read_text().splitlines(keepends=True)[:5]))

    def names(*sources):
        run = PreferenceDataModule(reviews / "model", [str(s) for s in sources], cache_dir=tmp_path / "cache")
        run.setup()
        return run.content()["train"]

    both = names(few_reviews, second)
    assert names(few_reviews, second) == both == [*names(few_reviews), *names(second)]
    assert len([path for path in (tmp_path / "cache").iterdir() if path.is_dir()]) == 2


@pytest.mark.parametrize("damage", ["cut", "remove", "manifest"])
def test_a_damaged_entry_is_written_again(entries, few_reviews, tmp_path, damage, caplog):
    entries(few_reviews)
    (folder,) = (p for p in (tmp_path / "tokens").iterdir() if p.is_dir())
    file = folder / ("manifest.json" if damage == "manifest" else "chosen.bin")
    content = file.read_bytes()
    file.unlink() if damage == "remove" else file.write_bytes(content[:-4])
    assert entries(few_reviews) == 1 and "damaged" in caplog.text
    assert (folder / "chosen.bin").stat().st_size > 0


def test_an_interrupted_tokenisation_leaves_no_entry(entries, few_reviews, tmp_path, monkeypatch):
    monkeypatch.setattr(columns.RowEncoder, "__call__", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        entries(few_reviews)
    assert not [p for p in (tmp_path / "tokens").iterdir() if p.is_dir()]


def test_several_processes_write_the_same_bytes(reviews, tmp_path, monkeypatch):
    monkeypatch.setattr("lightning_dpo.data.sources.CHUNK", 7)
    rows = [json.dumps(dict(prompt="plot", chosen=f" witty {'cast ' * (i % 9)}", rejected=" dull")) for i in range(100)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    for processes in (1, 2):
        folder = tmp_path / f"tokens{processes}"
        PreferenceDataModule(reviews / "model", tmp_path / "rows.jsonl", num_proc=processes, cache_dir=folder).setup()
    one, two = (sorted((tmp_path / f"tokens{n}").glob("*/*.bin")) for n in (1, 2))
    assert len(one) == len(two) > 10
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(one, two, strict=True))


def test_writing_to_a_batch_does_not_change_the_store(reviews, few_reviews):
    data = PreferenceDataModule(reviews / "model", few_reviews)
    data.setup()
    (stored,) = data.train_pairs.parts
    before = stored.column("chosen").copy()
    stored.pairs.chosen.values[0] = 7
    data.train_pairs.select([0]).chosen.values[:] = 9
    assert np.array_equal(stored.column("chosen"), before)


def test_weights_margins_and_masks_travel_with_their_pairs(reviews, tmp_path):
    rows = [dict(prompt="plot", chosen=f" {'cast ' * i}", rejected=" dull", w=i, m=-i / 2) for i in range(1, 9)]
    turn = [{"role": "assistant", "content": "witty"}, {"role": "user", "content": "cast"}]
    talk = dict(prompt=[{"role": "user", "content": "plot"}], chosen=[*turn, turn[0]], rejected="dull", w=0, m=9)
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, [*rows, talk])))
    data = PreferenceDataModule(
        reviews / "model", tmp_path / "rows.jsonl", weight_column="w", margin_column="m", chat_template=TEMPLATE
    )
    data.setup()
    batch = data.train_pairs.select([8, 2, 5])
    assert batch.weight.tolist() == [0, 3, 6] and batch.margin.tolist() == [9, -1.5, -3]
    assert batch.trained[0].row(0).tolist()[:2] == [0, 0] and batch.trained[0].row(0).any()
    assert batch.trained[0].row(1).all() and batch.trained[1].row(0).all()
    assert torch.equal(batch.trained_lengths()[1], batch.rejected.lengths)


def test_pairs_read_are_those_trained_held_out_and_dropped(reviews, few_reviews, tmp_path):
    lines = few_reviews.read_text().splitlines()
    same = json.dumps(dict(prompt="plot", chosen="cast", rejected="cast"))
    (tmp_path / "rows.jsonl").write_text("\n".join([*lines, same, "broken", lines[0]]))
    data = PreferenceDataModule(reviews / "model", tmp_path / "rows.jsonl", val=0.2, on_bad_row="drop", max_length=20)
    data.setup()
    counted = data_report(data)["pairs"]
    assert counted["read"] == 51 == counted["train"] + counted["val"] + counted["dropped"] and counted["dropped"] >= 2


def test_a_run_that_refuses_bad_rows_keeps_the_entry_of_a_run_that_drops_them(reviews, few_reviews, tmp_path, caplog):
    (tmp_path / "rows.jsonl").write_text(few_reviews.read_text() + "broken\n")
    make = partial(PreferenceDataModule, reviews / "model", tmp_path / "rows.jsonl", cache_dir=tmp_path / "tokens")
    drops = make(on_bad_row="drop")
    drops.setup()
    with pytest.raises(DataError, match="rows.jsonl:49: not JSON"):
        make().setup()
    assert drops.train_pairs.where(3) and data_report(drops)["pairs"]["dropped"] == 1 and "damaged" not in caplog.text


def test_a_file_that_changes_while_it_is_read_is_not_kept(entries, few_reviews, tmp_path, monkeypatch):
    read = Source.chunks

    def changed(self, streaming=False):
        few_reviews.write_text(few_reviews.read_text().replace("witty", "moving"))
        return read(self, streaming)

    monkeypatch.setattr(Source, "chunks", changed)
    with pytest.raises(DataError, match="changed while it was read"):
        entries(few_reviews)
    assert not list((tmp_path / "tokens").glob("*/manifest.json"))


def test_reading_ends_with_the_error_that_stops_it(tmp_path, monkeypatch):
    """A progress bar that is left open may block another thread when it is collected."""
    ended = []

    def chunks(source):
        try:
            yield Chunk([1], [b'{"prompt": [{"role": "user", "content": "x"}], "chosen": "y", "rejected": "z"}'])
        finally:
            ended.append(source.path)

    monkeypatch.setattr(Source, "chunks", chunks)
    (tmp_path / "rows.jsonl").write_text("{}")
    leaves_out = "{% for m in messages %}{{ m.role }}: {% endfor %}"
    data = PreferenceDataModule(
        byte_level(template=leaves_out), tmp_path / "rows.jsonl", on_bad_row="drop", cache_dir=tmp_path / "tokens"
    )
    with pytest.raises(DataError, match="leaves out the message of role user 'x'") as stopped:
        data.setup()
    assert ended and stopped.tb, "while the error, and the frames that it passed, are still there"
