"""Every recognised format of a record becomes the same kind of row."""

import json

import pytest

from lightning_dpo.data import PreferenceDataModule
from lightning_dpo.data.formats import Format, parse
from lightning_dpo.data.rows import BadRow, Dropped, Row

USER = {"role": "user", "content": "2 + 2?"}
MORE = {"role": "user", "content": "sure?"}
SYSTEM = {"role": "system", "content": "be short"}
FOUR = {"role": "assistant", "content": "4"}
FIVE = {"role": "assistant", "content": "5"}
CALL = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "add", "arguments": {"n": [2, 2]}}}]}


def only(**record) -> Row:
    (row,) = rows_of(record)
    return row


def rows_of(record, **options) -> list[Row]:
    """The rows of a record, without their notes."""
    rows = parse(record, Format(**options))
    assert all(isinstance(row, Row) for row in rows)
    return [row._replace(notes=()) for row in rows]


@pytest.mark.parametrize(
    ("record", "row"),
    {
        "text": (dict(prompt="2 + 2 =", chosen=" 4", rejected=" 5"), Row("2 + 2 =", " 4", " 5")),
        "messages, text responses": (dict(prompt=[USER], chosen="4", rejected="5"), Row([USER], "4", "5")),
        "messages, messages": (dict(prompt=[USER], chosen=[FOUR], rejected=[FIVE]), Row([USER], "4", "5")),
        "messages, mixed": (dict(prompt=[USER], chosen="4", rejected=[FIVE]), Row([USER], "4", "5")),
        "system": (dict(prompt=[SYSTEM, USER], chosen="4", rejected="5"), Row([SYSTEM, USER], "4", "5")),
        "prefilled": (dict(prompt=[USER, FOUR], chosen="2", rejected="3"), Row([USER, FOUR], "2", "3")),
        "conversations": (dict(chosen=[USER, FOUR], rejected=[USER, FIVE]), Row([USER], "4", "5")),
        "conversations beside their prompt": (
            dict(prompt=[USER], chosen=[USER, FOUR], rejected=[USER, FIVE]),
            Row([USER], "4", "5"),
        ),
        "conversations beside the text of their prompt": (
            dict(prompt="2 + 2?", chosen=[SYSTEM, USER, FOUR], rejected=[SYSTEM, USER, FIVE]),
            Row([SYSTEM, USER], "4", "5"),
        ),
        "a text prompt, messages": (dict(prompt="2 + 2?", chosen=[FOUR], rejected=[FIVE]), Row([USER], "4", "5")),
        "a text prompt, one message": (dict(prompt="2 + 2?", chosen=FOUR, rejected="5"), Row([USER], "4", "5")),
        "conversations beside the text of their first turn": (
            dict(prompt="2 + 2?", chosen=[USER, FOUR, MORE, FOUR], rejected=[USER, FOUR, MORE, FIVE]),
            Row([USER, FOUR, MORE], "4", "5"),
        ),
        "conversations beside null": (
            dict(prompt=None, chosen=[USER, FOUR], rejected=[USER, FIVE]),
            Row([USER], "4", "5"),
        ),
        "conversations that begin with a greeting": (
            dict(prompt="2 + 2?", chosen=[FIVE, USER, FOUR], rejected=[FIVE, USER, FIVE]),
            Row([FIVE, USER], "4", "5"),
        ),
        "text parts": (
            dict(prompt=[{**USER, "content": [{"type": "text", "text": "2 + 2?"}]}], chosen=FOUR, rejected=FIVE),
            Row([USER], "4", "5"),
        ),
        "a developer": (
            dict(prompt=[{**SYSTEM, "role": "developer"}, USER], chosen="4", rejected="5"),
            Row([{**SYSTEM, "role": "developer"}, USER], "4", "5"),
        ),
        "a tool call": (dict(prompt=[USER], chosen=[CALL], rejected="5"), Row([USER], [CALL], "5")),
        "reasoning": (
            dict(prompt=[USER], chosen={**FOUR, "reasoning_content": "count"}, rejected=FIVE),
            Row([USER], [{**FOUR, "reasoning_content": "count"}], "5"),
        ),
        "HH dialogues beside null": (
            dict(prompt=None, chosen="\n\nHuman: a\n\nAssistant: b", rejected="\n\nHuman: a\n\nAssistant: c"),
            Row("\n\nHuman: a\n\nAssistant:", " b", " c"),
        ),
        "conversations, later turn": (
            dict(chosen=[USER, FOUR, MORE, FOUR], rejected=[USER, FOUR, MORE, FIVE]),
            Row([USER, FOUR, MORE], "4", "5"),
        ),
        "conversations that diverge early": (
            dict(chosen=[USER, FOUR, MORE, FOUR], rejected=[USER, FIVE]),
            Row([USER], [FOUR, MORE, FOUR], "5"),
        ),
        "HH dialogues": (
            dict(chosen="\n\nHuman: a\n\nAssistant: b", rejected="\n\nHuman: a\n\nAssistant: c"),
            Row("\n\nHuman: a\n\nAssistant:", " b", " c"),
        ),
        "HH dialogues that differ in a later turn": (
            dict(
                chosen="\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d",
                rejected="\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: e",
            ),
            Row("\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:", " d", " e"),
        ),
        "HH dialogues that diverge early": (
            dict(
                chosen="\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d",
                rejected="\n\nHuman: a\n\nAssistant: x",
            ),
            Row(
                "\n\nHuman: a\n\nAssistant:",
                [
                    {"role": "assistant", "content": " b"},
                    {"role": "user", "content": "\n\nHuman: c\n\nAssistant:"},
                    {"role": "assistant", "content": " d"},
                ],
                " x",
            ),
        ),
    }.values(),
)
def test_recognised(record, row):
    assert only(**record, note="ignored", weight=3, margin="x", index=None) == row


@pytest.mark.parametrize(
    ("ranked", "pairs"),
    [
        ("all", {("b", "a"), ("b", "c"), ("a", "c")}),
        ("adjacent", {("b", "a"), ("a", "c")}),
        ("best_worst", {("b", "c")}),
    ],
)
@pytest.mark.parametrize("values", [{"ranks": [2, 1, 3]}, {"scores": [0.5, 0.9, -1]}])
def test_a_ranked_list_gives_pairs_of_better_and_worse(ranked, pairs, values):
    rows = parse({"prompt": "q", "responses": ["a", "b", "c"], **values}, Format(ranked=ranked))
    assert {(r.chosen, r.rejected) for r in rows} == pairs and len(rows) == len(pairs)


def test_a_tie_in_a_ranking_gives_no_pair():
    rows = parse({"prompt": [USER], "responses": ["a", [FOUR], "c"], "ranks": [1, 1, 2]}, Format())
    assert {(r.chosen, r.rejected) for r in rows} == {("a", "c"), ("4", "c")}
    assert str(parse({"prompt": "q", "responses": ["a", "b"], "ranks": [1, 1]}, Format())[0]) == "no_preference"


def test_every_chosen_is_paired_with_every_rejected():
    rows = rows_of(dict(prompt="q", chosen=["a", "b"], rejected=["x", "y"]))
    assert [(row.chosen, row.rejected) for row in rows] == [("a", "x"), ("a", "y"), ("b", "x"), ("b", "y")]
    conversations = dict(chosen=[USER, FOUR], rejected=[[USER, FIVE], [USER, CALL]])
    assert [row.rejected for row in rows_of(conversations)] == ["5", [CALL]]


def test_a_ranked_list_of_messages_may_hold_all_that_a_response_may():
    ranked = dict(prompt="2 + 2?", responses=[[CALL], "4", [FIVE]], scores=[3, 2, 1])
    assert [(row.prompt, row.chosen, row.rejected) for row in rows_of(ranked, ranked="adjacent")] == [
        ([USER], [CALL], "4"),
        ([USER], "4", "5"),
    ]


def test_wrap_makes_messages_of_texts_and_of_dialogues():
    assert rows_of(dict(prompt="2 + 2?", chosen="4", rejected="5"), wrap="chat") == [Row([USER], "4", "5")]
    talk = "\n\nHuman: 2 + 2?\n\nAssistant:"
    for record in (dict(prompt=talk, chosen=" 4", rejected=" 5"), dict(chosen=f"{talk} 4", rejected=f"{talk} 5")):
        assert rows_of(record, wrap="chat") == [Row([USER], "4", "5")]
    ranked = dict(prompt=f"{talk} ", responses=["4", "5"], ranks=[1, 2])
    assert rows_of(ranked, wrap="chat") == [Row([USER], "4", "5")]
    messages = dict(prompt="2 + 2?", chosen=[SYSTEM, USER, FOUR], rejected=[SYSTEM, USER, FIVE])
    assert rows_of(messages, wrap="chat") == rows_of(messages) == [Row([SYSTEM, USER], "4", "5")]
    quoted = dict(prompt=f"review{talk}", chosen="4", rejected="5")
    assert rows_of(quoted, wrap="chat") == [Row([{"role": "user", "content": f"review{talk}"}], "4", "5")]
    begun = dict(prompt=f"{talk} It is", chosen=" 4", rejected=" 5")
    assert rows_of(begun, wrap="chat") == [Row([USER, {"role": "assistant", "content": "It is"}], " 4", " 5")]


def test_join_is_put_where_neither_side_has_a_space():
    def joined(prompt, chosen, rejected="no", **record):
        (row,) = rows_of(dict(prompt=prompt, chosen=chosen, rejected=rejected, **record), join=" ")
        return row.prompt, row.chosen, row.rejected

    assert joined("q", "a", "\nb") == ("q", " a", "\nb")
    assert joined("q ", "a") == ("q ", "a", "no") and joined("", "a") == ("", "a", "no")
    ranked = rows_of(dict(prompt="q", responses=["a", " b"], ranks=[2, 1]), join="\n")
    assert ranked == [Row("q", " b", "\na")]
    assert rows_of(dict(prompt=[USER], chosen="4", rejected="5"), join=" ") == [Row([USER], "4", "5")]
    assert str(parse(dict(prompt="q", chosen="", rejected="b"), Format(join=" "))[0]) == "empty"


def test_what_is_not_read_is_noted():
    message = {**FOUR, "index": 1, "name": "", "weight": None}
    record = dict(prompt=[USER], chosen=[message], rejected=[FIVE], id=0, note="", source="x", tags=[], scores=[1, 2])
    (row,) = parse(record, Format())
    assert row.notes == tuple(("ignored", name) for name in ("id", "index of messages", "scores", "source"))
    (row,) = parse(dict(chosen=[USER, FOUR, MORE, FOUR], rejected=[USER, FIVE]), Format())
    assert row.notes == (("unequal_turns", ""),)
    assert parse(dict(prompt="q", chosen="a", rejected="b"), Format())[0].notes == (("text", ""),)


@pytest.mark.parametrize("field", ["prompt", "chosen", "responses"])
@pytest.mark.parametrize(
    "text", [json.dumps([USER, FOUR]), json.dumps(USER), '[ {"from": "human", "value": "a"}]', str([USER])]
)
def test_the_json_text_of_messages_is_no_text(field, text):
    record = {"prompt": "q", "chosen": "a", "rejected": "b", field: text}
    if field == "responses":
        record = {"prompt": "q", "responses": ["a", text], "ranks": [1, 2]}
    with pytest.raises(BadRow, match="found the text of messages in JSON or Python; store the list itself"):
        parse(record, Format())


@pytest.mark.parametrize("text", ['{"role": "admin", "name": "anna"}', "[{role: user}]", "{ } is empty", "[]", "{"])
def test_other_json_is_a_text(text):
    assert only(prompt="q", chosen=text, rejected="b") == Row("q", text, "b")


def test_columns_map_names_and_null_ignores_a_field():
    columns = {"prompt": "question", "chosen": "good", "rejected": "bad", "responses": None}
    record = dict(question="q", good="a", bad="b", responses=["x"], prompt=3)
    assert rows_of(record, columns=columns) == [Row("q", "a", "b")]


def test_weight_and_margin_come_from_the_configured_columns():
    record = dict(prompt="q", chosen="a", rejected="b", w=2, m=-0.5)
    assert rows_of(record, weight_column="w", margin_column="m") == [Row("q", "a", "b", weight=2.0, margin=-0.5)]


@pytest.mark.parametrize(("column", "value"), [("w", -1), ("w", "2"), ("w", None), ("w", True), ("m", float("inf"))])
def test_a_weight_or_margin_that_is_not_a_number_is_refused(column, value):
    record = dict(prompt="q", chosen="a", rejected="b", **{"w": 1, "m": 0, column: value})
    with pytest.raises(BadRow, match="expected a number in"):
        parse(record, Format(weight_column="w", margin_column="m"))


def test_pairs_without_a_preference_are_dropped_with_a_reason():
    reasons = [
        parse(dict(prompt="q", chosen=c, rejected=r), Format())[0] for c, r in (("a", "a"), ("", "b"), ("a", ""))
    ]
    assert [str(r) for r in reasons] == ["identical", "empty", "empty"] and isinstance(reasons[0], Dropped)


def test_a_text_that_begins_with_many_lines_is_read_at_once():
    (row,) = rows_of(dict(prompt="q", chosen="\n" * 200_000, rejected="b"))
    assert isinstance(row.chosen, str)


def test_values_of_numpy_are_read(reviews):
    import numpy as np

    data = PreferenceDataModule(reviews / "model", None, weight_column="w")
    row = dict(prompt="a plot", chosen=" witty", rejected=" dull", embedding=np.array([1.0, 2.0]), w=np.float32(0.5))
    assert data.batch([row]).weight.tolist() == [0.5]
