"""A table of unusual rows and files: each is refused, dropped and counted, trained with a warning, or trained.

Each case is line 2 of a file, between two good rows. The errors name file, line, field and what is allowed.
"""

import gzip
import json

import pytest

from lightning_dpo import PreferenceDataModule
from lightning_dpo.data.report.facts import data_report
from lightning_dpo.errors import DataError

USER = {"role": "user", "content": "plot"}
BOT = {"role": "assistant", "content": "music"}
OTHER = {"role": "assistant", "content": "cast"}
SYSTEM = {"role": "system", "content": "scene"}
ASK = {"role": "user", "content": "x"}
GOOD = {"prompt": "review of a french comedy :", "chosen": " witty plot", "rejected": " dull plot"}


def row(**changes) -> bytes:
    return json.dumps({k: v for k, v in {**GOOD, **changes}.items() if v != "absent"}).encode()


def chat(prompt, chosen, rejected) -> bytes:
    return json.dumps({"prompt": prompt, "chosen": chosen, "rejected": rejected}).encode()


def talk(chosen, rejected) -> bytes:
    return json.dumps({"chosen": chosen, "rejected": rejected}).encode()


def ranked(**changes) -> bytes:
    record = {"prompt": "plot", "responses": [" plot", " cast", " music"], "ranks": [1, 2, 3], **changes}
    return json.dumps({k: v for k, v in record.items() if v != "absent"}).encode()


HH = "\n\nHuman: plot\n\nAssistant:"

REFUSED = {
    # JSON
    "cut off": (b'{"prompt": "a", "chosen": "b', "not JSON: Unterminated string .* cut off"),
    "cut off between fields": (b'{"prompt": "a",', "not JSON: .* cut off"),
    "single quotes": (b"{'prompt': 'a', 'chosen': 'b', 'rejected': 'c'}", "JSON takes double quotes"),
    "trailing comma": (b'{"prompt": "a", "chosen": "b", "rejected": "c",}', "not JSON: .* at column"),
    "two objects in a line": (row() + b" " + row(), "two objects on one line"),
    "a list": (b"[1, 2]", "found a list, expected an object .*one list .json"),
    "a number": (b"3", "found a number, expected an object"),
    "a text": (b'"a"', "found a text, expected an object"),
    "null": (b"null", "found null, expected an object"),
    "true": (b"true", "found true/false, expected an object"),
    "no JSON at all": (b"hello", "not JSON: Expecting value at column 1"),
    "nested without end": (b'{"a":' * 100_000, "nested too deeply|not JSON"),
    "a number of 5,000 digits": (row(x=1).replace(b'"x": 1', b'"x": ' + b"1" * 5000), "a number has too many digits"),
    "a duplicate key that is no text": (b'{"\\ud800": 1, "\\ud800": 2}', "the key appears twice"),
    "control characters in a key": (row(chosen="absent", **{"chos\x1b[0men": "x"}), r"columns.chosen=chos\\x1b\[0men"),
    "duplicate key": (b'{"prompt": "a", "prompt": "b", "chosen": "c"}', "'prompt': the key appears twice"),
    # encoding
    "not UTF-8": (row(chosen="x").replace(b'"x"', b'"\xff"'), "byte .* is not UTF-8"),
    "Latin-1": (row(chosen="x").replace(b'"x"', "é".encode("latin-1")), "is not UTF-8"),
    "lone surrogate": (row(chosen="x").replace(b'"x"', b'"\\ud800"'), "'chosen': unpaired surrogate"),
    "lone surrogate in a message": (chat([USER], [BOT], "x").replace(b'"x"', b'"\\udc00"'), "unpaired surrogate"),
    # fields
    "prompt is missing": (row(prompt="absent"), "field 'prompt' is missing; found 'chosen', 'rejected'"),
    "chosen is missing": (row(chosen="absent"), "field 'chosen' is missing"),
    "rejected is missing": (row(rejected="absent"), "field 'rejected' is missing"),
    "chosen is misspelt": (row(chosen="absent", chosn="x"), "type data.columns.chosen=chosn if that is it"),
    "rejected is misspelt": (row(rejected="absent", Rejected="x"), "type data.columns.rejected=Rejected"),
    "no fields": (b"{}", "found no fields"),
    "prompt is null": (row(prompt=None), "'prompt': found null, expected a text or a list"),
    "chosen is null": (row(chosen=None), "'chosen': found null"),
    "rejected is null": (row(rejected=None), "'rejected': found null"),
    "prompt is a number": (row(prompt=7), "'prompt': found a number"),
    "chosen is a number": (row(chosen=7), "'chosen': found a number"),
    "chosen is true": (row(chosen=True), "'chosen': found true/false"),
    "chosen is an object": (row(chosen={"text": "a"}), "'chosen': found an object"),
    "chosen is a list of texts and numbers": (row(chosen=["a", 3]), r"chosen\[1\]': found a number, expected a text"),
    "messages as JSON text": (row(chosen=json.dumps([BOT])), "'chosen': found the text of messages in JSON or Python"),
    "a system message beside a text": (row(system="scene"), "'system': the prompt is a text.* type data.wrap=chat"),
    "tools beside a text": (row(tools=[{"name": "f"}]), "'tools': the prompt is a text.*data.columns.tools=null"),
    # messages
    "unknown role": (chat([{"role": "bot", "content": "a"}], "b", "c"), r"prompt\[0\].*role 'bot'; allowed: system"),
    "role is missing": (chat([{"content": "a"}], "b", "c"), "role None; allowed"),
    "ShareGPT keys": (chat([{"from": "human", "value": "a"}], "b", "c"), "rename from/value to role/content"),
    "content is null": (chat([{"role": "user", "content": None}], "b", "c"), "content is null, expected a text"),
    "content is missing": (chat([{"role": "user"}], "b", "c"), "content is null"),
    "a part of an image": (chat([{**USER, "content": [{"type": "image"}]}], "b", "c"), "expected a part of type text"),
    "a function call": (chat([USER], [{**BOT, "function_call": {"name": "f"}}], "c"), "write it as tool_calls"),
    "no content and no tool call": (chat([USER], [{**BOT, "content": None}], "c"), "content is null"),
    "no messages": (chat([], "b", "c"), "'prompt': the list of messages is empty"),
    "no messages in chosen": (chat([USER], [], "c"), "'chosen': the list of messages is empty"),
    "only a system message": (chat([SYSTEM], "b", "c"), "so there is nothing to respond to"),
    "response by the user": (chat([USER], [USER], "c"), "begins with the user's message; expected the assistant's"),
    "response ends with the user": (chat([USER], [BOT, USER], "c"), "ends with the user's message"),
    # mixtures
    "text prompt, a user's response": (row(chosen=[USER], rejected=[OTHER]), "begins with the user's message"),
    "text beside a conversation": (talk([USER, BOT], "c"), "found a text, but the other fields hold messages"),
    "prompt is not the last message": (chat("scene", [USER, BOT], [USER, OTHER]), "none of the user's messages"),
    "nothing shared": (talk([USER, BOT], [ASK, OTHER]), "found the user's turn after 0 shared messages, expected the"),
    "users differ after a turn": (talk([USER, BOT, USER, BOT], [USER, BOT, ASK, BOT]), "user's turn after 2 shared"),
    "two formats at once": (ranked(chosen="a", rejected="b"), "data.columns.responses=null"),
    "dialogues share nothing": (talk(HH + " b", HH.replace("plot", "cast") + " d"), "no shared beginning ends in"),
    "dialogue ends with the human": (talk(HH + " a\n\nHuman: x", HH + " b"), "ends with the human's turn"),
    "two human turns": (talk(HH + " a\n\nHuman: x\n\nHuman: y\n\nAssistant: z", HH + " b"), "two turns in a row"),
    "one dialogue, one text": (talk(HH + " a", "b"), "field 'prompt' is missing"),
    # ranked lists
    "ranked without a prompt": (ranked(prompt="absent"), "'prompt' is missing beside the responses"),
    "neither ranks nor scores": (ranked(ranks="absent"), "needs either ranks or scores"),
    "both ranks and scores": (ranked(scores=[1, 2, 3]), "needs either ranks or scores; found .*ranks.*scores"),
    "ranks of another length": (ranked(ranks=[1, 2]), "2 ranks for 3 responses"),
    "a rank that is a text": (ranked(ranks=["1", "2", "3"]), "'ranks': found '1', expected numbers"),
    "a rank beyond all numbers": (ranked(ranks=[1, 10**400, 2]), "'ranks': found .*, expected numbers"),
    "a pair beside a list": (row(responses=["a", "b"], ranks=[1, 2]), "'responses': found chosen/rejected"),
    "a dialogue that the responses repeat": (
        row(prompt=HH, chosen=HH + " plot", rejected=HH + " cast"),
        "both responses repeat the whole dialogue .*data.columns.prompt=null",
    ),
    "a rank that is not a number": (ranked(ranks=[1, float("nan"), 2]), "found nan, expected numbers"),
    "one response": (ranked(responses=["a"], ranks=[1]), "a list of two or more"),
    "a response that is null": (ranked(responses=[" plot", None, " cast"]), r"responses\[1\].*found null"),
    # control characters
    "control characters": (chat([{"role": "\x1b[31m", "content": "a"}], "b", "c"), r"role '\\x1b\[31m'"),
}  # fmt: skip

DROPPED = {
    "identical responses": (row(chosen="a", rejected="a"), "identical"),
    "identical messages": (chat([USER], [BOT], [BOT]), "identical"),
    "identical conversations": (talk([USER, BOT], [USER, BOT]), "identical"),
    "empty chosen": (row(chosen=""), "empty"),
    "empty rejected": (row(rejected=""), "empty"),
    "all ranks equal": (ranked(ranks=[1, 1, 1]), "no_preference"),
    "prompt longer than the budget": (row(prompt="plot " * 60), "prompt_too_long"),
    "alike after truncation": (row(chosen=" plot" * 60 + " a", rejected=" plot" * 60 + " b"), "identical_after_cut"),
}

WARNED = {
    "swapped": (row(chosen=GOOD["rejected"], rejected=GOOD["chosen"]), "also appear with chosen and rejected swapped"),
    "a duplicate": (row(), "exact duplicates"),
    "truncated response": (row(chosen=" plot" * 60), "responses are truncated"),
    "special token in text": (row(chosen=" plot </s> cast"), "spell out a special token"),
    "a prompt that the responses repeat": (
        row(prompt="plot :", chosen="plot : witty", rejected="plot : dull"),
        "both responses repeat the prompt",
    ),
    "no space": (row(prompt="review of a plot", chosen="music plot", rejected="music cast"), "runs into the response"),
}

TRAINED = {
    "blank line": (b"  ", 2),
    "extra fields": (row(index=5, reference="x", weight=-3, note=None), 3),
    "an extra field that is not a number": (row(score=float("nan")), 3),
    "unicode": (row(chosen=" \u2028 é 😀 \x00"), 3),
    "CRLF": (row() + b"\r", 3),
    "messages with other keys": (chat([{**USER, "name": "x", "tool_calls": None}], [BOT], [OTHER]), 3),
    "scores beside a pair": (row(scores=0.7, ranks={"a": 1}, responses="both"), 3),
    "a null pair beside a list": (ranked(chosen=None, rejected=None), 5),
    "null lists beside a pair": (row(responses=None, ranks=None), 3),
    "ranked list": (ranked(), 5),
    "ranked by scores, one tie": (ranked(ranks="absent", scores=[0.5, 0.5, 2.0]), 4),
    "whitespace response": (row(chosen=" "), 3),
    "text prompt, messages": (row(chosen=[BOT], rejected=[OTHER]), 3),
    "several rejected": (row(rejected=[" dull plot", " weak plot"]), 4),
    "empty context": (row(system="", tools="[]", history=[], input=None, chat_template_kwargs={"x": None}), 3),
    "an input": (row(input="plot"), 3),
}


@pytest.fixture(scope="module")
def tokenizer():
    from lightning_dpo.demo import ASSETS
    from lightning_dpo.models import load_tokenizer

    tokenizer = load_tokenizer(ASSETS / "model")
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }} {% endfor %}"
    return tokenizer


@pytest.fixture
def read(tokenizer, tmp_path):
    def read(case: bytes, name: str = "rows.jsonl", **options) -> PreferenceDataModule:
        path = tmp_path / name
        path.write_bytes(row() + b"\n" + case + b"\n" + row(chosen=" witty cast") if case else b"")
        data = PreferenceDataModule(tokenizer, path, max_length=40, cache_dir=tmp_path / "tokens", **options)
        data.setup()
        return data

    return read


def test_the_table_is_long():
    assert len(REFUSED) + len(DROPPED) + len(WARNED) + len(TRAINED) >= 85 and len(REFUSED) >= 60


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name, read, tmp_path):
    case, message = REFUSED[name]
    with pytest.raises(DataError, match=f"(?s)rows.jsonl:2:.*({message}).*data.on_bad_row=drop") as error:
        read(case)
    assert str(error.value).replace("\n", "").isprintable()
    assert not list((tmp_path / "tokens").glob("*/manifest.json")), "a refused source leaves no entry"


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_row_can_be_dropped_and_is_counted(name, read):
    data = read(REFUSED[name][0], on_bad_row="drop")
    report = data_report(data)
    assert report["pairs"] == {"read": 3, "train": 2, "dropped": 1}
    assert sum(report["sources"][0]["bad"].values()) == 1 and "rows.jsonl:2" in report["sources"][0]["bad_rows"][0]
    assert any("1 bad rows dropped" in warning for warning in report["warnings"])


@pytest.mark.parametrize("name", DROPPED)
def test_dropped(name, read):
    case, reason = DROPPED[name]
    report = data_report(read(case))
    assert report["pairs"] == {"read": 3, "train": 2, "dropped": 1}
    assert report["sources"][0]["dropped"] == {reason: 1}


@pytest.mark.parametrize("name", WARNED)
def test_warned(name, read):
    case, message = WARNED[name]
    assert any(message in warning for warning in data_report(read(case))["warnings"])
    assert not any(message in warning for warning in data_report(read(row(chosen=" clever plot")))["warnings"])


@pytest.mark.parametrize("name", TRAINED)
def test_trained(name, read):
    case, pairs = TRAINED[name]
    assert len(read(case).train_pairs) == pairs


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (row(w=10**400), "rows.jsonl:2: field 'w': found 1000.*expected a number in"),
        (row(), "rows.jsonl:2: field 'w': the field is missing; found 'prompt', 'chosen', 'rejected'"),
    ],
)
def test_a_weight_is_a_number(case, message, tokenizer, tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(row(w=1) + b"\n" + case)
    data = PreferenceDataModule(tokenizer, tmp_path / "rows.jsonl", weight_column="w", cache_dir=tmp_path / "tokens")
    with pytest.raises(DataError, match=message):
        data.setup()


@pytest.mark.parametrize("columns", [{"chosen": "better"}, {"prompt": "ask"}])
def test_a_field_is_named_as_in_the_file(columns, read):
    (name,) = columns.values()
    with pytest.raises(DataError, match=f"rows.jsonl:1: field '{name}'"):
        read(row(), columns=columns)


def test_rows_that_the_chat_template_refuses_are_all_counted(tokenizer, tmp_path):
    """Chunks after the first bad row are only parsed, and still counted."""
    bad = chat([USER, {"role": "tool", "content": "x"}], "music", "cast") + b"\n"
    (tmp_path / "rows.jsonl").write_bytes(bad * 2500)
    refuses = "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no') }}{% endif %}{% endfor %}"
    data = PreferenceDataModule(
        tokenizer, tmp_path / "rows.jsonl", chat_template=refuses, cache_dir=tmp_path / "tokens"
    )
    with pytest.raises(DataError, match="2499 more rows"):
        data.setup()


def test_all_bad_rows_are_counted_by_kind_and_the_first_is_named(read):
    case = b"\n".join([b"{", row(chosen=None), row(chosen=3), row()])
    with pytest.raises(DataError) as error:
        read(case)
    text = str(error.value)
    assert "rows.jsonl:2: not JSON" in text and "2 more rows" in text and "1 json, 2 type in all" in text
    assert "first in lines 3, 4" in text


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (b"", "rows.jsonl", "the file is empty"),
        (b"\n \n", "rows.jsonl", "holds no rows"),
        (json.dumps(GOOD).encode("utf-16"), "rows.jsonl", "UTF-16; save it as UTF-8"),
        (json.dumps(GOOD).encode("utf-16-le"), "rows.jsonl", "UTF-16"),
        (gzip.compress(row(), mtime=0), "rows.jsonl", "compressed by gzip; rename it to rows.jsonl.gz"),
        (row(), "rows.jsonl.gz", "not compressed by gzip; rename it to rows.jsonl"),
        (gzip.compress(row() * 99, mtime=0)[:60], "rows.jsonl.gz", "damaged gzip"),
        (b"PAR0 nothing", "rows.parquet", "not a Parquet file"),
        (b"PAR1 nothing", "rows.parquet", "not a readable Parquet file"),
        (b"a,b", "rows.xlsx", "unknown file type '.xlsx'; allowed: .jsonl"),
        (b"[" + row() + b",", "rows.json", "not JSON"),
        (b"[]", "rows.json", "holds no rows"),
        (b"[" + row() + b"\n " + row() + b"]", "rows.json", "rows.json:1: not JSON: expected a comma"),
        (b"[" + row() + b",]", "rows.json", "not JSON"),
        (b"[" + row() + b"] {}", "rows.json", "nothing after it"),
        (b'[\n{"prompt": "a", "prompt": "b"}]', "rows.json", "rows.json:2: field 'prompt': the key appears twice"),
    ],
)
def test_a_file_that_cannot_be_read_has_its_own_message(content, name, message, tokenizer, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        PreferenceDataModule(tokenizer, tmp_path / name, cache_dir=tmp_path / "tokens").setup()


def test_a_path_that_does_not_exist_suggests_a_similar_name(tokenizer, tmp_path):
    (tmp_path / "train.jsonl").write_bytes(row())
    (tmp_path / "empty").mkdir()
    for path, message in (
        (tmp_path / "trian.jsonl", "no such file .did you mean .*train.jsonl"),
        (tmp_path / "empty", "holds no file of a known type|any data files"),
        ("org/name", "a hub data set needs a split"),
        ("nothing.jsonl", "no such file"),
    ):
        with pytest.raises(DataError, match=message):
            PreferenceDataModule(tokenizer, path, cache_dir=tmp_path / "tokens").setup()


def test_a_bom_and_a_missing_last_newline_are_accepted(tokenizer, tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(b"\xef\xbb\xbf" + row() + b"\r\n\n" + row(chosen=" witty cast"))
    data = PreferenceDataModule(tokenizer, tmp_path / "rows.jsonl", cache_dir=tmp_path / "tokens")
    data.setup()
    assert [data.train_pairs.where(i)[-2:] for i in range(2)] == [":1", ":3"]
