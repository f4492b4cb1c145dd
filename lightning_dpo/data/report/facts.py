"""One page about the data: what was read, trained, cut and dropped, and what somebody should look at."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from lightning_dpo.data.report.advice import warnings
from lightning_dpo.data.sets import PairSet
from lightning_dpo.data.tokenize import FLAGS

if TYPE_CHECKING:
    from lightning_dpo.data.module import PreferenceDataModule

SIDES = ("prompt", "chosen", "rejected")
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
BINS = 50


def data_report(data: PreferenceDataModule) -> dict[str, Any]:
    """Everything about the data that a run knows before training, as plain JSON values.

    `rows` are records of the sources; a ranked list is one row and gives several pairs. The pairs read are those
    trained, held out and dropped. Lengths are tokens, after cutting. Memory grows by some 8-byte numbers a pair.
    """
    sets = data.sets()
    sources = _sources(data)
    report: dict[str, Any] = {
        "pairs": {
            "read": sum(s["pairs"] + sum(s["dropped"].values()) + sum(s["bad"].values()) for s in sources),
            **{name: len(pairs) for name, pairs in sets.items()},
            "dropped": sum(sum(s["dropped"].values()) + sum(s["bad"].values()) for s in sources),
        },
        "sources": sources,
        "sets": {name: describe(pairs) for name, pairs in sets.items()},
        "shared_with_train": {},
    }
    if data.train_pairs is not None:
        shared = {name: overlap(data.train_pairs, pairs) for name, pairs in data.val_sets.items()}
        report["shared_with_train"] = shared
        report["examples"] = [marked(data.tokenizer, data.train_pairs, i) for i in range(min(3, len(data.train_pairs)))]
    report["warnings"] = warnings(report)
    return report


def _sources(data: PreferenceDataModule) -> list[dict[str, Any]]:
    seen, rows = set(), []
    for name, pairs in data.sets().items():
        for part in pairs.parts:
            if id(part) in seen:
                continue
            seen.add(id(part))
            rows.append(
                {
                    "path": part.source.path,
                    "set": name,
                    "weight": part.source.weight,
                    "rows": part.manifest["records"],
                    "pairs": len(part),
                    "dropped": part.manifest["dropped"],
                    "bad": part.manifest["bad_kinds"],
                    "bad_rows": [f"{part.source.where(b.number)}: {b.field} {b.message}" for b in part.bad],
                    "tokens_cut": part.manifest["tokens_cut"],
                }
            )
    return rows


def describe(pairs: PairSet) -> dict[str, Any]:
    """Counts, lengths and duplicates of one set."""
    per_prompt = np.unique(_hashes(pairs, _prompt), return_counts=True)[1]
    ordered, unordered = (len(np.unique(_hashes(pairs, kind))) for kind in (_pair, _pair_either_way))
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


def _prompt(p, c, r):
    return p


def _pair(p, c, r):
    return _mix(_mix(p) + c) + r


def _pair_either_way(p, c, r):
    return _mix(_mix(p) + np.minimum(c, r)) + np.maximum(c, r)


def _hashes(pairs: PairSet, kind: Callable[..., np.ndarray]) -> np.ndarray:
    """A hash of each pair, made of those of its prompt, chosen and rejected: 8 bytes each."""
    columns = zip(*(pairs.columns(f"{side}_hash") for side in SIDES), strict=True)
    return np.concatenate([np.empty(0, np.uint64), *(kind(*hashes) for hashes in columns)])


def overlap(train: PairSet, other: PairSet) -> dict[str, int]:
    """Distinct prompts, and distinct pairs in either order, that stand in both sets."""
    kinds = {"prompts": _prompt, "pairs": _pair_either_way}
    return {name: len(np.intersect1d(_hashes(train, kind), _hashes(other, kind))) for name, kind in kinds.items()}


def _lengths(pieces: Iterable[np.ndarray]) -> dict[str, Any]:
    counts = np.zeros(1, np.int64)
    for piece in pieces:
        added = np.bincount(piece)
        small, large = sorted((counts, added), key=len)
        large[: len(small)] += small
        counts = large
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
    """How often the chosen response is the longer one; the accuracy of "the longer one wins" takes a tie as 1/2."""
    longer = equal = 0
    for chosen, rejected in zip(pairs.columns("chosen_lengths"), pairs.columns("rejected_lengths"), strict=True):
        longer += int((chosen > rejected).sum())
        equal += int((chosen == rejected).sum())
    total = max(1, len(pairs))
    return {"longer": longer / total, "equal": equal / total, "accuracy": (longer + equal / 2) / total}


def marked(tokenizer: PreTrainedTokenizerBase, pairs: PairSet, position: int, limit: int = 300) -> dict[str, str]:
    """One training pair decoded, trained tokens between « and »; long parts lose their middle."""
    batch, decode = pairs.select([position]), tokenizer.decode
    shown = {
        "where": pairs.where(position),
        "prompt": _short(str(decode(batch.prompt.row(0).tolist())), limit),
    }
    for side, mask in zip(("chosen", "rejected"), batch.trained or (None, None), strict=True):
        ids = getattr(batch, side).row(0).tolist()
        trained = [True] * len(ids) if mask is None else mask.row(0).bool().tolist()
        shown[side] = "".join(
            f"«{_short(str(decode(part)), limit)}»" if on else _short(str(decode(part)), limit)
            for on, part in _grouped(ids, trained)
        )
    return shown


def _grouped(ids: list[int], trained: list[bool]) -> Iterator[tuple[bool, list[int]]]:
    start = 0
    for i in range(1, len(ids) + 1):
        if i == len(ids) or trained[i] != trained[start]:
            yield trained[start], ids[start:i]
            start = i


def _short(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit // 2]} […] {text[-limit // 2 :]}"


def plot_lengths(report: dict[str, Any], path: Path) -> None:
    """Histograms of the lengths of each set, as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 2.6 * len(report["sets"])), layout="constrained")
    axes = figure.subplots(len(report["sets"]), 3, squeeze=False)
    for row, (name, described) in zip(axes, report["sets"].items(), strict=True):
        for axis, side in zip(row, SIDES, strict=True):
            histogram = described["lengths"][side]["histogram"]
            axis.stairs(
                histogram["pairs"],
                histogram["edges"],
                fill=True,
                color={"chosen": "#2a7", "rejected": "#c54"}.get(side, "#678"),
            )
            axis.set_title(f"{name}: {side} (median {described['lengths'][side]['q50']})", fontsize=10)
            axis.set_xlabel("tokens")
    for row in axes:
        row[0].set_ylabel("pairs")
    figure.savefig(path, dpi=120)
