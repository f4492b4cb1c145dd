"""The data report agrees with an independent, slow count, and its memory does not grow with the rows."""

import json
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from lightning_dpo import PreferenceDataModule
from lightning_dpo.data.report.facts import data_report, plot_lengths
from tests.conftest import ROOT

WORDS = ["witty", "dull", "plot", "cast", "music", "charming"]


@pytest.fixture
def rows():
    """Random rows with all kinds of repetition."""
    rng = random.Random(0)

    def text(n: int) -> str:
        return "".join(" " + rng.choice(WORDS) for _ in range(rng.randint(1, n)))

    rows = [dict(prompt=f"review of a plot{text(1)}", chosen=text(3), rejected=text(2)) for _ in range(300)]
    rows += [dict(prompt=r["prompt"], chosen=r["rejected"], rejected=r["chosen"]) for r in rows[:20]] + rows[50:60]
    return [r for r in rows if r["chosen"] != r["rejected"]]


@pytest.fixture
def data(reviews, rows, tmp_path):
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows[:250])))
    (tmp_path / "val.jsonl").write_text("\n".join(map(json.dumps, rows[250:])))
    data = PreferenceDataModule(reviews / "model", tmp_path / "train.jsonl", tmp_path / "val.jsonl")
    data.setup()
    return data


def test_counts_agree_with_a_slow_count(data, rows):
    report, train, val = data_report(data), rows[:250], rows[250:]
    prompts = Counter(r["prompt"] for r in train)
    ordered = Counter((r["prompt"], r["chosen"], r["rejected"]) for r in train)
    found = report["sets"]["train"]
    assert found["pairs"] == 250 and found["prompts"] == len(prompts)
    assert found["pairs_per_prompt_max"] == max(prompts.values())
    assert found["exact_duplicates"] == sum(n - 1 for n in ordered.values())
    assert found["contradictory"] == sum((p, r, c) in ordered for p, c, r in ordered) / 2
    shared = report["shared_with_train"]["val"]
    assert shared["prompts"] == len({r["prompt"] for r in val} & set(prompts))
    either = {(r["prompt"], *sorted((r["chosen"], r["rejected"]))) for r in train}
    assert shared["pairs"] == len({(r["prompt"], *sorted((r["chosen"], r["rejected"]))) for r in val} & either)


def test_lengths_and_length_bias_agree_with_a_slow_count(data, rows):
    found = data_report(data)["sets"]["train"]
    lengths = sorted(len(r["chosen"].split()) + 1 for r in rows[:250])  # and the end token
    chosen = found["lengths"]["chosen"]
    assert chosen["mean"] == pytest.approx(sum(lengths) / 250, abs=0.01) and chosen["max"] == lengths[-1]
    assert chosen["q50"] == lengths[124] and chosen["tokens"] == sum(lengths) == sum(
        n * round(e) for n, e in zip(chosen["histogram"]["pairs"], chosen["histogram"]["edges"], strict=False)
    )
    longer = [len(r["chosen"].split()) - len(r["rejected"].split()) for r in rows[:250]]
    wins = found["longer_wins"]
    assert wins["longer"] == sum(d > 0 for d in longer) / 250 and wins["equal"] == sum(d == 0 for d in longer) / 250
    assert wins["accuracy"] == pytest.approx(wins["longer"] + wins["equal"] / 2)


def test_warnings_name_a_remedy_and_are_absent_from_clean_data(data, reviews, few_reviews):
    found = " ".join(data_report(data)["warnings"])
    assert "also in train, so val measures memory; type data.val=0.05" in found
    assert "chosen and rejected swapped; keep only the right one" in found
    assert "preferring the longer response is right for" in found
    clean = PreferenceDataModule(reviews / "model", few_reviews)
    clean.setup()
    assert data_report(clean)["warnings"] == []


def test_a_shared_pair_or_prompt_is_a_leak_but_a_closed_set_of_prompts_is_not(reviews, tmp_path):
    def warned(train, val) -> str:
        for name, pairs in (("train", train), ("val", val)):
            rows = [dict(prompt=f"review of a {p} plot", chosen=f" {c}", rejected=" weak") for p, c in pairs]
            (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        data = PreferenceDataModule(reviews / "model", tmp_path / "train.jsonl", tmp_path / "val.jsonl")
        data.setup()
        return " ".join(w for w in data_report(data)["warnings"] if "also in train" in w)

    train = [("witty", "witty"), ("dull", "witty")]
    assert warned(train, [("witty", "charming"), ("dull", "charming")]) == ""
    assert "1 of the 2 prompts of val" in warned(train, [("witty", "charming"), ("flat", "charming")])
    assert "1 pairs of val" in warned(train, [("witty", "charming"), ("dull", "witty")])


def test_the_weight_of_a_source_is_its_own(reviews, few_reviews):
    """Two entries of one path may differ in split, subset or weight."""
    data = PreferenceDataModule(reviews / "model", [{"path": few_reviews, "weight": w} for w in (2, 0.5)])
    data.setup()
    assert [source["weight"] for source in data_report(data)["sources"]] == [2, 0.5]


def test_three_pairs_are_decoded_with_their_trained_tokens_marked(data, rows):
    examples = data_report(data)["examples"]
    assert [e["where"][-2:] for e in examples] == [":1", ":2", ":3"]
    for example, row in zip(examples, rows, strict=False):
        assert example["prompt"] == row["prompt"]
        assert example["chosen"] == f"«{row['chosen'].strip()} </s>»"


def test_a_report_is_plain_json_and_its_lengths_are_drawn(data, tmp_path):
    report = data_report(data)
    assert json.loads(json.dumps(report)) == report
    plot_lengths(report, tmp_path / "lengths.png")
    assert (tmp_path / "lengths.png").read_bytes()[:4] == b"\x89PNG"


WATCHED = """
import sys
from pathlib import Path
from lightning_dpo import PreferenceDataModule
from lightning_dpo.data.report.facts import data_report
from lightning_dpo.demo import ASSETS

def own_memory():
    (line,) = [l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith("RssAnon")]
    return int(line.split()[1]) / 1024

def watched(rows, folder):
    path = folder / f"{rows}.jsonl"
    row = '{"prompt": "review of a %s :", "chosen": " witty plot . %s", "rejected": " dull cast"}'
    path.write_text("".join(row % (i, "charming " * (i % 9)) + chr(10) for i in range(rows)))
    data = PreferenceDataModule(ASSETS / "model", path, 0.02, batch_size=64, cache_dir=folder / "tokens")
    data.setup()
    assert data_report(data)["pairs"]["read"] == sum(map(len, data.train_dataloader())) + len(data.val_sets["val"])
    return own_memory()

first = watched(1000, Path(sys.argv[1]))
print(watched(int(sys.argv[2]), Path(sys.argv[1])) - first)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's own count")
def test_memory_does_not_grow_with_the_rows(tmp_path):
    """100,000 rows are read, reported and batched in less than 100 bytes of the process's own memory per row.

    A pair of Python lists of ids would take ten times that. Mapped files do not count.
    """
    run = subprocess.run(
        [sys.executable, "-c", WATCHED, tmp_path, "100000"], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert float(run.stdout.split()[-1]) < 10
