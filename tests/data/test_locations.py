"""Globs, folders as downloaded from the hub and URLs: which files are read, and how a row is found again."""

import json
import os
import threading
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import datasets
import fsspec
import pytest

from lightning_dpo import PreferenceDataModule
from lightning_dpo.data import locations
from lightning_dpo.data.sources import sources
from lightning_dpo.errors import DataError


def rows(*words) -> bytes:
    return "".join(json.dumps(dict(prompt=" plot", chosen=f" {w}", rejected=" dull")) + "\n" for w in words).encode()


def read(path, key="data.train", streaming=False, **options) -> list[tuple[str, str]]:
    """Place and chosen text of each row."""
    (source,) = sources(str(path), key, **options)
    items = [
        (n, item) for chunk in source.chunks(streaming) for n, item in zip(chunk.numbers, chunk.items, strict=True)
    ]
    return [(source.where(n), (json.loads(i) if isinstance(i, bytes) else i)["chosen"][1:]) for n, i in items]


@pytest.fixture
def shards(tmp_path, monkeypatch):
    """Three files of two rows in data/, of two formats, and one that is not meant."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train-1.jsonl").write_bytes(b"\n" + rows("witty", "moving"))
    (tmp_path / "data" / "train-0.jsonl").write_bytes(rows("sharp", "warm"))
    (tmp_path / "data" / "train-2.csv").write_bytes(b"prompt,chosen,rejected\n plot, fresh, dull\n plot, brisk, dull\n")
    (tmp_path / "data" / "other.jsonl").write_bytes(rows("other"))
    return tmp_path


@pytest.fixture
def hub_folder(tmp_path, monkeypatch):
    """A folder as downloaded from the hub, with two splits in three files, and files that are no data."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "birds"
    (folder / "data").mkdir(parents=True)
    (folder / ".cache").mkdir()
    (folder / "README.md").write_text("# Birds\n")
    (folder / ".cache" / "train.jsonl").write_bytes(rows("hidden"))
    for name, words in (("train-00000-of-00002", "ab"), ("train-00001-of-00002", "cd"), ("test-00000-of-00001", "e")):
        (folder / "data" / f"{name}.jsonl").write_bytes(rows(*words))
    return folder


def test_a_glob_is_one_source_whose_rows_are_found_by_file_and_line(shards, reviews):
    data = PreferenceDataModule(reviews / "model", "data/train-*", cache_dir=shards / "tokens")
    data.setup()
    found = [data.train_pairs.where(i) for i in range(len(data.train_pairs))]
    assert found == [
        f"data/train-{i}.{j}"
        for i, j in ((0, "jsonl:1"), (0, "jsonl:2"), (1, "jsonl:2"), (1, "jsonl:3"), (2, "csv:2"), (2, "csv:3"))
    ]
    assert read("data/train-*", streaming=True) == read("data/train-*")
    assert [source.path for source in data.sources] == ["data/train-*"]


def test_a_bad_row_behind_a_glob_names_its_file(shards, reviews):
    with open("data/train-1.jsonl", "a") as file:
        file.write("{\n")
    with open("data/train-2.csv", "a") as file:
        file.write("cut\n")
    with pytest.raises(DataError) as error:
        PreferenceDataModule(reviews / "model", "data/train-*", cache_dir=shards / "tokens").setup()
    assert str(error.value).startswith("data/train-1.jsonl:4: not JSON")
    assert "more rows of data/train-* are bad" in str(error.value) and "first at data/train-2.csv:4" in str(error.value)


def test_a_glob_is_known_by_the_contents_of_its_files(shards):
    def content():
        return sources("data/train-*", "data.train")[0].content()

    before = content()
    assert content() == before and len(before["files"]) == 3
    (shards / "data" / "train-0.jsonl").write_bytes(rows("sharp"))
    assert content() != before


def test_a_file_whose_name_looks_like_a_glob_is_a_file(shards):
    (shards / "a[1].jsonl").write_bytes(rows("exact"))
    assert read("a[1].jsonl") == [("a[1].jsonl:1", "exact")]


@pytest.mark.parametrize(
    ("path", "options", "message"),
    [
        ("data/none-*", {}, r"data.train=data/none-\*: no file matches this glob"),
        ("data/train-*", {"split": "train"}, "split=train would be ignored; a file has no splits"),
        ("data/*", {"subset": "en"}, "data.subset=en: only a hub data set has a subset"),
        ("*", {}, "data.train=notes.txt: unknown file type '.txt'"),
        ("ftp://host/rows.jsonl", {}, "allowed: a URL of hf://, https://"),
        ("simplecache::memory://rows.jsonl", {}, "no such file|allowed: a URL"),
        ("https://host/rows.jsonl::memory://rows", {}, "allowed: a URL of"),
        ("https://host/rows.html", {}, "unknown file type '.html'"),
        ("memory://nothing/*.jsonl", {}, "no file matches this glob"),
    ],
)
def test_what_cannot_be_honoured_is_refused(shards, path, options, message):
    (shards / "notes.txt").write_text("x")
    with pytest.raises(DataError, match=message):
        sources(path, "data.train", **options)


def test_a_folder_from_the_hub_gives_the_files_of_one_split(hub_folder):
    first = "birds/data/train-00000-of-00002.jsonl"
    found = read("birds", split="train")
    assert [word for _, word in found] == list("abcd") and found[0][0] == f"{first}:1"
    assert [word for _, word in read(hub_folder, split="test")] == ["e"]


@pytest.mark.parametrize(
    ("split", "words"),
    [("train[:3]", "abc"), ("train[1:]", "bcd"), ("train[-1:]", "d"), ("train[25%:75%]", "bc"), ("train[3:1]", "")],
)
def test_a_slice_of_a_folder_from_the_hub_keeps_file_and_line(hub_folder, split, words):
    whole = {word: place for place, word in read("birds", split="train")}
    for streaming in (False, True):
        assert read("birds", split=split, streaming=streaming) == [(whole[word], word) for word in words]
    (source,), (other,) = (sources("birds", "data.train", split=s) for s in (split, "train"))
    assert source.content() != other.content()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "data.train=birds: split=None; the folder holds train, test; type data.split=train"),
        ({"split": "dev"}, "split=dev; the folder holds train, test"),
        ({"split": "train+test"}, r"split=train\+test; the folder holds"),
        ({"split": "train[:5"}, 'split=train.*as "train.:1000.'),
        ({"split": "train", "subset": "en"}, "subset=en; the folder names none"),
    ],
)
def test_a_split_or_subset_that_a_folder_does_not_have_is_refused(hub_folder, options, message):
    with pytest.raises(DataError, match=message):
        sources("birds", "data.train", **options)


def test_a_folder_with_one_split_needs_no_name_and_may_use_any_format_and_case(tmp_path):
    (tmp_path / "ROWS.JSONL").write_bytes(rows("loud"))
    (tmp_path / "more.csv").write_bytes(b"prompt,chosen,rejected\n plot, quiet, dull\n")
    (tmp_path / "notes.txt").write_text("not data")
    assert [word for _, word in read(tmp_path)] == ["loud", "quiet"]


def test_the_readme_of_a_folder_names_its_subsets(hub_folder):
    card = "---\nconfigs:\n- config_name: all\n  data_files: data/*\n- config_name: few\n  data_files:\n"
    (hub_folder / "README.md").write_text(card + "  - split: dev\n    path: data/test-*\n---\n# Birds\n")
    assert [word for _, word in read("birds", subset="few")] == ["e"]
    assert len(read("birds", subset="all", split="train[:2]")) == 2
    for subset in (None, "fewer"):
        with pytest.raises(DataError, match=f"subset={subset}; allowed: all, few; type data.subset="):
            sources("birds", "data.train", subset=subset)


def test_the_readme_of_a_folder_names_no_file_outside(hub_folder):
    (hub_folder.parent / "secret.jsonl").write_bytes(rows("secret"))
    (hub_folder / "README.md").write_text("---\nconfigs:\n- config_name: all\n  data_files: ../secret.jsonl\n---\n")
    with pytest.raises(DataError, match="names '../secret.jsonl', which is outside the folder"):
        sources("birds", "data.train")


def test_a_folder_without_data_is_refused(tmp_path):
    with pytest.raises(DataError, match="doesn't contain any data files"):
        sources(str(tmp_path), "data.train")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DataError, match="the folder holds no file of a known type; allowed: .jsonl"):
        sources(str(tmp_path), "data.train")


@pytest.fixture
def downloads(tmp_path, monkeypatch):
    """The cache of downloads, empty."""
    monkeypatch.setattr(datasets.config, "DOWNLOADED_DATASETS_PATH", tmp_path / "downloads")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    locations._downloaded.cache_clear()


@contextmanager
def web_server(folder):
    """The address of a server of this folder."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def test_a_url_is_read_by_any_file_system_and_a_change_is_seen(downloads):
    memory = fsspec.filesystem("memory")
    memory.pipe("/birds/train-1.jsonl", rows("late"))
    memory.pipe("/birds/train-0.jsonl", rows("early"))
    for streaming in (False, True):
        found = read("memory://birds/train-*.jsonl", streaming=streaming)
        assert found == [(f"memory:///birds/train-{i}.jsonl:1", w) for i, w in enumerate(("early", "late"))]
    (source,) = sources("memory://birds/train-0.jsonl", "data.train")
    before = source.content()
    assert source.content() == before
    memory.pipe("/birds/train-0.jsonl", rows("soon"))
    locations._downloaded.cache_clear()  # as in another process
    assert source.content() != before


def test_a_web_address_is_read_without_printing_its_query(downloads, shards):
    datasets.Dataset.from_list([json.loads(rows("table"))]).to_parquet("data/rows.parquet")
    with web_server(shards / "data") as address:
        for streaming in (False, True):
            assert read(f"{address}/train-0.jsonl?token=hidden", streaming=streaming) == [
                (f"{address}/train-0.jsonl:1", "sharp"),
                (f"{address}/train-0.jsonl:2", "warm"),
            ]
            assert read(f"{address}/rows.parquet", streaming=streaming) == [(f"{address}/rows.parquet, row 1", "table")]
        for streaming in (False, True):
            with pytest.raises(
                DataError, match=r"/none.jsonl: cannot be read from there: (no such file|.*404)"
            ) as error:
                read(f"{address}/none.jsonl?token=hidden", streaming=streaming)
            assert "hidden" not in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(DataError, match="cannot be read from there: .*[Cc]onnect"):
        read(f"{address}/train-1.jsonl")


def test_a_hub_file_without_a_network_is_one_line():
    with pytest.raises(DataError, match="^hf://datasets/org/birds/train.jsonl: cannot be read from there: .+$"):
        read("hf://datasets/org/birds/train.jsonl")


@contextmanager
def without_rights():
    """As a user who owns nothing here."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("closed", ["data", "data/train-0.jsonl"])
def test_a_file_that_may_not_be_read_is_named_with_its_key(shards, closed):
    shards.chmod(0o755)  # pytest makes it for its user alone
    (shards / closed).chmod(0)
    with without_rights(), pytest.raises(DataError, match="^data.train=data/train-0.jsonl: cannot be read: .*denied"):
        sources("data/train-0.jsonl", "data.train")
    (shards / closed).chmod(0o755)


def test_a_cache_that_may_not_be_written_is_named_with_its_key(shards, reviews):
    shards.chmod(0o755)
    (shards / "tokens").mkdir(mode=0o555)
    for name in ("tokens", "tokens/below", "data/other.jsonl"):
        data = PreferenceDataModule(reviews / "model", "data/train-*", cache_dir=name)
        with (
            without_rights(),
            pytest.raises(DataError, match=f"^data.cache_dir=.*{name}: .*; name a folder that can be written"),
        ):
            data.setup()
