"""Data sets as chunks of records: JSONL, JSON, Parquet, a folder saved by `datasets`, or a hub id.

JSONL lines are kept as bytes, and parsed in the process that tokenises them.
"""

import difflib
import re
from collections.abc import Iterator, Mapping
from itertools import islice
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


class Chunk(NamedTuple):
    """Some records, each the bytes of a line or an object, with their line numbers or their row numbers from 1."""

    numbers: list[int]
    items: list[bytes | Any]


class Source(NamedTuple):
    """One data set.

    path: a file, a folder or a hub id. weight: passes over it per epoch.
    subset, split, revision: of a hub data set; `split` also of a saved folder.
    """

    path: str
    weight: float = 1.0
    subset: str | None = None
    split: str | None = None
    revision: str | None = None

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
        """Identifies the rows: the hash of a file's bytes, or the fingerprint that `datasets` computes."""
        if self.file.is_file():
            return {"sha256": file_sha256(self.file), "format": self.file.suffixes[-2:]}
        return {"fingerprint": _table(self)._fingerprint}

    def chunks(self, streaming: bool = False) -> Iterator[Chunk]:
        """All records in order, CHUNK at a time.

        Errors: DataError if the source cannot be read. Mistakes in single records raise later, in parse().
        """
        if self.is_lines:
            records = json_records(self.file)
        elif self.file.suffix == ".parquet":
            records = enumerate(_parquet(self.file), start=1)
        else:
            records = enumerate(_table(self, streaming), start=1)
        while part := list(islice(records, CHUNK)):
            yield Chunk([number for number, _ in part], [item for _, item in part])


def sources(entries: Any, key: str, **hub: str | None) -> list[Source]:
    """The checked sources of a path, or of a list of paths and `{path, weight, subset, split, revision}`.

    Args:
        key: the configuration key, for messages.
        hub: subset, split and revision of hub data sets that do not name their own.

    Errors: DataError for paths that do not exist and options that would be ignored.
    """
    found = [_source(entry, key, hub) for entry in (entries if isinstance(entries, list | tuple) else [entries])]
    if not found:
        raise DataError(f"{key}: the list is empty; name at least one source")
    for name in ("subset", "revision"):
        if hub.get(name) is not None and not any(source.is_hub for source in found):
            raise DataError(f"data.{name}={hub[name]}: only a hub data set has a {name}, but {key} names files")
    return found


def _source(entry: Any, key: str, hub: Mapping[str, str | None]) -> Source:
    options: dict[str, Any] = dict(entry) if isinstance(entry, Mapping) else {"path": str(entry)}
    if unknown := set(options) - set(Source._fields):
        raise DataError(f"{key}: unknown {', '.join(sorted(unknown))}; a source has {', '.join(Source._fields)}")
    if not isinstance(options.get("path"), str | Path):
        raise DataError(f"{key}: a source needs a path; found {options}")
    weight = options.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < float("inf"):
        raise DataError(f"{key}: weight={weight} of {options['path']}; allowed: a number in (0, inf), passes per epoch")
    source = Source(**{**hub, **options, "path": str(options["path"]), "weight": float(weight)})
    _check_path(source, key)
    if source.is_hub:
        return source
    for name in ("subset", "revision"):
        if options.get(name) is not None:
            raise DataError(f"{key}: {name} of {source.path} would be ignored; only a hub data set has one")
    return source._replace(subset=None, revision=None)


def _check_path(source: Source, key: str) -> None:
    path, setting = source.file, f"{key}={source.path}"
    if not path.exists():
        if not HUB_ID.fullmatch(source.path) or path.suffix in FILE_TYPES or path.parent.is_dir():
            allowed = "allowed: a file, a folder saved by `datasets`, or a hub id org/name"
            raise DataError(f"{setting}: no such file{_near(path)}; {allowed}")
        if source.split is None:
            raise DataError(
                f"{setting}: a hub data set needs a split; type data.split=train, or {key}={{path: ..., split: ...}}"
            )
    elif path.is_dir():
        if not (path / "state.json").is_file() and not (path / "dataset_dict.json").is_file():
            raise DataError(f"{setting}: not a folder saved by `datasets` (no state.json); name a file")
    elif source.split is not None:
        raise DataError(f"{setting}: split={source.split} would be ignored; a file has no splits")
    elif not (source.is_lines or path.suffix == ".parquet"):
        raise DataError(
            f"{setting}: unknown file type {path.suffix!r}; allowed: .jsonl, .ndjson, .json, also with .gz; .parquet"
        )
    else:
        _check_start(path, setting)


def _check_start(path: Path, setting: str) -> None:
    with open(path, "rb") as file:
        start = file.read(4)
    if not start:
        raise DataError(f"{setting}: the file is empty")
    zipped = start[:2] == GZIP
    if zipped and path.suffix != ".gz":
        raise DataError(f"{setting}: the file is compressed by gzip; rename it to {path.name}.gz")
    if not zipped and path.suffix == ".gz":
        raise DataError(f"{setting}: the file is not compressed by gzip; rename it to {path.stem}")
    if path.suffix == ".parquet":
        if start != b"PAR1":
            raise DataError(f"{setting}: not a Parquet file (it does not begin with PAR1)")
    elif not zipped and (start[:2] in UTF16 or b"\0" in start):
        raise DataError(f"{setting}: the file is UTF-16; save it as UTF-8")


def _near(path: Path) -> str:
    siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, siblings, n=1)
    return f" (did you mean {path.parent / near[0]}?)" if near else ""


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
    """A data set of the `datasets` library, from a saved folder or the hub."""
    import datasets

    try:
        if source.is_hub:
            return datasets.load_dataset(
                source.path, source.subset, split=source.split, revision=source.revision, streaming=streaming
            )
        table = datasets.load_from_disk(source.path)
    except Exception as error:  # `datasets` raises many types
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{source.path}: `datasets` cannot load it: {first}") from None
    if isinstance(table, datasets.DatasetDict):
        if source.split not in table:
            raise DataError(f"{source.path}: split={source.split}; the folder holds {', '.join(map(str, table))}")
        return table[source.split]
    if source.split is not None:
        raise DataError(f"{source.path}: split={source.split} would be ignored; the folder holds one data set")
    return table
