"""The notebooks run, and their committed outputs cover the current losses."""

import os

import nbformat
import pytest
from nbclient import NotebookClient

from tests.conftest import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LOSSES = {path.stem for path in (ROOT / "conf" / "loss").glob("*.yaml")}


def output(notebook) -> str:
    """The text of all outputs, tables and notes included."""
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", [])]
    parts = [[o.get("text", ""), *o.get("data", {}).values()] for o in outputs]
    return "\n".join(str(text) for texts in parts for text in texts)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_it_is_small_and_committed_with_its_outputs(path):
    assert path.stat().st_size < 400_000
    notebook = nbformat.read(path, as_version=4)
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code")


def executed(path, monkeypatch):
    """The notebook, executed in a new kernel without its outputs."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        cell.pop("outputs", None) if cell.cell_type == "markdown" else cell.update(outputs=[])
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(path.parent)}}).execute()
    return notebook


EXPECTED = {
    "quickstart": ["loss 0.6931, by hand 0.6931", "summary.json", "kl", "before", "after"],
    "beta_sweep": ["2/2", "dpo", "3.0", "reward", "ess"],
}


@pytest.mark.parametrize("name", EXPECTED)
def test_the_run_and_the_sweep_print_their_results(name, monkeypatch):
    monkeypatch.setenv("LIGHTNING_DPO_FAST", "1")
    notebook = executed(ROOT / "notebooks" / f"{name}.ipynb", monkeypatch)
    text = output(notebook)
    assert all(words in text for words in EXPECTED[name])
    pictures = [o for cell in notebook.cells for o in cell.get("outputs", []) if "image/png" in o.get("data", {})]
    assert pictures


def test_the_losses_notebook_draws_every_loss_or_says_why_not(monkeypatch):
    path = ROOT / "notebooks" / "losses.ipynb"
    committed, notebook = nbformat.read(path, as_version=4), executed(path, monkeypatch)
    words = set(output(notebook).replace("`", " ").replace(",", " ").split())
    assert not LOSSES - words and "0.6931" in words
    again = "type nbclient's `jupyter execute --inplace notebooks/losses.ipynb`, and commit it"
    assert words & LOSSES == set(output(committed).replace("`", " ").replace(",", " ").split()) & LOSSES, again
