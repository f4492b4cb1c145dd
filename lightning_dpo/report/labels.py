"""Names beside the points of a figure, so that no legend has to be searched."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes

Box = tuple[float, float, float, float]

SPOTS = [
    (dx * far, dy * far, ha, va)
    for far in (1, 1.8)
    for dx, dy, ha, va in (
        (7, 5, "left", "bottom"), (7, -5, "left", "top"), (-7, 5, "right", "bottom"), (-7, -5, "right", "top"),
        (0, 9, "center", "bottom"), (0, -9, "center", "top"), (10, 0, "left", "center"), (-10, 0, "right", "center"),
    )
]  # fmt: skip


def place(ax: Axes, texts: list[dict[str, Any]]) -> None:
    """Each text beside its point, where it covers the least of the others and of the points."""
    scale = ax.figure.dpi / 72
    frame, taken = ax.get_window_extent(), [(x - 5, y - 5, x + 5, y + 5) for x, y in _drawn(ax)]
    for text in sorted((t for t in texts if t["text"]), key=lambda t: -len(t["text"])):
        x, y = ax.transData.transform(text["at"])
        w, h = 6.0 * len(text["text"]) * scale, 11 * scale

        def cost(spot: tuple[float, float, str, str], x=x, y=y, w=w, h=h) -> float:
            dx, dy, ha, va = spot
            left = x + dx * scale - {"left": 0, "center": w / 2, "right": w}[ha]
            low = y + dy * scale - {"bottom": 0, "center": h / 2, "top": h}[va]
            box = (left, low, left + w, low + h)
            outside = _outside(box, frame.extents)
            return sum(_overlap(box, other) for other in taken) + 20 * outside

        spot = min(SPOTS, key=cost)
        dx, dy, ha, va = spot
        ax.annotate(
            text["text"], text["at"], (dx, dy), textcoords="offset points", ha=ha, va=va,
            color=text["color"], fontweight=text.get("weight", "normal"), zorder=5, annotation_clip=False,
        )  # fmt: skip
        left = x + dx * scale - {"left": 0, "center": w / 2, "right": w}[ha]
        low = y + dy * scale - {"bottom": 0, "center": h / 2, "top": h}[va]
        taken.append((left, low, left + w, low + h))


def _drawn(ax: Axes) -> list[tuple[float, float]]:
    """Points along all lines, in pixels, error bars' ends included."""
    found = []
    for line in ax.get_lines():
        pixels = line.get_transform().transform(line.get_xydata())
        for (x0, y0), (x1, y1) in zip(pixels, [*pixels[1:], pixels[-1]], strict=True):
            found += [(x0 + (x1 - x0) * i / 12, y0 + (y1 - y0) * i / 12) for i in range(12)]
    return found


def _overlap(a: Box, b: Sequence[float]) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _outside(box: Box, frame: Sequence[float]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1]) - _overlap(box, frame)
