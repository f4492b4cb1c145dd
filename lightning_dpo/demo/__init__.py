"""The bundled task: film reviews from a grammar, an oracle reward, a tiny model and its preference pairs."""

from pathlib import Path

ASSETS = Path(__file__).parent / "assets"
