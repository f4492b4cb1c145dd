"""Content in, content out; and the prompt of training is the prompt of inference.

A chat template that leaves something out of a row stops the run at that row, or is counted.
"""

import itertools
import json
import random
import sysconfig
from pathlib import Path
from typing import NamedTuple

import pytest
from tokenizers import AddedToken

from lightning_dpo.data import PreferenceDataModule
from lightning_dpo.data.chat import Chat
from lightning_dpo.data.fields import Format
from lightning_dpo.data.formats import parse
from lightning_dpo.data.rows import BadRow, Row
from lightning_dpo.data.tokenize import Encoded, PairTokenizer
from lightning_dpo.errors import DataError
from tests.data.test_tokenize import CHATML, byte_level, encoded

USER = {"role": "user", "content": "why is the sky blue"}
TOOL = {"type": "function", "function": {"name": "clock", "description": "Tells the time.", "parameters": {}}}
CALL = [{"type": "function", "function": {"name": "clock", "arguments": {"zone": "Lima"}}}]


def bot(content, **keys):
    return {"role": "assistant", "content": content, **keys}


class Template(NamedTuple):
    """A chat template in Jinja, and the same in Python."""

    trims: bool = False
    drops_trained_thoughts: bool = False
    drops_earlier_thoughts: bool = False
    system: str = "printed"  # printed, skipped, moved (to the first user message)
    prefill: str = ""  # behind the generation prompt
    prints_tools: bool = True
    end: str = "<|im_end|>\n"

    @property
    def jinja(self) -> str:
        trim, drop = " | trim" if self.trims else "", ".split('</think>')[-1]"
        kept = {
            "trained": "m.content" + drop * self.drops_trained_thoughts,
            "earlier": "m.content" + drop * self.drops_earlier_thoughts,
        }
        tools = "{% if tools %}{{ tools | tojson }}{% endif %}" if self.prints_tools else ""
        system = "{% if messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}"
        return (
            tools
            + "{% for m in messages %}"
            + ("{% if m.role != 'system' %}" if self.system != "printed" else "{% if true %}")
            + "<|im_start|>{{ m.role }}\n"
            + (
                "{% if m.role == 'user' and loop.index0 < 2 %}" + system + " {% endif %}"
                if self.system == "moved"
                else ""
            )
            + f"{{% if loop.last and m.role == 'assistant' %}}{{{{ ({kept['trained']}){trim} }}}}"
            + f"{{% elif m.role == 'assistant' %}}{{{{ ({kept['earlier']}){trim} }}}}"
            + f"{{% else %}}{{{{ m.content{trim} }}}}{{% endif %}}{{{{ {self.end!r} }}}}{{% endif %}}{{% endfor %}}"
            + f"{{% if add_generation_prompt %}}<|im_start|>assistant\n{self.prefill}{{% endif %}}"
        )

    def render(self, row: Row, response: str) -> str:
        messages = [*row.prompt, bot(response)]
        text = json.dumps(row.options["tools"]) if "tools" in row.options and self.prints_tools else ""
        for i, message in enumerate(messages):
            content = message["content"]
            if message["role"] == "system" and self.system != "printed":
                continue
            dropped = self.drops_trained_thoughts if i == len(messages) - 1 else self.drops_earlier_thoughts
            if message["role"] == "assistant" and dropped:
                content = content.split("</think>")[-1]
            content = content.strip() if self.trims else content
            if message["role"] == "user" and i < 2 and self.system == "moved":
                content = (messages[0]["content"] if messages[0]["role"] == "system" else "") + " " + content
            text += f"<|im_start|>{message['role']}\n{content}{self.end}"
        return text

    def losses(self, row: Row) -> set[tuple[str, str]]:
        """What the template does not print of the row. Both responses have the same shape."""
        thinks = {message["content"].startswith("<think>") for message in row.prompt}
        trained_thinks = row.chosen.startswith("<think>")
        found = {
            ("lost", "message of role system"): self.system == "skipped" and row.prompt[0]["role"] == "system",
            ("lost", "reasoning"): self.drops_trained_thoughts and trained_thinks,
            ("reasoning", ""): self.drops_earlier_thoughts and True in thinks,
            ("lost", "tool"): not self.prints_tools and "tools" in row.options,
            ("lost", "prompt of inference"): self.prefill != ""
            and not (trained_thinks and not self.drops_trained_thoughts),
        }
        return {note for note, holds in found.items() if holds}


def random_row(rng: random.Random) -> Row:
    def words() -> str:
        return " ".join("".join(rng.choices("abcdefghijklmnop", k=6)) for _ in range(rng.randint(1, 3)))

    def answer(thinks: bool) -> str:
        return f"<think>\n{words()}\n</think>\n\n{words()}" if thinks else words() + rng.choice(["", "", "  "])

    prompt = [{"role": "system", "content": words()}] if rng.random() < 0.5 else []
    for _ in range(rng.randint(0, 2)):
        prompt += [{"role": "user", "content": words()}, bot(answer(rng.random() < 0.5))]
    prompt.append({"role": "user", "content": words()})
    thinks = rng.random() < 0.5
    return Row(prompt, answer(thinks), answer(thinks), options={"tools": [TOOL]} if rng.random() < 0.3 else {})


def random_template(rng: random.Random) -> Template:
    return Template(
        trims=rng.random() < 0.5,
        drops_trained_thoughts=rng.random() < 0.3,
        drops_earlier_thoughts=rng.random() < 0.5,
        system=rng.choice(["printed", "printed", "skipped", "moved"]),
        prefill=rng.choice(["", "", "<think>\n"]),
        prints_tools=rng.random() < 0.7,
        end=rng.choice(["<|im_end|>\n", "</s>", " </s>\n", "\n"]),
    )


def test_both_invariants_hold_for_random_templates_or_the_loss_is_named():
    """400 rows: the losses are those that the template was built with; without one, the ids are the rendered text."""
    rng, whole = random.Random(0), 0
    for _ in range(80):
        template = random_template(rng)
        tokenizer = byte_level(template=template.jinja)
        rows = [random_row(rng) for _ in range(5)]
        strict, lenient = PairTokenizer(tokenizer), PairTokenizer(tokenizer, on_template_loss="warn")
        for row, stopped, counted in zip(rows, strict.encode(rows), lenient.encode(rows), strict=True):
            losses = template.losses(row)
            assert isinstance(counted, Encoded) and set(counted.notes) == losses
            if any(kind == "lost" for kind, _ in losses):
                assert isinstance(stopped, BadRow) and stopped.kind == "template_loss"
                continue
            assert isinstance(stopped, Encoded)
            whole += 1
            for ids, response in ((stopped.chosen, row.chosen), (stopped.rejected, row.rejected)):
                end = "<|im_end|>" if "im_end" in template.end else "</s>"
                text = template.render(row, response).rstrip().removesuffix(end)
                decoded = tokenizer.decode([*stopped.prompt, *ids])
                assert decoded.removesuffix(end).rstrip() == text.rstrip() and decoded.endswith(end)
    assert whole > 100, "most templates print some rows whole"


INSTALLED = sorted(Path(sysconfig.get_paths()["purelib"]).glob("*/chat_templates/*.jinja"))
CONVERSATIONS = {
    "plain": Row([USER], "it scatters", "it is paint"),
    "system": Row([{"role": "system", "content": "be brief"}, USER], "it scatters", "it is paint"),
    "turns": Row([USER, bot("it scatters"), {"role": "user", "content": "what does"}], "the light", "the paint"),
    "thoughts": Row(
        [USER], "<think>\nair then\n</think>\n\nit scatters", "<think>\npaint then\n</think>\n\nit is paint"
    ),
    "beside": Row([USER], [bot("it scatters", reasoning_content="air then")], [bot("paint", reasoning_content="oh")]),
    "tools": Row([USER], [bot(None, tool_calls=CALL)], [bot("no idea")], options={"tools": [TOOL]}),
}


@pytest.mark.skipif(not INSTALLED, reason="no installed package ships chat templates")
@pytest.mark.parametrize("path", INSTALLED, ids=lambda path: path.stem)
def test_templates_of_installed_packages_print_everything_or_are_refused(path):
    """Of what is encoded, the trained text is all of the response, behind the template's own prompt."""
    template = path.read_text(encoding="utf-8")
    date = "2026-01-31" if "strftime_now" in template else None
    tokenizer = byte_level(template=template)
    for row in CONVERSATIONS.values():
        (answer,) = PairTokenizer(tokenizer, date=date).encode([row])
        if isinstance(answer, BadRow):
            assert answer.kind in ("template", "template_loss")
            continue
        assert isinstance(answer, Encoded)
        prompt, chosen = tokenizer.decode(answer.prompt), tokenizer.decode(answer.chosen)
        assert Chat(tokenizer, date).prompt(row.prompt, row.options) == prompt
        said = row.chosen if isinstance(row.chosen, str) else json.dumps(row.chosen)
        for word in ("air then", "it scatters", "clock", "Lima"):
            assert word not in said or word in prompt[-40:] + chosen, f"{path.name} lost {word}"


@pytest.mark.parametrize(
    ("template", "row", "lost"),
    [
        (Template(drops_trained_thoughts=True), CONVERSATIONS["thoughts"], "leaves out the reasoning 'air then'"),
        (Template(system="skipped"), CONVERSATIONS["system"], "leaves out the message of role system 'be brief'"),
        (Template(prints_tools=False), CONVERSATIONS["tools"], "leaves out the tool call 'clock'"),
        (Template(prefill="<think>\n"), CONVERSATIONS["plain"], r"goes on with '<think>\\n', where .* 'it scatters"),
        (Template(), CONVERSATIONS["beside"], "leaves out the reasoning 'air then'"),
    ],
)
def test_a_loss_is_quoted_with_a_remedy(template, row, lost):
    with pytest.raises(BadRow, match=f"{lost}.*data.on_template_loss=warn"):
        encoded(byte_level(template=template.jinja), row)


def test_a_prompt_that_goes_on_otherwise_is_not_called_a_merged_border():
    tokenizer = byte_level(template=Template(prefill="<think>\n").jinja)
    answer = encoded(tokenizer, CONVERSATIONS["plain"], on_template_loss="warn")
    assert tokenizer.decode(answer.prompt).endswith("<|im_start|>assistant\n") and not answer.flags & 1


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("on_bad_row", ["stop", "drop"])
def test_a_loss_stops_the_run_at_its_row_whatever_happens_to_bad_rows(streaming, on_bad_row, tmp_path):
    rows = [dict(prompt="oops", chosen=[USER], rejected=3)] * 30 if on_bad_row == "drop" else []
    rows += [dict(prompt=[USER], chosen="it scatters", rejected="paint")]
    rows += [dict(prompt=[{"role": "system", "content": "be brief"}, USER], chosen="it scatters", rejected="paint")] * 2
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    tokenizer = byte_level(template=Template(system="skipped").jinja)
    options = {"streaming": streaming, "on_bad_row": on_bad_row, "shuffle": False, "cache_dir": tmp_path / "tokens"}

    def read(**more):
        data = PreferenceDataModule(tokenizer, tmp_path / "rows.jsonl", **options, **more)
        data.setup()
        return data, [pair for batch in data.train_dataloader() for pair in batch.index.tolist()]

    with pytest.raises(DataError, match=rf"rows.jsonl:{len(rows) - 1}: .*role system 'be brief'") as stopped:
        read()
    assert "on_bad_row=drop" not in str(stopped.value), "that would not help"
    data, pairs = read(on_template_loss="warn")
    assert len(pairs) == 3
    if not streaming:
        assert data.train_pairs.parts[0].manifest["notes"] == [["lost", "message of role system", 2]]


def test_rows_that_differ_in_what_is_lost_are_counted_although_they_are_dropped(tmp_path):
    row = dict(prompt=[USER], chosen="<think>air</think>blue", rejected="<think>paint</think>blue")
    rows = [row, {**row, "chosen": "<think>air</think>grey"}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    tokenizer = byte_level(template=Template(drops_trained_thoughts=True).jinja)
    options = {"on_template_loss": "warn", "cache_dir": tmp_path / "tokens"}
    data = PreferenceDataModule(tokenizer, tmp_path / "rows.jsonl", **options)
    data.setup()
    manifest = data.train_pairs.parts[0].manifest
    assert manifest["dropped"] == {"identical_tokens": 1} and manifest["notes"] == [["lost", "reasoning", 2]]


def test_an_older_entry_of_the_token_cache_is_written_again_under_its_name(tmp_path):
    """The name is part of the identity of saved runs."""
    (tmp_path / "rows.jsonl").write_text(json.dumps(dict(prompt=[USER], chosen="it scatters", rejected="paint")))

    def name():
        data = PreferenceDataModule(byte_level(template=CHATML), tmp_path / "rows.jsonl", cache_dir=tmp_path / "tokens")
        data.setup()
        return data.train_pairs.parts[0].folder

    folder = name()
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(
        json.dumps({k: v for k, v in manifest.items() if k not in ("reader", "notes")})
    )
    assert name() == folder
    assert json.loads((folder / "manifest.json").read_text()) == manifest


def test_pairs_are_others_if_rows_hold_what_was_not_read_before(tmp_path):
    """The names of cache entries stay, so that runs of 0.1.0 resume; but not on other tokens."""

    def contents(**row):
        rows = tmp_path / "rows.jsonl"
        rows.write_text(json.dumps(dict(prompt=[USER], chosen="it scatters", rejected="paint", **row)))
        data = PreferenceDataModule(byte_level(template=CHATML), rows, cache_dir=tmp_path / "tokens")
        data.setup()
        return data.content()["train"], data.train_pairs.parts[0].folder.name

    (plain,), folder = contents(id=1)
    assert plain == folder
    (systematic,), folder = contents(system="be brief")
    assert systematic == f"{folder} system"


THINKS_LAST = (  # as Qwen3: an empty thought before the answer to the last question alone
    "{% set ns = namespace(last=0) %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.index0 > ns.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_only_all_turns_need_the_earlier_turns_unchanged():
    turns = [bot("it scatters"), {"role": "user", "content": "what does"}, bot("the light")]
    row = Row([USER], turns, [bot("paint"), *turns[1:]])
    tokenizer = byte_level(template=THINKS_LAST)
    answer = encoded(tokenizer, row)
    trained = itertools.compress(answer.chosen, answer.chosen_trained)
    assert tokenizer.decode(list(trained)) == "<think>\n\n</think>\n\nthe light<|im_end|>"
    with pytest.raises(BadRow, match="prints earlier turns differently when others follow.*type data.turns=last"):
        encoded(tokenizer, row, turns="all")


NEEDS_SYSTEM = (
    "{% if messages[0].role != 'system' %}{{ raise_exception('a system message, please') }}{% endif %}" + CHATML
)


def test_a_template_may_need_what_its_rows_have():
    assert encoded(byte_level(template=NEEDS_SYSTEM), CONVERSATIONS["system"]).ends == (4, 4)
    with pytest.raises(BadRow, match="a system message, please"):
        encoded(byte_level(template=NEEDS_SYSTEM), CONVERSATIONS["plain"])


def test_named_templates_need_no_default():
    tokenizer = byte_level(template={"tool_use": Template().jinja, "rag": CHATML})
    call = [bot("", tool_calls=CALL), {"role": "tool", "content": "noon"}, bot("it is noon")]
    (answer,) = PairTokenizer(tokenizer, on_template_loss="warn").encode(
        [Row([USER], call, [*call[:-1], bot("no idea")], options={"tools": [TOOL]})]
    )
    assert isinstance(answer, Encoded), "rows with tools choose tool_use"
    with pytest.raises(BadRow, match="refuses the messages: .*no default"):
        encoded(tokenizer, CONVERSATIONS["plain"])


def test_a_named_template_is_chosen_by_its_name(tmp_path):
    data = PreferenceDataModule(byte_level(template={"tool_use": "{{ x }}", "rag": CHATML}), None, chat_template="rag")
    assert data.tokenizer.chat_template == CHATML


PLAIN_END = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}END\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def test_a_token_ends_the_turn_whether_or_not_it_is_special():
    tokenizer = byte_level(template=CHATML.replace("<|im_end|>", "<|done|>"))
    tokenizer.add_tokens(["<|done|>"])
    done = tokenizer.convert_tokens_to_ids("<|done|>")
    answer = encoded(tokenizer, CONVERSATIONS["plain"])
    assert answer.ends == (done, done) and answer.chosen[-1] == done and answer.notes == (("read", "end of turn"),)


def test_an_end_that_is_special_leaves_the_identity_of_a_run_alone_whether_or_not_it_has_a_name():
    """0.1.0 knew it by its flag. Llama 3's <|eot_id|> is in no named list of special tokens."""
    tokenizer = byte_level(template=CHATML.replace("<|im_end|>", "<|done|>"))
    tokenizer.add_tokens([AddedToken("<|done|>", special=True)])
    assert encoded(tokenizer, CONVERSATIONS["plain"]).notes == ()


def test_an_end_of_several_tokens_is_counted_and_eos_ends_the_response():
    tokenizer = byte_level(template=PLAIN_END)
    answer = encoded(tokenizer, CONVERSATIONS["plain"])
    assert answer.notes == (("end", "END"),) and tokenizer.decode(answer.chosen).endswith("it scatters</s>")


def test_a_tool_call_may_end_with_another_token():
    template = (
        "{{ tools | tojson }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
        "{% for c in m.tool_calls or [] %}{{ c.function | tojson }}<|call|>{% else %}<|im_end|>{% endfor %}"
        "{{ '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tokenizer = byte_level(template=template)
    tokenizer.add_tokens(["<|call|>"])
    row = Row([USER], [bot(None, tool_calls=CALL)], [bot("no idea")], options={"tools": [TOOL]})
    answer = encoded(tokenizer, row)
    assert [tokenizer.decode([end]) for end in answer.ends] == ["<|call|>", "<|im_end|>"]
    assert tokenizer.decode(answer.chosen) == '{"name": "clock", "arguments": {"zone": "Lima"}}<|call|>'


QWEN = (  # prints tool calls behind the content, and nothing else
    "{{ tools | tojson }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<call>{{ c.function | tojson }}</call>{% endfor %}"
    "<|im_end|>{{ '\n' }}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_arguments_of_a_tool_call_may_be_a_json_text(tmp_path):
    """As OpenAI has them; templates expect an object, or join a text to others."""
    tokenizer = byte_level(template=QWEN)
    arguments = {"zone": 'a "b"'}
    answers = []
    for spelling in (arguments, json.dumps(arguments)):
        calls = [{"type": "function", "function": {"name": "clock", "arguments": spelling}}]
        record = dict(prompt=[USER], chosen=[bot("", tool_calls=calls)], rejected="no idea", tools=[TOOL])
        answers += PairTokenizer(tokenizer).encode(parse(record, Format()))
    assert answers[0] == answers[1] and r'"zone": "a \"b\""' in tokenizer.decode(answers[0].chosen)
    joins = byte_level(template=QWEN.replace("c.function | tojson", "c.function.name + c.function.arguments"))
    (joined,) = PairTokenizer(joins).encode(parse(record, Format()))
    assert r'<call>clock{"zone": "a \"b\""}</call>' in joins.decode(joined.chosen)


def test_a_prompt_may_not_end_with_a_tool_call():
    """The response would come before the call."""
    record = dict(prompt=[USER, bot("", tool_calls=CALL)], chosen="noon", rejected="one")
    with pytest.raises(BadRow, match="the last message calls a tool, and no message of the tool follows"):
        parse(record, Format())


def test_a_template_may_print_nothing_behind_the_last_message():
    """As GLM-4.5: the turn ends where the next role begins, so EOS ends the response."""
    tokenizer = byte_level(template=QWEN.replace("<|im_end|>{{ '\n' }}", ""))
    tokenizer.add_tokens(["</call>"])
    row = Row([USER], [bot("", tool_calls=CALL)], [bot("no idea")], options={"tools": [TOOL]})
    answer = encoded(tokenizer, row)
    assert tokenizer.decode(answer.chosen).endswith("</call></s>") and answer.ends == (2, 2)


def test_a_tool_without_a_description_is_whole():
    tool = {"type": "function", "function": {"name": "clock", "description": None}}
    row = CONVERSATIONS["tools"]._replace(options={"tools": [tool]})
    assert isinstance(encoded(byte_level(template=QWEN), row), Encoded)


def test_an_option_of_a_row_that_the_template_has_not_is_counted():
    row = CONVERSATIONS["plain"]._replace(options={"moood": "calm"})
    assert encoded(byte_level(template=CHATML), row).notes == (("ignored", "moood of chat_template_kwargs"),)


def test_messages_reach_the_template_whole():
    template = (
        "{{ tools | tojson }} {{ mood }} {% for m in messages %}"
        "<|im_start|>{{ m.role }} {{ m.name }} {{ m.tool_call_id }}\n"
        "{{ m.reasoning_content }}{{ m.content }}{{ m.tool_calls | tojson if m.tool_calls }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant  \n{% endif %}"
    )
    tokenizer = byte_level(template=template)
    prompt = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": "what time is it", "name": "anna"},
        bot("", tool_calls=CALL),
        {"role": "tool", "content": "noon", "tool_call_id": "c7"},
    ]
    row = Row(prompt, [bot("noon", reasoning_content="so ")], [bot("one", reasoning_content="no ")])
    row = row._replace(options={"tools": [TOOL], "mood": "calm"})
    answer = encoded(tokenizer, row)
    assert {kind for kind, _ in answer.notes} == {"read"}
    text = tokenizer.decode([*answer.prompt, *answer.chosen])
    parts = ("Tells the time.", "calm", "developer", "be brief", "anna", "Lima", "c7", "noon", "so noon<|im_end|>")
    assert all(part in text for part in parts)


def test_a_key_that_few_templates_print_is_only_counted():
    row = Row([{**USER, "name": "anna"}], "it scatters", "paint")
    assert encoded(byte_level(template=CHATML), row).notes == (("unprinted", "name"),)


def test_variables_of_the_template_come_from_the_configuration_and_the_row():
    tokenizer = byte_level(template="{{ mood }}{{ pace }} " + CHATML)
    options = {"mood": "calm", "pace": "slow"}
    row = CONVERSATIONS["plain"]._replace(options={"pace": "fast"})
    assert tokenizer.decode(encoded(tokenizer, row, chat_template_kwargs=options).prompt).startswith("calmfast ")
    for name, reason in (("moood", "no variable of the chat template"), ("tools", "is set by the rows")):
        with pytest.raises(DataError, match=f"data.chat_template_kwargs.{name} is.*{reason.removeprefix('is ')}"):
            PairTokenizer(tokenizer, chat_template_kwargs={name: 1})
