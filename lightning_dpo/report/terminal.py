"""The table of finished runs on a terminal."""

from pathlib import Path

from lightning_dpo.report.rows import differing, read, table

LEFT_OUT = ("run", "state")


def show(folder: Path) -> None:
    """Print a line per finished run of a folder; nothing where there is none."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Column, Table

    runs = [run for run in read(folder) if run.done]
    if not runs:
        return
    # What differs is in the names already.
    rows = [{k: v for k, v in row.items() if k not in (*LEFT_OUT, *differing(runs))} for row in table(runs)]
    title = "held out, at the end of each run; margin, chosen, rejected: nats since its start"
    printed = Table(Column("run", overflow="fold"), *rows[0], title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for row, name in zip(rows, _short([run.name for run in runs]), strict=True):
        printed.add_row(name, *("" if v is None else f"{v:.3g}" for v in row.values()))
    Console(highlight=False, markup=False).print(printed)


def _short(names: list[str]) -> list[str]:
    """Folder names without the overrides that all jobs of a sweep share.

    >>> _short(["0-loggercsv-lossdpo", "1-loggercsv-lossipo"])
    ['0-lossdpo', '1-lossipo']
    """
    parts = [name.split("-") for name in names]
    return ["-".join(p for p in own if len(names) == 1 or not all(p in other for other in parts)) for own in parts]
