"""Chat templates that print the day: the same command gives the same tokens on every day."""

import json
from datetime import datetime

import pytest

from lightning_dpo.data import PreferenceDataModule
from lightning_dpo.data.chat import Chat
from lightning_dpo.errors import DataError
from tests.data.test_tokenize import CHATML, byte_level

LLAMA_3 = (  # its lines about the day, which it also prints in a macro
    "{%- macro head(day) -%}Today: {{ day }}, {{ strftime_now('%Y-%m-%d') }}{%- endmacro -%}"
    "{%- if not date_string is defined %}{%- if strftime_now is defined %}"
    "{%- set date_string = strftime_now('%d %b %Y (%A, day %-j)') %}{%- endif %}{%- endif -%}"
    "{{ head(date_string) }}\n{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
MESSAGES = [{"role": "user", "content": "plot"}]


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "chat.jsonl"
    path.write_text(json.dumps(dict(prompt=MESSAGES, chosen="music", rejected="cast")))
    return path


def printing_the_day():
    return byte_level(template=LLAMA_3)


def test_the_template_prints_the_configured_day_in_every_format():
    tokenizer = printing_the_day()
    expected = "Today: 05 Mar 2024 (Tuesday, day 65), 2024-03-05\nuser: plot\nassistant: "
    assert Chat(tokenizer, "2024-03-05").prompt(MESSAGES) == expected
    assert tokenizer.chat_template == LLAMA_3, "the exported tokenizer keeps its template"
    today = tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    assert Chat(tokenizer, f"{datetime.now():%Y-%m-%d}").prompt(MESSAGES) == today, "as transformers renders it"


def test_without_a_day_such_a_template_is_refused_for_chats_only(rows, tmp_path):
    data = PreferenceDataModule(printing_the_day(), rows, cache_dir=tmp_path / "tokens")
    with pytest.raises(DataError, match=r"strftime_now.*type data.date=\d{4}-\d\d-\d\d"):
        data.setup()
    rows.write_text('{"prompt": "plot", "chosen": "music", "rejected": "cast"}')
    data = PreferenceDataModule(printing_the_day(), rows, cache_dir=tmp_path / "tokens")
    data.setup()
    assert len(data.train_pairs) == 1


def test_another_day_is_tokenised_again(rows, tmp_path):
    prompts = []
    for day in ("2024-03-05", "2024-03-06", "2024-03-05"):
        data = PreferenceDataModule(printing_the_day(), rows, date=day, cache_dir=tmp_path / "tokens")
        data.setup()
        prompts.append(data.train_pairs.select([0]).prompt.values.tolist())
    assert prompts[0] == prompts[2] != prompts[1]
    assert len(list((tmp_path / "tokens").glob("*/manifest.json"))) == 2


@pytest.mark.parametrize("day", ["yesterday", "2024-13-01", "05.03.2024", "2024-03-05T10:00"])
def test_an_invalid_day_is_refused(day):
    with pytest.raises(DataError, match=f"data.date={day}: .*type a day such as 2026-01-31"):
        Chat(printing_the_day(), day)


def test_a_day_that_the_template_does_not_print_is_refused():
    with pytest.raises(DataError, match="data.date=2024-03-05: the chat template prints no day; leave it out"):
        Chat(byte_level(template=CHATML), "2024-03-05")
