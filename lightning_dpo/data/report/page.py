"""The data report on a terminal and in files."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from rich.text import Text
from transformers import PreTrainedModel

from lightning_dpo.console import say
from lightning_dpo.data.module import PreferenceDataModule
from lightning_dpo.data.report.ches import ches_report
from lightning_dpo.data.report.facts import data_report, plot_lengths
from lightning_dpo.files import write_json

ODDITIES = {
    "cut_prompt": "prompts cut",
    "cut_chosen": "chosen cut",
    "cut_rejected": "rejected cut",
    "exact_duplicates": "exact duplicates",
    "contradictory": "contradictory",
    "merged_border": "tokens merged over the border",
}
"""Counts of the data report that its page names where they are not 0."""


@dataclass(frozen=True)
class ReportOptions:
    """Keys of `data` that the command reads itself.

    Args:
        report: stop after the data report.
        report_plot: draw the lengths.
        report_ches: score each training pair by CHES, which needs the policy.
    """

    report: bool = False
    report_plot: bool = False
    report_ches: bool = False

    @classmethod
    def keys(cls, node: Mapping[str, Any]) -> dict[str, Any]:
        """Those of a `data` node."""
        return {field.name: node[field.name] for field in fields(cls) if field.name in node}


def data_page(data: PreferenceDataModule, folder: Path, plot: bool = False) -> dict[str, Any]:
    """Print the data report and write it to data_report.json, with `plot` its picture too."""
    report = data_report(data)
    write_json(folder / "data_report.json", report)
    if plot:
        plot_lengths(report, folder / "data_lengths.png")
    if data.streaming:
        say("train      a stream: its rows are counted as they are read, and reported at the end")
    for source in report["sources"]:
        lost = {**source["dropped"], **source["bad"]}
        dropped = ", dropped " + ", ".join(f"{n:,} {reason}" for reason, n in lost.items()) if lost else ""
        weight = f" x {source['weight']:g}" if source["weight"] != 1 else ""
        say(f"{source['set']:10} {source['path']}{weight}: {source['rows']:,} rows{dropped}")
    for name, described in report["sets"].items():
        shared = report["shared_with_train"].get(name, {}).get("prompts", 0)
        say(f"{name:10} {_described(described, shared)}")
    for warning in report["warnings"]:
        say(Text(f"warning    {warning}", style="yellow"))
    for example in report.get("examples", []):
        say(_example(example))
    return report


def stream_page(data: PreferenceDataModule, folder: Path, report: dict[str, Any]) -> None:
    """Say what became of the rows of a stream, and add it to data_report.json."""
    report["pairs"]["stream"] = dict(data.stream_counts)
    write_json(folder / "data_report.json", report)
    say("train      read from the stream: " + ", ".join(f"{n:,} {what}" for what, n in data.stream_counts.items()))


def ches_page(policy: PreTrainedModel, data: PreferenceDataModule, folder: Path, report: dict[str, Any]) -> None:
    """Say which training pairs look most alike to the policy; the scores of all go to data_ches.csv."""
    assert data.train_pairs is not None  # a stream has no report
    report["ches"] = ches = ches_report(policy, data.train_pairs, folder / "data_ches.csv")
    write_json(folder / "data_report.json", report)
    alike = ", ".join(f"{pair['where']} ({pair['ches']:.3g})" for pair in ches["most_alike"])
    say(f"ches       median {ches['q50']:.3g} (5 %: {ches['q05']:.3g}, 95 %: {ches['q95']:.3g}); most alike: {alike}")
    say(
        "           training on the highest may push their chosen responses down: leave those out first (data_ches.csv)"
    )


def _described(described: dict[str, Any], shared: int) -> str:
    lengths = (f"{side} {n['q50']} (95 %: {n['q95']})" for side, n in described["lengths"].items())
    longer = described["longer_wins"]["accuracy"]
    seen = ", ".join(f"{described[name]:,} {words}" for name, words in ODDITIES.items() if described[name])
    in_train = f" ({shared:,} also in train)" if shared else ""
    return (
        f"{described['pairs']:,} pairs, {described['prompts']:,} prompts{in_train}; "
        f"median tokens: {', '.join(lengths)}; "
        f'"the longer one wins": {longer:.1%}{seen and "; " + seen}'
    )


def _example(example: dict[str, str]) -> Text:
    """A training pair as the model sees it; the trained tokens stand between « and » and are green."""
    text = Text(f"{example['where']}, trained tokens between « and »\n")
    for side in ("chosen", "rejected"):
        text.append(f"  {side:9}").append(example["prompt"], style="dim")
        for i, piece in enumerate(re.split("([«»])", example[side])):
            text.append(piece, style="green" if i % 4 == 2 else "")
        text.append("\n")
    return text
