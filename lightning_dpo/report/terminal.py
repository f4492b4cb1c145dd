"""The table of finished runs in the terminal."""

from pathlib import Path

from lightning_dpo.report.rows import differing, read, table


def show(folder: Path) -> None:
    """Print a line per finished run of a folder, if there are any."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Column, Table

    runs = [run for run in read(folder) if run.done]
    if not runs:
        return
    rows, keys = table(runs), differing(runs)
    texts = [{k: v if k in keys else _number(v) for k, v in row.items() if k not in ("run", "state")} for row in rows]
    # A few keys that differ identify the runs; otherwise their names stand in place of the keys.
    identified = len(runs) > 1 and len({tuple(row[key] for key in keys) for row in rows}) == len(runs) and len(keys) < 5
    if not identified:
        texts = [{k: v for k, v in row.items() if k not in keys} for row in texts]
        texts = [{"run": name, **row} for name, row in zip(_short([r.name for r in runs]), texts, strict=True)]
    title = "held out, at the end of each run; margin, chosen, rejected: nats since its start"
    columns = [Column(name, overflow="fold") for name in texts[0]]
    printed = Table(*columns, title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False)
    for row in texts:
        printed.add_row(*("" if v is None else str(v) for v in row.values()))
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = max(console.width, 120)  # files and pipes have no width
    console.print(printed)


def _number(value: float | None) -> str:
    return "" if value is None else f"{round(value, 3):.3g}"


def _short(names: list[str]) -> list[str]:
    """Folder names without the parts that all of them share.

    >>> _short(["0-loggercsv-lossdpo", "1-loggercsv-lossipo"])
    ['0-lossdpo', '1-lossipo']
    """
    parts = [name.split("-") for name in names]
    return ["-".join(p for p in own if len(names) == 1 or not all(p in other for other in parts)) for own in parts]
