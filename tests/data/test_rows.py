"""JSON lines become rows, or an error that names file, line and field."""

import json

import pytest

from lightning_dpo.data.rows import Row, parse_row, read_rows, split_by_prompt
from lightning_dpo.errors import DataError

USER = {"role": "user", "content": "2 + 2?"}
ANSWER = [{"role": "assistant", "content": "4"}]


def parse(**row) -> Row:
    return parse_row(json.dumps(row), "a.jsonl:7")


def test_text_is_kept_as_it_is():
    row = parse(prompt="2 + 2 =", chosen=" 4", rejected=" 5", extra=[1])
    assert row == Row("2 + 2 =", " 4", " 5", "a.jsonl:7")


@pytest.mark.parametrize("chosen", ["4", ANSWER])
def test_a_prompt_of_messages_takes_responses_as_text_or_as_one_assistant_message(chosen):
    row = parse(prompt=[USER], chosen=chosen, rejected="5")
    assert (row.prompt, row.chosen, row.rejected) == ([USER], "4", "5")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (dict(prompt="a", chosen="b"), "field 'rejected' is missing; found 'prompt', 'chosen'"),
        (dict(prompt="a", chosen="b", rejected=5), "field 'rejected': found number, expected a text"),
        (dict(prompt="a", chosen=None, rejected="c"), "field 'chosen': found null"),
        (dict(prompt={"a": 1}, chosen="b", rejected="c"), "field 'prompt': found object"),
        (dict(prompt="a", chosen=ANSWER, rejected="c"), "field 'chosen': found messages beside a prompt that is text"),
        (dict(prompt=[], chosen="b", rejected="c"), "field 'prompt': the list of messages is empty"),
        (dict(prompt=[USER, *ANSWER], chosen="b", rejected="c"), "the last message is the assistant's"),
        (
            dict(prompt=[{"role": "bot", "content": "x"}], chosen="b", rejected="c"),
            r"\[0\]: role 'bot'; allowed: system",
        ),
        (dict(prompt=[{"role": "user"}], chosen="b", rejected="c"), r"\[0\]: content is null"),
        (dict(prompt=["x"], chosen="b", rejected="c"), r"\[0\]: found text, expected a message"),
        (dict(prompt=[USER], chosen=[USER], rejected="c"), "field 'chosen': found messages of user"),
        (dict(prompt=[USER], chosen=ANSWER * 2, rejected="c"), "expected exactly one"),
    ],
)
def test_a_bad_row_names_file_line_and_field(row, said):
    with pytest.raises(DataError, match=f"a.jsonl:7: .*{said}"):
        parse(**row)


@pytest.mark.parametrize(
    ("line", "said"), [('{"prompt": ', "not JSON"), ("[1]", "a JSON list"), ("null", "a JSON null")]
)
def test_a_line_that_is_no_object_is_named(line, said):
    with pytest.raises(DataError, match=f"a.jsonl:7: .*{said}"):
        parse_row(line, "a.jsonl:7")


def test_lines_are_counted_with_the_blank_ones_and_a_bom_is_skipped(tmp_path):
    good = json.dumps(dict(prompt="a", chosen="b", rejected="c"))
    file = tmp_path / "rows.jsonl"
    file.write_text("\ufeff" + good + "\r\n\n" + good, encoding="utf-8")
    assert [row.where for row in read_rows(file)] == [f"{file}:1", f"{file}:3"]


def test_a_missing_and_an_empty_file_have_their_own_messages(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_rows(tmp_path / "nothing.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(DataError, match="holds no rows"):
        read_rows(tmp_path / "empty.jsonl")


def rows(prompts: int, each: int) -> list[Row]:
    return [Row(f"question {i}", str(j), "no", f"f:{i}") for i in range(prompts) for j in range(each)]


def test_a_prompt_is_never_on_both_sides_of_a_split():
    train, val = split_by_prompt(rows(20, each=3), 0.25)
    assert not {r.prompt for r in train} & {r.prompt for r in val}
    assert len(val) == 5 * 3 and len(train) == 15 * 3


def test_the_split_does_not_depend_on_the_order_of_the_rows():
    a, b = split_by_prompt(rows(20, 3), 0.25)[1], split_by_prompt(rows(20, 3)[::-1], 0.25)[1]
    assert sorted(a) == sorted(b)


def test_a_split_with_an_empty_side_is_refused():
    with pytest.raises(DataError, match="data.val=0.5: 1 distinct prompts"):
        split_by_prompt(rows(1, each=9), 0.5)
