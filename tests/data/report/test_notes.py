"""The data page accounts for everything that is not read as it is stored."""

import json

import pytest

from lightning_dpo import PreferenceDataModule
from lightning_dpo.data.report import data_page, stream_page
from lightning_dpo.data.report.facts import data_report
from lightning_dpo.data.report.notes import SHOWN


@pytest.fixture
def data(reviews, tmp_path):
    rows = [dict(prompt=f"review of a {w} plot", chosen=" witty", rejected=" weak") for w in ("dull", "charming")]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = PreferenceDataModule(reviews / "model", tmp_path / "pairs.jsonl")
    data.setup()
    return data


def noted(data, *notes):
    """The module, with these notes on its source."""
    data.train_pairs.parts[0].manifest["notes"] = [list(note) for note in notes]
    return data


def test_ignored_columns_are_listed_with_their_rows(data, tmp_path, capsys):
    notes = [("ignored", "id", 2), ("ignored", "system", 1203), ("unprinted", "name", 88)]
    report = data_page(noted(data, *notes), tmp_path)
    assert "ignored: system (1,203 rows), name of messages (88), id (2)\n" in capsys.readouterr().out
    assert report["sources"][0]["ignored"] == {"system": 1203, "name of messages": 88, "id": 2}
    assert json.loads((tmp_path / "data_report.json").read_text()) == report


@pytest.mark.parametrize("streaming", [False, True])
def test_what_is_not_read_is_counted_in_the_rows_themselves(streaming, reviews, tmp_path, capsys):
    bot = {"role": "assistant", "content": "witty", "score": 1}
    row = dict(prompt="a plot", chosen=[bot], rejected=[{**bot, "content": "weak"}], note="x", empty=None)
    (tmp_path / "pairs.jsonl").write_text("\n".join(json.dumps(row | {"id": i}) for i in (1, 2)))
    template = "{% for m in messages %}{{ m.content }} {% endfor %}"
    data = PreferenceDataModule(
        reviews / "model", tmp_path / "pairs.jsonl", chat_template=template, streaming=streaming
    )
    data.setup()
    if streaming:
        for batch in data.train_dataloader():
            data.used(batch, epoch=0)
        stream_page(data, tmp_path, data_report(data))
        assert "2 pairs, 2 ignored id, 2 ignored note, 2 ignored score of messages\n" in capsys.readouterr().out
    else:
        data_page(data, tmp_path)
        assert "ignored: id (2 rows), note (2), score of messages (2)\n" in capsys.readouterr().out


def test_a_long_account_is_cut_and_cannot_control_the_terminal(data, tmp_path, capsys):
    data_page(noted(data, ("ignored", "\x1b[31m", 9), *(("ignored", f"c{i}", 1) for i in range(SHOWN))), tmp_path)
    printed = capsys.readouterr().out
    assert r"ignored: \x1b[31m (9 rows), c0 (1)" in printed and "and 1 more" in printed and "\x1b[31m" not in printed


@pytest.mark.parametrize(
    ("note", "words"),
    [
        (("reasoning", "", 3), "3 rows whose earlier reasoning the chat template leaves out"),
        (("end", "<|end|>\n", 3), r"the end of turn '<|end|>\n' is several tokens, so EOS ends the responses"),
    ],
)
def test_facts_are_stated_and_are_no_warnings(note, words, data, tmp_path, capsys):
    assert data_page(noted(data, note), tmp_path)["warnings"] == []
    assert words in capsys.readouterr().out


@pytest.mark.parametrize(
    ("note", "words"),
    [
        (("lost", "tool", 1203), "in 1,203 rows the chat template does not print the tool;"),
        (("unequal_turns", "", 2), "in 2 rows one side has more turns than the other"),
    ],
)
def test_losses_are_warnings(note, words, data):
    (warning,) = data_report(noted(data, note))["warnings"]
    assert words in warning


def test_text_that_the_vocabulary_lacks_is_warned_about(data, reviews, tmp_path):
    assert data_report(data)["warnings"] == []
    rows = [dict(prompt=f"a {word} plot", chosen=" witty", rejected=" weak") for word in ("dull", "fjord")]
    (tmp_path / "fjord.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = PreferenceDataModule(reviews / "model", tmp_path / "fjord.jsonl")
    data.setup()
    (warning,) = data_report(data)["warnings"]
    assert "1 rows hold text that the tokenizer's vocabulary lacks" in warning


def test_texts_beside_a_chat_template_are_warned_about_once(data):
    noted(data, ("text", "", 2))
    assert data_report(data)["warnings"] == []
    data.tokenizer.chat_template = "{% for m in messages %}{{ m.content }} {% endfor %}"
    (warning,) = data_report(data)["warnings"]
    assert "2 rows are texts" in warning and "type data.wrap=chat" in warning
