"""Each format and compression gives the same records with their lines or rows; what is damaged has its own message."""

import bz2
import csv
import gzip
import json
import lzma

import datasets
import pyarrow as pa
import pytest

from lightning_dpo import PreferenceDataModule
from lightning_dpo.data.readers import records
from lightning_dpo.data.sources import sources
from lightning_dpo.data.tables import without_nulls
from lightning_dpo.errors import DataError

ROWS = [dict(prompt="name a bird", chosen=f" a {bird}", rejected=" a stone") for bird in ("wren", "rook", "kite")]
JSONL = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def zst(data: bytes) -> bytes:
    return pa.compress(data, codec="zstd", asbytes=True)


PACK = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zst}


def cells(rows: list[dict], **options) -> bytes:
    from io import StringIO

    file = StringIO(newline="")
    writer = csv.DictWriter(file, list(rows[0]), **options)
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().encode()


def parsed(path) -> list[tuple[int, dict]]:
    return [(n, json.loads(item) if isinstance(item, bytes) else item) for n, item in records(str(path))]


@pytest.mark.parametrize("packed", PACK)
@pytest.mark.parametrize("upper", [False, True])
def test_every_compression_and_upper_case_endings_are_read(tmp_path, packed, upper):
    for name, content in (("rows.jsonl", JSONL), ("rows.csv", cells(ROWS)), ("rows.json", json.dumps(ROWS).encode())):
        path = tmp_path / (name + packed if not upper else (name + packed).upper())
        path.write_bytes(PACK[packed](content))
        assert [record for _, record in parsed(path)] == ROWS


def test_several_compressed_parts_one_after_the_other_are_all_read(tmp_path):
    for packed, pack in PACK.items():
        path = tmp_path / f"rows.jsonl{packed}"
        path.write_bytes(pack(JSONL) + pack(JSONL))
        assert len(parsed(path)) == 6


@pytest.mark.parametrize("packed", PACK)
def test_a_compressed_file_that_is_cut_or_changed_is_refused(tmp_path, packed):
    path = tmp_path / f"rows.jsonl{packed}"
    whole = PACK[packed](JSONL * 500)
    for damaged in (whole[: len(whole) // 2], whole[:12] + b"\xff" * 40 + whole[52:]):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=rf"^{path}: damaged (gzip|bzip2|xz|zstandard): "):
            list(records(str(path)))


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (zst(JSONL), "rows.jsonl", "the file is compressed by zstandard; rename it to rows.jsonl.zst"),
        (lzma.compress(JSONL), "rows.csv", "the file is compressed by xz; rename it to rows.csv.xz"),
        (zst(JSONL), "rows.jsonl.gz", "the file is compressed by zstandard; rename it to rows.jsonl.zst"),
        (JSONL, "rows.jsonl.bz2", "the file is not compressed by bzip2; rename it to rows.jsonl"),
        (JSONL, "rows.arrow", "not an Arrow file"),
        (b"ARROW1 nothing", "rows.arrow", "not a readable Arrow file"),
        (b"", "rows.csv.xz", "the file is empty"),
        (
            b"PAR1",
            "rows.parquet.gz",
            "unknown file type '.parquet.gz'; allowed: .*.tsv, also with .gz, .bz2, .xz, .zst",
        ),
        ("prompt,chosen".encode("utf-16"), "rows.csv", "the file is UTF-16"),
        (b"prompt,chosen,prompt\n", "rows.csv", "rows.csv:1: two columns are named 'prompt'"),
        (b'prompt,chosen,rejected\na,b,c\na,"b,c\na,b,c\n', "rows.csv", "rows.csv:3: not CSV: a quote is not closed"),
        (b"prompt,chosen,rejected\n", "rows.csv", "holds no rows"),
    ],
)
def test_a_file_that_is_not_what_its_ending_says_has_its_own_message(content, name, message, reviews, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        PreferenceDataModule(reviews / "model", tmp_path / name, cache_dir=tmp_path / "tokens").setup()


def test_a_cell_may_hold_lines_quotes_and_long_texts(tmp_path):
    rows = [dict(prompt="a\n\nb", chosen='say "hi"', rejected=""), dict(prompt="x" * 200_000, chosen="ä", rejected="c")]
    for name, options in (("rows.csv", {}), ("rows.tsv", {"delimiter": "\t"})):
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + cells(rows, **options))
        assert parsed(tmp_path / name) == [(2, rows[0]), (5, rows[1])]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"a,b", "rows.csv:5: the row has 2 cells, and the first row 3"),
        (b"a,b,\xff", "rows.csv:5: field 'rejected': a byte is not UTF-8"),
    ],
)
def test_a_bad_row_of_a_csv_file_is_named_by_the_line_where_it_begins(line, message, reviews, tmp_path):
    (tmp_path / "rows.csv").write_bytes(
        b'prompt,chosen,rejected\nplot," witty\ncast", dull\n\n' + line + b"\nplot, a, dull\n"
    )
    options = dict(cache_dir=tmp_path / "tokens")
    with pytest.raises(DataError, match=message):
        PreferenceDataModule(reviews / "model", tmp_path / "rows.csv", **options).setup()
    data = PreferenceDataModule(reviews / "model", tmp_path / "rows.csv", on_bad_row="drop", **options)
    data.setup()
    assert [data.train_pairs.where(i).rpartition(":")[2] for i in range(2)] == ["2", "6"]


def test_a_wrong_quote_in_a_csv_file_stops_whatever_happens_to_bad_rows(reviews, tmp_path):
    """It hides where rows begin: the rest of this record would be read as a row."""
    (tmp_path / "rows.csv").write_text('prompt,chosen,rejected\nplot,a,b\n"a "bad" text\nsecond line",good,worse\n')
    data = PreferenceDataModule(
        reviews / "model", tmp_path / "rows.csv", on_bad_row="drop", cache_dir=tmp_path / "tokens"
    )
    with pytest.raises(DataError, match="rows.csv:3: not CSV: .*expected after"):
        data.setup()


@pytest.mark.parametrize("first", [["1"], "1", 1])
def test_a_label_in_a_csv_file_is_a_text_or_a_number(first, reviews, tmp_path):
    (tmp_path / "rows.csv").write_text("prompt,a,b,label\nplot,witty,dull,1\nplot,short,long,2\n")
    columns = {"chosen": "a", "rejected": "b", "label": "label"}
    options = {"columns": columns, "join": " ", "cache_dir": tmp_path / "tokens"}
    label = {"first": first, "second": "2" if first != 1 else ">1"}
    data = PreferenceDataModule(reviews / "model", tmp_path / "rows.csv", label=label, **options)
    data.setup()
    pairs = data.train_pairs.select([0, 1])
    assert [data.tokenizer.decode(row) for row in pairs.chosen.rows()] == ["witty </s>", "long </s>"]


def test_the_weight_in_a_csv_file_is_a_number_and_an_empty_response_is_dropped(reviews, tmp_path):
    rows = [
        dict(prompt="plot", chosen=" witty", rejected=r, w=w) for r, w in ((" dull", "0.5"), ("", "1"), (" a", "x"))
    ]
    options = dict(weight_column="w", cache_dir=tmp_path / "tokens")
    (tmp_path / "rows.csv").write_bytes(cells(rows[:2]))
    data = PreferenceDataModule(reviews / "model", tmp_path / "rows.csv", **options)
    data.setup()
    (part,) = data.train_pairs.parts
    assert part.pairs.weight.tolist() == [0.5] and part.manifest["dropped"] == {"empty": 1}
    (tmp_path / "rows.csv").write_bytes(cells(rows))
    with pytest.raises(DataError, match="rows.csv:4: field 'w': found 'x', expected a number in"):
        PreferenceDataModule(reviews / "model", tmp_path / "rows.csv", **options).setup()


def test_arrow_files_and_streams_are_read_in_pieces(tmp_path):
    rows = [{"prompt": "p", "n": n} for n in range(2500)]
    table = pa.Table.from_pylist(rows)
    for number, make in enumerate((pa.ipc.new_file, pa.ipc.new_stream)):
        path = tmp_path / f"{number}.arrow"
        with make(str(path), table.schema) as writer:
            writer.write_table(table)
        assert parsed(path) == list(enumerate(rows, start=1))
    path.write_bytes(path.read_bytes()[:-9000])
    with pytest.raises(DataError, match="not a readable Arrow file"):
        parsed(path)


def test_keys_that_a_table_adds_to_every_object_are_dropped(tmp_path):
    user = {"role": "user", "content": "name a bird"}
    call = {"role": "assistant", "content": "", "tool_calls": [{"name": "find", "arguments": {"bird": "wren"}}]}
    rows = [{"chosen": [user, call], "note": None}, {"chosen": [user, {**user, "name": "bo"}], "note": {"by": "bo"}}]
    assert [without_nulls(row) for row in rows] == rows
    table = datasets.Dataset.from_list(rows)
    table.to_parquet(str(tmp_path / "rows.parquet"))
    table.save_to_disk(str(tmp_path / "saved"))
    (arrow,) = (tmp_path / "saved").glob("*.arrow")
    assert table[0]["chosen"][0]["tool_calls"] is None  # what the library gives
    for path in (tmp_path / "rows.parquet", arrow, tmp_path / "saved"):
        (source,) = sources(str(path), "data.train")
        assert [item for chunk in source.chunks() for item in chunk.items] == rows
