"""Where rows come from: JSONL, JSON, Parquet, a folder saved by `datasets`, or a hub id; read in chunks, in order.

A chunk travels to the tokenising process as it was read: lines of a JSONL file are parsed there.
"""

import difflib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lightning_dpo.data.lines import json_records
from lightning_dpo.errors import DataError
from lightning_dpo.files import file_sha256

CHUNK = 1000
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
GZIP = b"\x1f\x8b"
UTF16 = (b"\xff\xfe", b"\xfe\xff")
FILE_TYPES = (".jsonl", ".json", ".ndjson", ".parquet", ".gz")
SOURCE_KEYS = ("path", "weight", "subset", "split", "revision")


class Chunk(NamedTuple):
    """Some records as read, bytes of a line or an object, with their numbers: physical lines, or rows from 1."""

    numbers: list[int]
    items: list[bytes | Any]


class Source(NamedTuple):
    """One data set.

    path: a file, a folder or a hub id.
    weight: passes over it per epoch.
    subset, split, revision: of a hub data set (split also of a saved folder).
    """

    path: str
    weight: float = 1.0
    subset: str | None = None
    split: str | None = None
    revision: str | None = None

    @property
    def unit(self) -> str:
        """What a number of a chunk counts, for messages."""
        return "line" if self.is_lines else "row"

    @property
    def file(self) -> Path:
        return Path(self.path).expanduser()

    @property
    def is_hub(self) -> bool:
        return not self.file.exists()

    @property
    def is_lines(self) -> bool:
        return self.file.is_file() and self.file.name.removesuffix(".gz").endswith((".jsonl", ".json", ".ndjson"))

    def where(self, number: int) -> str:
        return f"{self.path}:{number}" if self.is_lines else f"{self.path}, row {number}"

    def content(self) -> dict[str, Any]:
        """What identifies its rows: the hash of a file's bytes, or a hub data set's coordinates and fingerprint."""
        if self.file.is_file():
            return {"sha256": file_sha256(self.file), "format": self.file.suffixes[-2:]}
        return {"fingerprint": _table(self)._fingerprint}

    def chunks(self, streaming: bool = False) -> Iterator[Chunk]:
        """Every record in order, CHUNK at a time.

        Errors: DataError for a source that cannot be read at all; what is wrong with one record shows in parse().
        """
        if self.is_lines:
            return _gathered(json_records(self.file))
        if self.file.suffix == ".parquet":
            return _gathered(enumerate(_parquet(self.file), start=1))
        return _gathered(enumerate(_table(self, streaming), start=1))


def sources(given: Any, key: str, subset: str | None = None, split: str | None = None, revision: str | None = None):
    """One path, or a list of paths and `{path, weight, subset, split, revision}`, as a list of Source, checked.

    Errors: DataError for paths that do not exist and options that would be ignored.
    """
    entries = given if isinstance(given, list | tuple) else [given]
    found = [_source(entry, key, subset, split, revision) for entry in entries]
    if not found:
        raise DataError(f"{key}: the list is empty; name at least one source")
    uses_hub = [s for s in found if s.is_hub]
    for name, value in (("subset", subset), ("revision", revision)):
        if value is not None and not uses_hub:
            raise DataError(f"data.{name}={value}: only a hub data set has a {name}, and {key} names files")
    return found


def _source(entry: Any, key: str, subset: str | None, split: str | None, revision: str | None) -> Source:
    options = dict(entry) if isinstance(entry, Mapping) else {"path": str(entry)}
    if unknown := set(options) - set(SOURCE_KEYS):
        raise DataError(f"{key}: unknown {', '.join(sorted(unknown))}; a source has {', '.join(SOURCE_KEYS)}")
    if not isinstance(options.get("path"), str | Path):
        raise DataError(f"{key}: a source needs a path; found {options}")
    weight = options.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < float("inf"):
        raise DataError(f"{key}: weight={weight} of {options['path']}; allowed: a number in (0, inf), passes per epoch")
    source = Source(str(options["path"]), float(weight), options.get("subset"), options.get("split", split))
    source = source._replace(revision=options.get("revision", revision))
    _check_path(source, key)
    ignored = [] if source.is_hub else [name for name in ("subset", "revision") if options.get(name) is not None]
    if ignored:
        raise DataError(f"{key}: {ignored[0]} of {source.path} would be ignored; only a hub data set has one")
    if source.is_hub:
        return source._replace(subset=options.get("subset", subset))
    return source


def _check_path(source: Source, key: str) -> None:
    path, told = source.file, f"{key}={source.path}"
    if not path.exists():
        if not HUB_ID.fullmatch(source.path) or path.suffix in FILE_TYPES or path.parent.is_dir():
            advice = "give a file, a folder saved by `datasets`, or a hub id org/name"
            raise DataError(f"{told}: no such file{_near(path)}; {advice}")
        if source.split is None:
            raise DataError(
                f"{told}: a hub data set needs a split; type data.split=train, or {key}={{path: ..., split: ...}}"
            )
    elif path.is_dir():
        if not (path / "state.json").is_file() and not (path / "dataset_dict.json").is_file():
            raise DataError(f"{told}: a folder that `datasets` did not save (no state.json); name a file")
    elif source.split is not None:
        raise DataError(f"{told}: split={source.split} would be ignored; a file has no splits")
    elif not (source.is_lines or path.suffix == ".parquet"):
        raise DataError(
            f"{told}: unknown file type {path.suffix!r}; allowed: .jsonl, .ndjson, .json, also with .gz; .parquet"
        )
    else:
        _check_start(path, told)


def _check_start(path: Path, told: str) -> None:
    with open(path, "rb") as file:
        start = file.read(4)
    if not start:
        raise DataError(f"{told}: the file is empty")
    zipped = start[:2] == GZIP
    if zipped != (path.suffix == ".gz"):
        advice = f"compressed by gzip; rename it to {path.name}.gz" if zipped else f"no gzip; rename it to {path.stem}"
        raise DataError(f"{told}: the file is {advice}")
    if path.suffix == ".parquet":
        if start != b"PAR1":
            raise DataError(f"{told}: not a Parquet file (it does not begin with PAR1)")
    elif not zipped and (start[:2] in UTF16 or b"\0" in start):
        raise DataError(f"{told}: the file is UTF-16; save it as UTF-8")


def _near(path: Path) -> str:
    beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, beside, n=1)
    return f" (did you mean {path.parent / near[0]}?)" if near else ""


def _gathered(records: Any) -> Iterator[Chunk]:
    chunk = Chunk([], [])
    for number, item in records:
        chunk.numbers.append(number)
        chunk.items.append(item)
        if len(chunk.items) == CHUNK:
            yield chunk
            chunk = Chunk([], [])
    if chunk.items:
        yield chunk


def _parquet(path: Path) -> Iterator[dict]:
    import pyarrow
    import pyarrow.parquet

    done = 0
    try:
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=CHUNK):
            yield from batch.to_pylist()
            done += len(batch)
    except UnicodeDecodeError:
        raise DataError(f"{path}, rows {done + 1} to {done + CHUNK}: a text is not UTF-8") from None
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable Parquet file: {error}") from None


def _table(source: Source, streaming: bool = False) -> Any:
    """A data set of the library `datasets`, from a saved folder or from the hub."""
    import datasets

    try:
        if source.is_hub:
            return datasets.load_dataset(
                source.path, source.subset, split=source.split, revision=source.revision, streaming=streaming
            )
        table = datasets.load_from_disk(source.path)
    except Exception as error:  # `datasets` raises a dozen kinds
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{source.path}: `datasets` cannot load it: {first}") from None
    if isinstance(table, datasets.DatasetDict):
        if source.split not in table:
            raise DataError(f"{source.path}: split={source.split}; the folder holds {', '.join(map(str, table))}")
        return table[source.split]
    if source.split is not None:
        raise DataError(f"{source.path}: split={source.split} would be ignored; the folder holds one data set")
    return table
