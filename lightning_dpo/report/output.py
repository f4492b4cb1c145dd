"""Figures as files, and as parts of a page with its own colours and font."""

import re
from html import escape
from io import BytesIO, StringIO

import matplotlib as mpl
from matplotlib.figure import Figure

from lightning_dpo.report.plots import FAINT, GRID, INK, LINES, STYLE

COLOURS = {INK: "var(--ink)", FAINT: "var(--faint)", GRID: "var(--grid)", "#ffffff": "var(--paper)"} | {
    colour: f"var(--line{i})" for i, colour in enumerate(LINES)
}


def svg(figure: Figure, name: str) -> str:
    """A figure as SVG with a white background; the same figure gives the same text."""
    with mpl.rc_context(STYLE | {"svg.hashsalt": name}):  # type: ignore[arg-type]
        text = StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return text.getvalue()


def png(figure: Figure) -> bytes:
    with mpl.rc_context(STYLE):
        data = BytesIO()
        figure.savefig(data, format="png", dpi=140)
    return data.getvalue()


def inline(svg_text: str, name: str, title: str) -> str:
    """SVG for a page, with the page's colours and font.

    Args:
        name: prefix of the ids, unique in the page.
        title: description for screen readers.
    """
    body = svg_text[svg_text.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>", "", body, flags=re.S)
    body = re.sub(r'(\bid="|url\(#|xlink:href="#)', rf"\1{name}-", body)
    body = re.sub(r"#[0-9a-f]{6}\b", lambda m: COLOURS.get(m.group(), m.group()), body)
    body = re.sub(r'(<g id="[^"]*patch_1">\s*<path[^>]*style=")fill: [^;"]*', r"\1fill: none", body, count=1)
    box = re.search(r'viewBox="[^"]*"', body)
    assert box is not None
    namespaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    tag = f'<svg class="plot {name}" {box.group()} role="img" aria-label="{escape(title)}" {namespaces}>'
    return tag + body[body.index(">") + 1 :]
