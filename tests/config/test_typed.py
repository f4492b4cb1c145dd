"""The command line: `~` in any place, values that Hydra cannot read, options between overrides."""

import shlex
import subprocess

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from lightning_dpo.config.typed import in_order, quoted, readable, remedy


def value(override: str):
    read = OverridesParser.create().parse_override(override)
    return [getattr(v, "text", v) for v in read.sweep_iterator()] if read.is_sweep_override() else read.value()


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("~/pairs.jsonl", "~/pairs.jsonl"),
        ("~", "~"),
        ("~ann/pairs.jsonl", "~ann/pairs.jsonl"),
        ("~/a.jsonl,~/b.jsonl", ["~/a.jsonl", "~/b.jsonl"]),
        ("choice(~/a.jsonl, b.jsonl)", ["~/a.jsonl", "b.jsonl"]),
        ("[~/a.jsonl, b.jsonl, ~/c]", ["~/a.jsonl", "b.jsonl", "~/c"]),
        ("[{path: ~/a.jsonl, weight: 2}]", [{"path": "~/a.jsonl", "weight": 2}]),
        (r"~/my\ pairs.jsonl", "~/my pairs.jsonl"),
        ("~/${run_name}/x", "~/${run_name}/x"),
        ('"one, ~/two"', "one, ~/two"),
        ("plain.jsonl", "plain.jsonl"),
    ],
)
def test_hydra_reads_a_path_of_the_home_folder_wherever_it_stands(typed, expected):
    assert value(readable(f"data.train={typed}")) == expected


@pytest.mark.parametrize("typed", ["~logger", "~data.val=null", "run_name=a~b", "data.train=~/a (1).jsonl"])
def test_what_is_no_path_of_the_home_folder_is_left_to_hydra(typed):
    assert readable(typed) == typed or remedy(typed)


@pytest.mark.parametrize(
    "path",
    ["pairs (1).jsonl", "a=b.jsonl", "a#b", "Übung/päare.jsonl", "it's.jsonl", 'a"b', "~/pairs (1).jsonl", "a{b}",
     "日本", "$HOME`x` (1)", "back\\slash (1)\\"],
)  # fmt: skip
def test_the_answer_to_an_unreadable_path_works_when_it_is_pasted_into_a_shell(path):
    line = remedy(f"data.train={path}").removeprefix("type ")
    printed = subprocess.run(["bash", "-c", f"printf %s {line}"], capture_output=True, text=True, check=True).stdout
    assert value(printed) == path


def test_the_answer_to_an_unreadable_list_or_sweep_quotes_what_needs_it():
    (line,) = shlex.split(remedy("data.train=[a (1).jsonl, b.jsonl]").removeprefix("type "))
    assert line == 'data.train=["a (1).jsonl",b.jsonl]'
    one, several = remedy("data.train=ä.jsonl,b.jsonl").removeprefix("type ").split(", or for several values ")
    assert value(*shlex.split(one)) == "ä.jsonl,b.jsonl" and value(*shlex.split(several)) == ["ä.jsonl", "b.jsonl"]


def test_what_cannot_be_answered_by_quotes_around_it_is_answered_in_words():
    assert remedy("Übung=1") == ""
    assert "double quotes around each text" in remedy("data.train={path: ä}")
    assert "double quotes around each text" in remedy('data.train="a",b (1)')
    assert "KEY=VALUE" in remedy("pairs.jsonl")


def test_a_text_that_hydra_reads_needs_no_quotes():
    assert quoted("outputs/a-1.b:c") == "outputs/a-1.b:c"


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("loss=ipo -m beta=0.1,0.5", "loss=ipo beta=0.1,0.5 -m"),
        ("-m loss=ipo --config-dir c ~logger --cfg job seed=1", "loss=ipo ~logger seed=1 -m --config-dir c --cfg job"),
        ("-m loss=ipo seed=1", "-m loss=ipo seed=1"),
        ("loss=ipo --config-name x", "loss=ipo --config-name x"),
    ],
)
def test_options_may_stand_between_overrides(typed, expected):
    assert in_order(typed.split()) == expected.split()


def test_a_folder_of_configurations_may_be_in_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ann")
    assert in_order(["--config-dir=~/conf", "seed=1"]) == ["--config-dir=/home/ann/conf", "seed=1"]
