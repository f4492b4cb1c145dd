"""The facts about the data: rows read, trained, truncated and dropped; lengths, duplicates and examples."""

from collections.abc import Callable, Iterable
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from lightning_dpo.data.columns import SIDES
from lightning_dpo.data.module import PreferenceDataModule
from lightning_dpo.data.report.advice import warnings
from lightning_dpo.data.report.notes import ignored
from lightning_dpo.data.sets import PairSet
from lightning_dpo.data.store import TokenisedSource
from lightning_dpo.data.tokenize import FLAGS

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
BINS = 50
COLORS = {"prompt": "#678", "chosen": "#2a7", "rejected": "#c54"}


def data_report(data: PreferenceDataModule) -> dict[str, Any]:
    """Everything about the data that is known before training, as plain JSON values.

    `rows` are records; a ranked list is one row that gives several pairs. The pairs read are those trained, held out
    and dropped. Lengths are in tokens, after truncation. Memory grows by a few 8-byte numbers per pair.
    """
    sets = data.sets()
    sources = [_source(name, part) for name, part in data.tokenised_sources()]
    dropped = sum(sum(s["dropped"].values()) + sum(s["bad"].values()) for s in sources)
    report: dict[str, Any] = {
        "pairs": {
            "read": sum(s["pairs"] for s in sources) + dropped,
            **{name: len(pairs) for name, pairs in sets.items()},
            "dropped": dropped,
        },
        "sources": sources,
        "sets": {name: describe(pairs) for name, pairs in sets.items()},
        "shared_with_train": {},
        "chat_template": bool(data.tokenizer.chat_template),
    }
    if data.train_pairs is not None:
        report["shared_with_train"] = {name: overlap(data.train_pairs, val) for name, val in data.val_sets.items()}
        report["examples"] = [marked(data.tokenizer, data.train_pairs, i) for i in range(min(3, len(data.train_pairs)))]
    report["warnings"] = warnings(report)
    return report


def _source(name: str, part: TokenisedSource) -> dict[str, Any]:
    notes = part.manifest["notes"]
    return {
        "path": part.source.path,
        "set": name,
        "weight": part.source.weight,
        "rows": part.manifest["records"],
        "pairs": len(part),
        "dropped": part.manifest["dropped"],
        "bad": part.manifest["bad_kinds"],
        "bad_rows": [f"{part.source.where(b.number)}: {b.field} {b.message}" for b in part.bad],
        "tokens_cut": part.manifest["tokens_cut"],
        "ignored": ignored(notes),
        "notes": [list(note) for note in notes],
    }


def describe(pairs: PairSet) -> dict[str, Any]:
    """Counts, lengths and duplicates of one set."""
    per_prompt = np.unique(_hashes(pairs, "prompt"), return_counts=True)[1]
    ordered, unordered = (len(np.unique(_hashes(pairs, kind))) for kind in ("pair", "unordered pair"))
    flags = np.zeros(len(FLAGS), np.int64)
    for piece in pairs.columns("flags"):
        flags += [int((piece >> bit & 1).sum()) for bit in range(len(FLAGS))]
    return {
        "pairs": len(pairs),
        "prompts": len(per_prompt),
        "pairs_per_prompt_max": int(per_prompt.max(initial=0)),
        "exact_duplicates": len(pairs) - ordered,
        "contradictory": ordered - unordered,
        "lengths": {side: _lengths(pairs.columns(f"{side}_lengths")) for side in SIDES},
        "longer_wins": _longer_wins(pairs),
        **{name: int(n) for name, n in zip(FLAGS, flags, strict=True)},
    }


def _mix(values: np.ndarray) -> np.ndarray:
    values = (values ^ (values >> np.uint64(31))) * np.uint64(0x9E3779B97F4A7C15)
    return values ^ (values >> np.uint64(29))


HASHES: dict[str, Callable[..., np.ndarray]] = {
    "prompt": lambda p, c, r: p,
    "pair": lambda p, c, r: _mix(_mix(p) + c) + r,
    "unordered pair": lambda p, c, r: _mix(_mix(p) + np.minimum(c, r)) + np.maximum(c, r),
}
"""Hashes of a pair, computed from those of its prompt, chosen and rejected."""


def _hashes(pairs: PairSet, kind: str) -> np.ndarray:
    """A hash of each pair, 8 bytes each."""
    columns = zip(*(pairs.columns(f"{side}_hash") for side in SIDES), strict=True)
    return np.concatenate([np.empty(0, np.uint64), *(HASHES[kind](*hashes) for hashes in columns)])


def overlap(train: PairSet, other: PairSet) -> dict[str, int]:
    """Numbers of distinct prompts, and of distinct pairs in either order, that are in both sets."""
    kinds = {"prompts": "prompt", "pairs": "unordered pair"}
    return {name: len(np.intersect1d(_hashes(train, kind), _hashes(other, kind))) for name, kind in kinds.items()}


def _lengths(pieces: Iterable[np.ndarray]) -> dict[str, Any]:
    counts = np.zeros(1, np.int64)
    for piece in pieces:
        added = np.bincount(piece, minlength=len(counts))
        added[: len(counts)] += counts
        counts = added
    total = counts.cumsum()
    tokens = np.arange(len(counts))
    edges = np.linspace(0, len(counts), min(BINS, len(counts)) + 1)
    return {
        "mean": round(float((counts * tokens).sum() / max(1, total[-1])), 2),
        **{f"q{int(q * 100):02}": int(np.searchsorted(total, q * total[-1])) for q in QUANTILES},
        "max": len(counts) - 1,
        "tokens": int((counts * tokens).sum()),
        "histogram": {
            "edges": [round(float(e), 2) for e in edges],
            "pairs": np.histogram(tokens, edges, weights=counts)[0].astype(int).tolist(),
        },
    }


def _longer_wins(pairs: PairSet) -> dict[str, float]:
    """How often the chosen response is the longer one. `accuracy` is that of preferring it, where a tie counts 1/2."""
    longer = equal = 0
    for chosen, rejected in zip(pairs.columns("chosen_lengths"), pairs.columns("rejected_lengths"), strict=True):
        longer += int((chosen > rejected).sum())
        equal += int((chosen == rejected).sum())
    total = max(1, len(pairs))
    return {"longer": longer / total, "equal": equal / total, "accuracy": (longer + equal / 2) / total}


def marked(tokenizer: PreTrainedTokenizerBase, pairs: PairSet, position: int, limit: int = 300) -> dict[str, str]:
    """One training pair decoded, with trained tokens between « and ». Long parts lose their middle."""
    batch = pairs.select([position])

    def text(ids: list[int]) -> str:
        decoded = str(tokenizer.decode(ids))
        return decoded if len(decoded) <= limit else f"{decoded[: limit // 2]} […] {decoded[-limit // 2 :]}"

    shown = {"where": pairs.where(position), "prompt": text(batch.prompt.row(0).tolist())}
    for side, mask in zip(("chosen", "rejected"), batch.trained or (None, None), strict=True):
        ids = getattr(batch, side).row(0).tolist()
        trained = [True] * len(ids) if mask is None else mask.row(0).bool().tolist()
        shown[side] = ""
        for is_trained, group in groupby(zip(ids, trained, strict=True), key=lambda token: token[1]):
            part = text([token for token, _ in group])
            shown[side] += f"«{part}»" if is_trained else part
    return shown


def plot_lengths(report: dict[str, Any], path: Path) -> None:
    """Draw histograms of each set's lengths as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 2.6 * len(report["sets"])), layout="constrained")
    axes = figure.subplots(len(report["sets"]), 3, squeeze=False)
    for row, (name, described) in zip(axes, report["sets"].items(), strict=True):
        for axis, side in zip(row, SIDES, strict=True):
            histogram = described["lengths"][side]["histogram"]
            axis.stairs(histogram["pairs"], histogram["edges"], fill=True, color=COLORS[side])
            axis.set_title(f"{name}: {side} (median {described['lengths'][side]['q50']})", fontsize=10)
            axis.set_xlabel("tokens")
    for row in axes:
        row[0].set_ylabel("pairs")
    figure.savefig(path, dpi=120)
