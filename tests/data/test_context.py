"""A system message, earlier turns, an input, tools and template options reach the prompt, or the row is refused."""

import inspect
import json

import pytest
from transformers import PreTrainedTokenizerBase

from lightning_dpo.data.context import RESERVED
from lightning_dpo.data.formats import Format, parse
from lightning_dpo.data.rows import BadRow, Row

ASK = {"role": "user", "content": "low tide ?"}
BRIEF = {"role": "system", "content": "be brief"}
PAIR = {"chosen": "noon", "rejected": "never"}
TEXT, CHAT = {"prompt": "low tide ?", **PAIR}, {"prompt": [ASK], **PAIR}
TOOLS = [{"type": "function", "function": {"name": "tide"}}]
EARLIER = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ahoy"}]


def row_of(record, **options) -> Row:
    (row,) = parse(record, Format(**options))
    assert isinstance(row, Row)
    return row


@pytest.mark.parametrize(
    ("context", "prompt", "options"),
    [
        (dict(system="be brief"), [BRIEF, ASK], {}),
        (dict(history=EARLIER), [*EARLIER, ASK], {}),
        (dict(history=[["hi", "ahoy"]], system="be brief"), [BRIEF, *EARLIER, ASK], {}),
        (dict(tools=TOOLS), [ASK], {"tools": TOOLS}),
        (dict(tools=json.dumps(TOOLS)), [ASK], {"tools": TOOLS}),
        (dict(chat_template_kwargs={"a": False, "b": None}, tools=TOOLS), [ASK], {"tools": TOOLS, "a": False}),
        (dict(chat_template_kwargs='{"think": false}'), [ASK], {"think": False}),
        (dict(system="", history=[], tools="[]", chat_template_kwargs="{}", input=""), [ASK], {}),
    ],
)  # fmt: skip
def test_a_chat_gets_its_context(context, prompt, options):
    for record, wrap in (
        (CHAT, None),
        (TEXT, "chat"),
        ({**TEXT, "chosen": [{"role": "assistant", "content": "noon"}]}, None),
    ):
        row = row_of({**record, **context}, wrap=wrap)
        assert (row.prompt, row.options, row.chosen) == (prompt, options, "noon")


def test_every_pair_of_a_ranked_list_gets_the_context():
    rows = parse(dict(prompt=[ASK], responses=["a", "b", "c"], ranks=[1, 2, 3], system="be brief"), Format())
    assert len(rows) == 3 and all(isinstance(row, Row) and row.prompt == [BRIEF, ASK] for row in rows)


@pytest.mark.parametrize("field", ["system", "history", "tools", "chat_template_kwargs"])
def test_a_text_has_no_place_for_it(field):
    value = {"system": "be brief", "history": EARLIER, "tools": TOOLS, "chat_template_kwargs": {"think": True}}[field]
    with pytest.raises(BadRow, match=f"type data.wrap=chat .* or type data.columns.{field}=null") as error:
        parse({**TEXT, field: value}, Format())
    assert error.value.field == field
    row = row_of({**TEXT, field: value}, columns={field: None})
    assert row.prompt == "low tide ?" and ("ignored", field) in row.notes


def test_two_system_messages_must_be_one():
    assert row_of({**CHAT, "prompt": [BRIEF, ASK], "system": "be brief"}).prompt == [BRIEF, ASK]
    with pytest.raises(BadRow, match="the prompt's own system message is 'be brief'; remove one of the two"):
        parse({**CHAT, "prompt": [BRIEF, ASK], "system": "be long"}, Format())


def test_an_input_follows_the_prompt():
    assert row_of({**TEXT, "input": "at Brest"}).prompt == "low tide ?\nat Brest"
    assert row_of({**TEXT, "prompt": "", "input": "at Brest"}).prompt == "at Brest"
    assert row_of({**TEXT, "input": "at Brest"}, wrap="chat").prompt == [{**ASK, "content": "low tide ?\nat Brest"}]
    for record, message in (({**CHAT, "input": "x"}, "a prompt that is a list"), ({**TEXT, "input": 3}, "a number")):
        with pytest.raises(BadRow, match=f"{message}.*data.columns.input=null"):
            parse(record, Format())
    with pytest.raises(BadRow, match="the prompt again"):
        parse({**TEXT, "input": "low tide ?"}, Format())


@pytest.mark.parametrize(
    ("context", "message"),
    [
        (dict(system=3), "found a number, expected a text"),
        (dict(history="yesterday"), "found a text, expected a list of messages or of .user, assistant. texts"),
        (dict(history=[["hi"]]), "found a list"),
        (dict(tools="tide"), "found a text that is not JSON"),
        (dict(tools={"name": "tide"}), "found an object, expected a list or the JSON text of one"),
        (dict(chat_template_kwargs=[1]), "found a list, expected an object or the JSON text of one"),
        (dict(chat_template_kwargs={"add_generation_prompt": False}), "add_generation_prompt is not an option"),
        (dict(chat_template_kwargs={"tools": []}), "tools is not an option"),
    ],
)
def test_a_context_of_another_kind_is_refused(context, message):
    with pytest.raises(BadRow, match=message) as error:
        parse({**CHAT, **context}, Format())
    assert error.value.field.partition("[")[0] in context


def test_a_row_sets_no_argument_of_apply_chat_template():
    """But `documents`, which are content for the template."""
    parameters = inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters
    assert set(parameters) - {"self", "kwargs", "documents"} <= RESERVED
