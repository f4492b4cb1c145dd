"""Names, paths and labels find the fields of a record; each data preset reads the rows of its data set."""

import pytest
from omegaconf import OmegaConf

from lightning_dpo.data.fields import COLUMNS, PAIR, Format
from lightning_dpo.data.formats import parse
from lightning_dpo.data.rows import BadRow, Dropped, Row
from lightning_dpo.errors import DataError
from tests.conftest import ROOT

ASK = {"role": "user", "content": "sea or hills ?"}
SEA = {"role": "assistant", "content": "sea"}
HILLS = {"role": "assistant", "content": "hills"}
WORST = {"response": "hills", "overall_score": 3}
TOOLS = [{"type": "function", "function": {"name": "tide"}}]
PRESETS = {
    "helpsteer3": (
        dict(context=[ASK], response1="sea", response2="hills", overall_preference=-2, domain="travel"),
        Row([ASK], "sea", "hills"),
    ),
    "pku_safe_rlhf": (
        dict(prompt="sea ?", response_0="hills", response_1="sea", better_response_id=1, safer_response_id=0),
        Row("sea ?", "sea", "hills"),
    ),
    "shp": (
        dict(history="sea ?", human_ref_A="hills", human_ref_B="sea", labels=0, score_A=3),
        Row("sea ?", "sea", "hills"),
    ),
    "arena": (
        dict(conversation_a=[ASK, SEA], conversation_b=[ASK, HILLS], winner="model_a", model_a="m", turn=1),
        Row([ASK], "sea", "hills"),
    ),
    "nectar": (
        dict(prompt="sea ?", answers=[dict(answer="hills", rank=2.0, model="m"), dict(answer="sea", rank=1.0)]),
        Row("sea ?", "sea", "hills"),
    ),
    "ultrafeedback_raw": (
        dict(instruction="sea ?", completions=[dict(response="sea", overall_score=8.5), WORST]),
        Row("sea ?", "sea", "hills"),
    ),
    "openai": (
        dict(input=dict(messages=[ASK], tools=TOOLS), preferred_output=[SEA], non_preferred_output=[HILLS]),
        Row([ASK], "sea", "hills", options={"tools": TOOLS}),
    ),
}  # fmt: skip
"""A row of each data set in its own columns, with content of this project."""


def preset(name: str) -> Format:
    node = OmegaConf.to_container(OmegaConf.load(ROOT / "conf" / "data" / f"{name}.yaml"))
    assert isinstance(node, dict)
    return Format(columns=node["columns"], label=node.get("label"))


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_reads_the_rows_of_its_data_set(name):
    record, row = PRESETS[name]
    (found,) = parse(record, preset(name))
    assert isinstance(found, Row) and found._replace(notes=()) == row


@pytest.mark.parametrize(
    ("name", "changes", "answer"),
    [
        ("helpsteer3", dict(overall_preference=1), ("hills", "sea")),
        ("helpsteer3", dict(overall_preference=0), "no_preference"),
        ("helpsteer3", dict(overall_preference=None), "field 'overall_preference': found null, expected a number"),
        ("shp", dict(labels=1), ("hills", "sea")),
        ("shp", dict(labels="1"), "field 'labels': found a text, expected a number, as in data.label"),
        ("arena", dict(winner="model_b"), ("hills", "sea")),
        ("arena", dict(winner="tie (bothbad)"), "no_preference"),
        ("arena", dict(winner="model_b", conversation_b=3), "field 'conversation_b': found a number"),
        ("pku_safe_rlhf", dict(better_response_id=2), "no_preference"),
    ],
)
def test_a_label_says_which_side_is_preferred(name, changes, answer):
    record = {**PRESETS[name][0], **changes}
    try:
        (row,) = parse(record, preset(name))
        found = str(row) if isinstance(row, Dropped) else (row.chosen, row.rejected)
    except BadRow as error:
        found = f"field {error.field!r}: {error}"
    assert found == answer or (isinstance(answer, str) and found[: len(answer)] == answer)


def test_a_label_may_be_a_list_of_values_and_must_be_there():
    columns, label = {"label": "by"}, {"first": ["a", "c"], "second": ["b", 3]}
    record = dict(prompt="q", chosen="x", rejected="y")
    for value, chosen in (("c", "x"), (3, "y"), ("b", "y")):
        (row,) = parse({**record, "by": value}, Format(columns=columns, label=label))
        assert isinstance(row, Row) and row.chosen == chosen
    with pytest.raises(BadRow, match="field 'by' is missing") as error:
        parse(record, Format(columns=columns, label=label))
    assert error.value.field == "by"
    with pytest.raises(BadRow, match="0 is both first and second"):
        parse({**record, "by": 0}, Format(columns=columns, label={"first": "<1", "second": ">-1"}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(columns={"prompts": "q"}), "data.columns: unknown prompts; allowed: prompt, chosen"),
        (dict(columns={"label": "winner"}), "need each other; type both"),
        (dict(label={"first": 1, "second": 0}), "need each other; type both"),
        (dict(columns={"label": "winner"}, label={"first": 1}), "first and second need a value each"),
        (dict(columns={"label": "winner"}, label={"first": [1, 2], "second": 2}), "2 is in both first and second"),
        (dict(wrap="chat", join=" "), "data.join=' ' with data.wrap=chat"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options, message):
    with pytest.raises(DataError, match=message):
        Format(**options)


def test_a_path_reads_keys_and_elements_and_a_column_of_that_very_name_wins():
    columns = {"prompt": "turns[0].text", "chosen": "a.b", "rejected": "turns[-1].text"}
    record = {"turns": [{"text": "q"}, {"text": "no"}], "a": {"b": "yes"}}
    (row,) = parse(record, Format(columns=columns))
    assert isinstance(row, Row) and (row.prompt, row.chosen, row.rejected) == ("q", "yes", "no")
    (row,) = parse({**record, "a.b": "literally", "n": {"w": 2}}, Format(columns=columns, weight_column="n.w"))
    assert isinstance(row, Row) and (row.chosen, row.weight) == ("literally", 2.0)


@pytest.mark.parametrize(
    ("columns", "field", "message"),
    [
        ({"prompt": "a.c"}, "a.c", "field 'a.c' is missing; found 'a', 'list'"),
        ({"prompt": "list[5]"}, "list[5]", "is missing"),
        ({"prompt": "list.text"}, "list.text", "found a list where 'text' needs an object"),
        ({"prompt": "a[0]"}, "a[0]", "found an object where 0 needs a list"),
        ({"responses": "list[].text", "ranks": "list[].rank"}, "list[1].rank", "this element has no such key"),
        ({"responses": "list[].number", "ranks": "list[].number"}, "list[0].number", "found a number, expected a text"),
        ({"responses": "lists[].text"}, "lists[].text", "field 'lists\\[\\].text' is missing"),
    ],
)
def test_a_path_that_does_not_fit_is_named_as_in_the_record(columns, field, message):
    record = {"a": {"b": "q"}, "list": [{"text": "x", "rank": 1, "number": 1}, {"text": "y", "number": 2}]}
    record |= {"prompt": "q"} if "responses" in columns else {"chosen": "x", "rejected": "y"}
    with pytest.raises(BadRow, match=message) as error:
        parse(record, Format(columns=columns))
    assert error.value.field == field


def test_what_no_path_reads_is_noted_by_its_path():
    record, _ = PRESETS["openai"]
    record = {**record, "input": {**record["input"], "parallel_tool_calls": True, "user": ""}, "id": 7}
    (row,) = parse(record, preset("openai"))
    assert isinstance(row, Row) and row.notes == (
        ("ignored", "id"),
        ("ignored", "input.parallel_tool_calls"),
        ("read", "tools"),
    )
    (row,) = parse(PRESETS["nectar"][0], preset("nectar"))
    assert isinstance(row, Row) and row.notes == (("ignored", "answers[].model"), ("text", ""))
    (row,) = parse({"q": ["a", "b", "c"], "chosen": "x", "rejected": "y"}, Format(columns={"prompt": "q[-1]"}))
    assert isinstance(row, Row) and ("ignored", "q[]") in row.notes and row.prompt == "c"


def test_a_context_field_does_not_take_a_column_that_another_name_reads():
    """SHP's history is a post, and OpenAI's input holds the messages."""
    names = Format(columns={"prompt": "history", "chosen": "input.best"}, weight_column="system").names
    assert [names[field] for field in ("history", "input", "system")] == [None] * 3 and names["tools"] == "tools"
    assert Format(columns={"prompt": "question", "input": "prompt"}).names["input"] == "prompt"


def test_the_key_of_older_entries_is_unchanged_and_each_new_option_changes_it():
    old = {"columns": {name: name for name in PAIR}, "weight_column": None, "margin_column": None, "ranked": "all"}
    assert Format().key() == Format(columns=COLUMNS).key() == old
    label = {"first": "a", "second": "b"}
    others = [
        *(Format(columns={name: None}) for name in COLUMNS if name != "label"),
        *(Format(wrap="chat"), Format(join=" "), Format(columns={"label": "winner"}, label=label)),
    ]
    keys = [other.key() for other in others]
    assert old not in keys and all(keys.count(key) == 1 for key in keys)
