"""Parquet, Arrow and the tables of the `datasets` library -> records. Their rows have numbers, and no lines."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from lightning_dpo.errors import DataError

CHUNK = 1000
"""Rows that are turned into Python objects at once."""
ARROW_FILE = b"ARROW1"

T = TypeVar("T")


def parquet_records(file: Any, path: str) -> Iterator[tuple[int, dict]]:
    """Row number and record. Errors: DataError for a damaged file."""

    def batches() -> Iterable[Any]:
        import pyarrow.parquet

        return pyarrow.parquet.ParquetFile(file).iter_batches(batch_size=CHUNK)

    return _records(batches, path, "Parquet")


def arrow_records(file: Any, path: str) -> Iterator[tuple[int, dict]]:
    """Row number and record of an IPC file, or of a stream, which `datasets` writes. Errors: DataError."""

    def batches() -> Iterable[Any]:
        import pyarrow.ipc

        if file.peek(len(ARROW_FILE)).startswith(ARROW_FILE):
            reader = pyarrow.ipc.open_file(file)
            return map(reader.get_batch, range(reader.num_record_batches))
        return pyarrow.ipc.open_stream(file)

    return _records(batches, path, "Arrow")


def _records(batches: Callable[[], Iterable[Any]], path: str, kind: str) -> Iterator[tuple[int, dict]]:
    import pyarrow

    done = 0
    try:
        for batch in batches():
            for start in range(0, len(batch), CHUNK):
                for record in batch.slice(start, CHUNK).to_pylist():
                    done += 1
                    yield done, without_nulls(record)
    except UnicodeDecodeError:
        raise DataError(f"{path}, rows {done + 1} to {done + CHUNK}: a text is not UTF-8") from None
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable {kind} file: {error}") from None


def without_nulls(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record without the keys that are null inside its columns. A table gives every object of a column every key.

    >>> without_nulls({"chosen": [{"role": "user", "name": None}], "note": None})
    {'chosen': [{'role': 'user'}], 'note': None}
    """
    return {name: _without_nulls(value) for name, value in record.items()}


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value


def table_records(table: Iterable[Mapping[str, Any]], first: int = 1) -> Iterator[tuple[int, dict]]:
    """Row number and record of a table of `datasets`."""
    return ((number, without_nulls(record)) for number, record in enumerate(table, start=first))


def loaded(path: str, load: Callable[[], T]) -> T:
    """What `load` returns. Errors: DataError, one line, for any error of `datasets`."""
    try:
        return load()
    except DataError:
        raise
    except Exception as error:  # `datasets` raises many types
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path}: `datasets` cannot load it: {first}") from None


def saved_splits(path: str) -> dict[str, Any]:
    """The tables of a saved folder by split. One that was saved without splits has the name "". Errors: DataError."""
    import datasets

    table = loaded(path, lambda: datasets.load_from_disk(str(Path(path).expanduser())).with_format(None))
    return {str(name): part for name, part in table.items()} if isinstance(table, dict) else {"": table}


def saved_table(path: str, split: str | None) -> tuple[Any, int]:
    """The rows of a saved folder that `split` names, and the number of the first. Errors: DataError."""
    tables = saved_splits(path)
    if "" in tables and split is not None and "[" not in split:
        raise DataError(f"{path}: split={split} would be ignored; the folder holds one data set")
    if "" in tables:
        tables = {str(tables[""].split or "train").partition("[")[0]: tables[""]}  # its name may hold a slice
    name, start, stop = rows_of(split, {name: len(table) for name, table in tables.items()}, path)
    table = tables[name]
    whole = split is None or "[" not in split
    return (table, 1) if whole else (table.select(range(start, max(start, stop))), start + 1)


def rows_of(split: str | None, sizes: Mapping[str, int], where: str) -> tuple[str, int, int]:
    """The one split that a text such as train, train[:1000] or train[10%:20%] names, its first row from 0 and its end.

    Args:
        sizes: rows of each split. where: the folder, for messages.

    Errors: DataError for another text, and for none if there are several splits.
    """
    import datasets

    if split is None and len(sizes) == 1:
        return next((name, 0, size) for name, size in sizes.items())
    try:
        (found,) = datasets.ReadInstruction.from_spec(split).to_absolute(sizes)
        return str(found.splitname), found.from_, found.to
    except (ValueError, AssertionError):
        example = next(iter(sizes))
        raise DataError(
            f"{where}: split={split}; the folder holds {', '.join(sizes)}; type data.split={example} for data.train, "
            f"or {{path: ..., split: {example}}} for any source; a slice is written in quotes, as "
            f'"{example}[:1000]" or "{example}[10%:20%]"'
        ) from None


def hub_table(path: str, subset: str | None, split: str | None, revision: str | None, streaming: bool) -> Any:
    """A data set of the hub. Errors: DataError."""
    import datasets

    return loaded(
        path, lambda: datasets.load_dataset(path, subset, split=split, revision=revision, streaming=streaming)
    )
