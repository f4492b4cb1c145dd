"""CHES of each training pair, on request: which pairs to remove if chosen log-probabilities fall."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track
from transformers import PreTrainedModel

from lightning_dpo.data.sets import PairSet
from lightning_dpo.scoring.ches import ches_scores

QUANTILES = (0.05, 0.5, 0.95)
SHOWN = 3
PIECE = 256


def ches_report(model: PreTrainedModel, pairs: PairSet, path: Path) -> dict[str, Any]:
    """Score every pair, write the scores to the CSV file `path` (source, row, ches), and return a summary.

    The score is length-normalised, as in the paper's data filtering. A high one (near 0, or above) marks two responses
    that look alike to the model. The file keeps the order of the sources; `row` is a line or row number there.
    """
    scores = np.empty(len(pairs), np.float32)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("source", "row", "ches"))
        for start in track(range(0, len(pairs), PIECE), "CHES", transient=True):
            piece = range(start, min(start + PIECE, len(pairs)))
            found = ches_scores(model, pairs.select(piece), length_normalised=True).numpy()
            scores[piece.start : piece.stop] = found
            for position, score in zip(piece, found, strict=True):
                stored, row = pairs.locate(position)
                file, number = stored.source.locate(int(stored.column("number")[row]))
                writer.writerow((file, number, f"{score:.6g}"))
    highest = np.argsort(-scores, kind="stable")[:SHOWN]
    return {
        "pairs": len(pairs),
        **{f"q{int(q * 100):02}": float(np.quantile(scores, q)) for q in QUANTILES},
        "most_alike": [{"where": pairs.where(int(i)), "ches": float(scores[i])} for i in highest],
    }
