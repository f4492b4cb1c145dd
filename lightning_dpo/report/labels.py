"""Labels beside the points of a figure, so that the reader needs no legend."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes

Box = tuple[float, float, float, float]
"""Left, bottom, right and top in pixels."""

SPOTS = [
    (dx * far, dy * far, ha, va)
    for far in (1, 1.8)
    for dx, dy, ha, va in (
        (7, 5, "left", "bottom"), (7, -5, "left", "top"), (-7, 5, "right", "bottom"), (-7, -5, "right", "top"),
        (0, 9, "center", "bottom"), (0, -9, "center", "top"), (10, 0, "left", "center"), (-10, 0, "right", "center"),
    )
]  # fmt: skip
"""Where a label may stand: offset from its point in typographic points, and alignment."""


def place(ax: Axes, texts: list[dict[str, Any]]) -> None:
    """Put each text beside its point, where it overlaps least with points and other texts."""
    scale = ax.figure.dpi / 72
    frame, taken = ax.get_window_extent().extents, [(x - 5, y - 5, x + 5, y + 5) for x, y in _drawn(ax)]
    for text in sorted((t for t in texts if t["text"]), key=lambda t: -len(t["text"])):
        x, y = ax.transData.transform(text["at"])
        w, h = 6.0 * len(text["text"]) * scale, 11 * scale
        candidates = []
        for dx, dy, ha, va in SPOTS:
            left = x + dx * scale - {"left": 0, "center": w / 2, "right": w}[ha]
            low = y + dy * scale - {"bottom": 0, "center": h / 2, "top": h}[va]
            box = (left, low, left + w, low + h)
            outside = _overlap(box, box) - _overlap(box, frame)
            cost = sum(_overlap(box, other) for other in taken) + 20 * outside
            candidates.append((cost, (dx, dy, ha, va), box))
        _, (dx, dy, ha, va), box = min(candidates, key=lambda candidate: candidate[0])
        ax.annotate(
            text["text"], text["at"], (dx, dy), textcoords="offset points", ha=ha, va=va,
            color=text["color"], fontweight=text.get("weight", "normal"), zorder=5, annotation_clip=False,
        )  # fmt: skip
        taken.append(box)


def _drawn(ax: Axes) -> list[tuple[float, float]]:
    """Points along all lines in pixels, the ends of error bars included."""
    found = []
    for line in ax.get_lines():
        pixels = line.get_transform().transform(line.get_xydata())
        for (x0, y0), (x1, y1) in zip(pixels, [*pixels[1:], pixels[-1]], strict=True):
            found += [(x0 + (x1 - x0) * i / 12, y0 + (y1 - y0) * i / 12) for i in range(12)]
    return found


def _overlap(a: Box, b: Sequence[float]) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
