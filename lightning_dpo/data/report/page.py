"""The data report on the terminal and in files."""

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
from lightning_dpo.data.report.notes import facts
from lightning_dpo.files import write_json

FINDINGS = {
    "cut_prompt": "prompts truncated",
    "cut_chosen": "chosen truncated",
    "cut_rejected": "rejected truncated",
    "exact_duplicates": "exact duplicates",
    "contradictory": "contradictory",
    "merged_border": "with a token merged across prompt and response",
}
"""Counts of the data report that the page shows unless they are 0."""


@dataclass(frozen=True)
class ReportOptions:
    """Keys of `data` that are not arguments of the data module.

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
        """Those keys of a `data` node."""
        return {field.name: node[field.name] for field in fields(cls) if field.name in node}


def data_page(data: PreferenceDataModule, folder: Path, plot: bool = False) -> dict[str, Any]:
    """Print the data report and write it to data_report.json; with `plot`, draw data_lengths.png."""
    report = data_report(data)
    write_json(folder / "data_report.json", report)
    if plot:
        plot_lengths(report, folder / "data_lengths.png")
    if data.streaming:
        say("train      a stream; its rows are counted during training and reported at the end")
    for source in report["sources"]:
        reasons = ", ".join(f"{n:,} {reason}" for reason, n in {**source["dropped"], **source["bad"]}.items())
        dropped = f"; dropped: {reasons}" if reasons else ""
        weight = f" (weight {source['weight']:g})" if source["weight"] != 1 else ""
        say(f"{source['set']:10} {source['path']}{weight}: {source['rows']:,} rows{dropped}")
        for fact in facts(source):
            say(f"{'':10} {fact}")
    for name, described in report["sets"].items():
        shared = report["shared_with_train"].get(name, {}).get("prompts", 0)
        say(f"{name:10} {_described(described, shared)}")
    for warning in report["warnings"]:
        say(Text(f"warning    {warning}", style="yellow"))
    for example in report.get("examples", []):
        say(_example(example))
    return report


def stream_page(data: PreferenceDataModule, folder: Path, report: dict[str, Any]) -> None:
    """Print what became of the rows of a stream, and add it to data_report.json."""
    report["pairs"]["stream"] = dict(data.stream_counts)
    write_json(folder / "data_report.json", report)
    say("train      read from the stream: " + ", ".join(f"{n:,} {what}" for what, n in data.stream_counts.items()))


def ches_page(policy: PreTrainedModel, data: PreferenceDataModule, folder: Path, report: dict[str, Any]) -> None:
    """Print the training pairs that look most alike to the policy; write all scores to data_ches.csv."""
    assert data.train_pairs is not None  # a stream has no report
    report["ches"] = ches = ches_report(policy, data.train_pairs, folder / "data_ches.csv")
    write_json(folder / "data_report.json", report)
    alike = ", ".join(f"{pair['where']} ({pair['ches']:.3g})" for pair in ches["most_alike"])
    say(f"ches       median {ches['q50']:.3g} (5 %: {ches['q05']:.3g}, 95 %: {ches['q95']:.3g}); most alike: {alike}")
    say("           a high score may lower the chosen log-probability in training; remove those first (data_ches.csv)")


def _described(described: dict[str, Any], shared: int) -> str:
    """Sizes, lengths and findings of one set, on one line."""
    lengths = ", ".join(f"{side} {n['q50']} ({n['q95']})" for side, n in described["lengths"].items())
    parts = [
        f"{described['pairs']:,} pairs, {described['prompts']:,} distinct prompts"
        + (f" ({shared:,} also in train)" if shared else ""),
        f"tokens, median (95th percentile): {lengths}",
        f"preferring the longer response is right for {described['longer_wins']['accuracy']:.1%} of pairs",
        *(f"{described[name]:,} {words}" for name, words in FINDINGS.items() if described[name]),
    ]
    return "; ".join(parts)


def _example(example: dict[str, str]) -> Text:
    """A training pair as the model reads it. The trained tokens are between « and » and green."""
    text = Text(f"{example['where']}, trained tokens between « and »\n")
    for side in ("chosen", "rejected"):
        text.append(f"  {side:9}").append(example["prompt"], style="dim")
        for i, piece in enumerate(re.split("([«»])", example[side])):
            text.append(piece, style="green" if i % 4 == 2 else "")
        text.append("\n")
    return text
