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
    results = [name for name in rows[0] if name not in ("run", "state", *keys)]
    # A few keys that differ identify the runs. Otherwise show the runs' names instead.
    if len(runs) == 1 or len({tuple(row[key] for key in keys) for row in rows}) < len(runs) or len(keys) > 4:
        keys = ["run"]
        rows = [{**row, "run": name} for row, name in zip(rows, _short([run.name for run in runs]), strict=True)]
    title = "held out, at the end of each run; margin, chosen, rejected: nats since its start"
    columns = [Column(name, overflow="fold") for name in (*keys, *results)]
    printed = Table(*columns, title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False)
    for row in rows:
        labels = ("" if row[key] is None else str(row[key]) for key in keys)
        printed.add_row(*labels, *("" if row[name] is None else f"{round(row[name], 3):.3g}" for name in results))
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = max(console.width, 120)  # files and pipes have no width
    console.print(printed)


def _short(names: list[str]) -> list[str]:
    """Folder names without the parts that all of them share.

    >>> _short(["0-loggercsv-lossdpo", "1-loggercsv-lossipo"])
    ['0-lossdpo', '1-lossipo']
    """
    parts = [name.split("-") for name in names]
    return ["-".join(p for p in own if len(names) == 1 or not all(p in other for other in parts)) for own in parts]
