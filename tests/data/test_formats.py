"""Every recognised format of a record becomes the same kind of row."""

import pytest

from lightning_dpo.data.formats import Format, parse
from lightning_dpo.data.rows import BadRow, Dropped, Row

USER = {"role": "user", "content": "2 + 2?"}
MORE = {"role": "user", "content": "sure?"}
SYSTEM = {"role": "system", "content": "be short"}
FOUR = {"role": "assistant", "content": "4"}
FIVE = {"role": "assistant", "content": "5"}


def only(**record) -> Row:
    (row,) = parse(record, Format())
    assert isinstance(row, Row)
    return row


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


def test_columns_map_names_and_null_ignores_a_field():
    columns = {"prompt": "question", "chosen": "good", "rejected": "bad", "responses": None}
    record = dict(question="q", good="a", bad="b", responses=["x"], prompt=3)
    assert parse(record, Format(columns=columns)) == [Row("q", "a", "b")]


def test_weight_and_margin_come_from_the_configured_columns():
    record = dict(prompt="q", chosen="a", rejected="b", w=2, m=-0.5)
    assert parse(record, Format(weight_column="w", margin_column="m")) == [Row("q", "a", "b", weight=2.0, margin=-0.5)]


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
