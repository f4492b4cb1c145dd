"""The README's table of losses, made from the functions' docstrings and the comments of conf/loss.

`python -m lightning_dpo.losses.table conf/loss` prints it.
"""

import inspect
import re
import sys
from pathlib import Path

from lightning_dpo import losses

HEAD = "| loss | equation, per pair | beta is | reference | paper |\n|---|---|---|---|---|\n"
REFERENCE = {"": "yes", "none": "no", "copy": "live"}


def table(folder: Path) -> str:
    """A row for each YAML of the folder, by name."""
    return HEAD + "".join(f"| {' | '.join(_row(path))} |\n" for path in sorted(folder.glob("*.yaml")))


def _row(path: Path) -> tuple[str, ...]:
    text = path.read_text(encoding="utf-8")
    function = getattr(losses, _found(r"^  _target_: lightning_dpo\.losses\.(\w+)$", text))
    beta = re.split(r"[;.](?:\s|$)", _found(r"^# beta: (.+(?:\n# .+)*)", text).replace("\n#", ""))[0]
    papers = [f"[{n}](https://arxiv.org/abs/{n})" for n in re.findall(r"arXiv (\d+\.\d+)", text)]
    reference = REFERENCE[_found(r"override /reference: (\w+)", text)]
    return f"`{path.stem}`", equation(function), beta or "-", reference, ", ".join(papers) or "-"


def equation(function: object) -> str:
    """The first indented block of a docstring, without its `L = `, on one line and with escaped bars."""
    block = _found(r"^((?: {4}.+\n)+)", (inspect.getdoc(function) or "") + "\n")
    return re.sub(r"\s+", " ", block).removeprefix("L = ").replace("|", r"\|")


def _found(pattern: str, text: str) -> str:
    match = re.search(pattern, text, flags=re.MULTILINE)
    return match[1].strip() if match else ""


if __name__ == "__main__":
    print(table(Path(sys.argv[1])), end="")
