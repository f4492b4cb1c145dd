"""Data sets as chunks of records: files of several formats, a folder, a URL, or a hub id.

JSONL lines are kept as bytes, and parsed in the process that tokenises them.
"""

import difflib
import logging
import re
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from lightning_dpo.data.locations import check_url, files, folder_files, local, protocol, shown
from lightning_dpo.data.readers import ALLOWED, endings, is_lines, is_readable, opened, records
from lightning_dpo.data.tables import CHUNK, hub_table, rows_of, saved_splits, saved_table, table_records
from lightning_dpo.errors import DataError
from lightning_dpo.files import file_sha256, is_saved_table

log = logging.getLogger(__name__)

FILE_SHIFT = 40
"""A row's number is its line or row in its file. Bits above these count the files before it in its source."""
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
OPTIONS = ("path", "weight", "subset", "split", "revision")


class Chunk(NamedTuple):
    """Some records, each the bytes of a line or an object, and their numbers (see Source.locate)."""

    numbers: list[int]
    items: list[bytes | Any]


class Source(NamedTuple):
    """One data set.

    path: a file, a glob, a folder, a URL or a hub id, as it is shown. weight: passes over it per epoch.
    subset, split, revision: of a hub data set; `split` also of a folder, `subset` of one as downloaded from the hub.
    files: those that the path stands for, in order; none for a hub id and for a folder saved by `datasets`.
    """

    path: str
    weight: float = 1.0
    subset: str | None = None
    split: str | None = None
    revision: str | None = None
    files: tuple[str, ...] = ()

    @property
    def is_hub(self) -> bool:
        return not self.files and not Path(self.path).expanduser().exists()

    def locate(self, number: int) -> tuple[str, int]:
        """The file, and the line or the row there, of a record."""
        file, row = divmod(number, 1 << FILE_SHIFT)
        return (shown(self.files[file]) if self.files else self.path), row

    @property
    def unit(self) -> str:
        """What a number in a file counts."""
        return "lines" if self.files and all(map(is_lines, self.files)) else "rows"

    def where(self, number: int) -> str:
        file, row = self.locate(number)
        return f"{file}:{row}" if self.files and is_lines(file) else f"{file}, row {row}"

    def content(self) -> dict[str, Any]:
        """Identifies the rows: the hash of each file's bytes, or the fingerprint that `datasets` computes.

        Errors: DataError.
        """
        if not self.files:
            return {"fingerprint": self._table(streaming=False)[0]._fingerprint}
        try:
            found = [
                {"sha256": file_sha256(local(file)), "format": PurePosixPath(shown(file)).suffixes[-2:]}
                for file in self.files
            ]
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read: {error}") from None
        content = found[0] if len(found) == 1 else {"files": found}
        return content | ({"rows": self.split} if self.split else {})

    def chunks(self, streaming: bool = False) -> Iterator[Chunk]:
        """All records in order, CHUNK at a time.

        Errors: DataError if the source cannot be read. Mistakes in single records raise later, in parse().
        """
        numbered = self._rows(streaming) if self.files else table_records(*self._table(streaming))
        while part := list(islice(numbered, CHUNK)):
            yield Chunk([number for number, _ in part], [item for _, item in part])

    def _rows(self, streaming: bool) -> Iterator[tuple[int, Any]]:
        if self.split is None:
            return self._records(streaming)
        name, _, part = self.split.partition("[")
        counted = "%" in part or "-" in part  # only from the end, or in parts of the whole
        size = sum(1 for _ in self._records(streaming)) if counted else 1 << FILE_SHIFT
        _, start, stop = rows_of(self.split, {name: size}, self.path)
        return islice(self._records(streaming), start, max(start, stop))

    def _records(self, streaming: bool) -> Iterator[tuple[int, Any]]:
        for index, file in enumerate(self.files):
            for number, item in records(file, streaming):
                yield (index << FILE_SHIFT) + number, item

    def _table(self, streaming: bool) -> tuple[Any, int]:
        if self.is_hub:
            return hub_table(self.path, self.subset, self.split, self.revision, streaming), 1
        return saved_table(self.path, self.split)


def sources(entries: Any, key: str, **hub: str | None) -> list[Source]:
    """The checked sources of a path, or of a list of paths and `{path, weight, subset, split, revision}`.

    Args:
        key: the configuration key, for messages.
        hub: subset, split and revision of data sets that do not name their own.

    Errors: DataError for paths that do not exist or cannot be read, and for options that would be ignored.
    """
    entries = entries if isinstance(entries, list | tuple) else [entries]
    if not entries:
        raise DataError(f"{key}: the list is empty; name at least one source")
    found = [_source(entry, key, hub) for entry in entries]
    for name in ("subset", "revision"):
        if hub.get(name) is not None and not any(getattr(source, name) for source in found):
            raise DataError(f"data.{name}={hub[name]}: only a hub data set has a {name}, but {key} names files")
    return found


def validation_sources(val: Any) -> dict[str, list[Source]]:
    """The sources of each validation set, `val` or `val/<name>`, from one source, several named ones, or None.

    Errors: DataError, see `sources`, and for weights.
    """
    found = {}
    for name, entries in (val if isinstance(val, Mapping) and "path" not in val else {"": val}).items():
        if entries is not None:
            held_out = found[f"val/{name}" if name else "val"] = sources(entries, f"data.val.{name}".rstrip("."))
            if weighted := [source.path for source in held_out if source.weight != 1]:
                raise DataError(f"data.val: the weight of {weighted[0]} would be ignored; each pair counts once")
    return found


def _source(entry: Any, key: str, hub: Mapping[str, str | None]) -> Source:
    options: dict[str, Any] = dict(entry) if isinstance(entry, Mapping) else {"path": str(entry)}
    if unknown := set(options) - set(OPTIONS):
        raise DataError(f"{key}: unknown {', '.join(sorted(unknown))}; a source has {', '.join(OPTIONS)}")
    if not isinstance(options.get("path"), str | Path):
        raise DataError(f"{key}: a source needs a path; found {options}")
    path, weight = str(options["path"]), options.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < float("inf"):
        raise DataError(f"{key}: weight={weight} of {shown(path)}; allowed: a number in (0, inf), passes per epoch")
    source = Source(**{**hub, **options, "path": path, "weight": float(weight)})
    try:
        found = _located(source, key)
    except OSError as error:
        raise DataError(f"{key}={shown(path)}: cannot be read: {error}") from None
    for name in ("subset", "revision"):
        if options.get(name) is not None and getattr(found, name) is None:
            raise DataError(f"{key}: {name} of {shown(path)} would be ignored; only a hub data set has one")
    return found


def _located(source: Source, key: str) -> Source:
    """The source with its files, and without options that it does not have."""
    setting, folder = f"{key}={shown(source.path)}", Path(source.path).expanduser()
    if folder.is_dir():
        return _folder(source, setting)
    if protocol(source.path):
        check_url(source.path, setting)
    found = files(source.path)
    if found == [source.path] and not protocol(source.path) and not folder.exists():
        return _hub(source, setting, key)
    if not found:
        raise DataError(f"{setting}: no file matches this glob{_near(folder)}")
    if source.split is not None:
        raise DataError(f"{setting}: split={source.split} would be ignored; a file has no splits")
    for file in found:
        _check_file(file, f"{key}={shown(file)}")
    if len(found) > 1:
        log.info("%s: %d files, %s to %s", setting, len(found), shown(found[0]), shown(found[-1]))
    return source._replace(path=shown(source.path), files=tuple(found), subset=None, revision=None)


def _hub(source: Source, setting: str, key: str) -> Source:
    path = Path(source.path).expanduser()
    if not HUB_ID.fullmatch(source.path) or is_readable(source.path) or endings(source.path)[1] or path.parent.is_dir():
        allowed = "a file, a glob, a folder, a URL, or a hub id org/name"
        raise DataError(f"{setting}: no such file{_near(path)}; allowed: {allowed}")
    if source.split is None:
        raise DataError(
            f"{setting}: a hub data set needs a split; type data.split=train, or {key}={{path: ..., split: ...}}"
        )
    return source


def _folder(source: Source, setting: str) -> Source:
    """A folder saved by `datasets`, or the files of one split of a folder as downloaded from the hub."""
    if is_saved_table(Path(source.path).expanduser()):
        if "" not in (splits := saved_splits(source.path)):
            rows_of(source.split, {name: len(table) for name, table in splits.items()}, setting)
        return source._replace(subset=None, revision=None)
    found = folder_files(source.path, source.subset, setting)
    name, *_ = rows_of(source.split, {split: 0 for split in found}, setting)
    if not (readable := [file for file in found[name] if is_readable(file)]):
        raise DataError(f"{setting}: the folder holds no file of a known type; allowed: {ALLOWED}")
    for file in readable:
        _check_file(file, f"{setting}, {file}")
    part = source.split if source.split and "[" in source.split else None
    log.info("%s: split %s, %d files, %s to %s", setting, name, len(readable), readable[0], readable[-1])
    return source._replace(files=tuple(readable), split=part, revision=None)


def _check_file(file: str, setting: str) -> None:
    if not is_readable(file):
        raise DataError(f"{setting}: unknown file type {''.join(endings(file))!r}; allowed: {ALLOWED}")
    if not protocol(file):
        opened(file, setting).close()


def _near(path: Path) -> str:
    siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, siblings, n=1)
    return f" (did you mean {path.parent / near[0]}?)" if near else ""
