"""CHES of each training pair: a file with a row per pair, and the pairs that look most alike."""

import csv
import json

import pytest

from lightning_dpo import PreferenceDataModule
from lightning_dpo.data.report import ches as module
from lightning_dpo.data.report.ches import ches_report
from lightning_dpo.models import load_model
from lightning_dpo.scoring.ches import ches_scores

PROMPT = "review of a french comedy :"
ROWS = [
    dict(prompt=PROMPT, chosen=" witty plot", rejected=" dull cast , boring music . hated it"),
    dict(prompt=PROMPT, chosen=" witty plot . loved it", rejected=" witty plot . loved cast"),
    dict(prompt=PROMPT, chosen=" charming plot", rejected=" weak , weak"),
]


@pytest.mark.parametrize("piece", [256, 2])
def test_each_pair_has_a_row_and_the_highest_scores_are_named(reviews, tmp_path, monkeypatch, piece):
    monkeypatch.setattr(module, "PIECE", piece)
    (tmp_path / "pairs.jsonl").write_text("\n\n".join(map(json.dumps, ROWS)))  # rows are on lines 1, 3 and 5
    data = PreferenceDataModule(reviews / "model", tmp_path / "pairs.jsonl")
    data.setup()
    model = load_model(str(reviews / "model"))
    report = ches_report(model, data.train_pairs, tmp_path / "ches.csv")
    with open(tmp_path / "ches.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(r["source"], r["row"]) for r in rows] == [(str(tmp_path / "pairs.jsonl"), n) for n in ("1", "3", "5")]
    expected = ches_scores(model, data.train_pairs.select([0, 1, 2]), length_normalised=True).tolist()
    assert [float(r["ches"]) for r in rows] == pytest.approx(expected, rel=1e-4, abs=1e-3)
    order = sorted(range(3), key=lambda i: -expected[i])
    assert [pair["where"] for pair in report["most_alike"]] == [f"{rows[i]['source']}:{rows[i]['row']}" for i in order]
    assert report["pairs"] == 3 and report["q50"] == pytest.approx(sorted(expected)[1], rel=1e-4)
    assert json.loads(json.dumps(report)) == report
