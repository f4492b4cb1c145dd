"""Rooms import downward, nothing imports in a circle, and the package itself loads nothing heavy."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter

import pytest

from tests.conftest import ROOT

PACKAGE = ROOT / "lightning_dpo"
FILES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
    if path != PACKAGE / "__init__.py"
}
LAYERS = [
    {"train", "dashboard", "__main__"},
    {"sweep"},
    {"config"},
    {"callbacks", "report"},
    {"run", "demo"},
    {"samples"},
    {"module"},
    {"data", "reference", "benchmark", "ledger"},
    {"scoring", "metrics", "nonfinite"},
    {"losses", "models"},
    {"batch", "loggers", "safety", "optim"},
    {"ragged", "cache"},
    {"files", "console", "errors", "signatures"},
]
"""From the top. A room, which is a folder or a file of the package, imports from lower layers and from itself; `errors`
may be imported by its neighbours, and the folder of the bundled files by everybody."""
FREE = {"errors", "demo"}
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}


def imports(path) -> set[str]:
    """Modules that a file imports, wherever in it; `from a import b` is a.b where that is a module of this package."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            full = {f"{node.module}.{alias.name}" for alias in node.names}
            within = {name for name in full if name.removeprefix("lightning_dpo.") in FILES}
            names |= within | ({node.module} if within != full else set())
    return names


def modules(name: str) -> set[str]:
    """The modules of this package that a module imports."""
    own = {n.removeprefix("lightning_dpo.") for n in imports(FILES[name]) if n.startswith("lightning_dpo.")}
    return (own & set(FILES)) - {name}


def test_every_room_has_its_layer_and_the_root_is_small():
    assert {name.split(".")[0] for name in FILES} == set(LEVEL)
    assert len(list(PACKAGE.glob("*.py"))) <= 16


@pytest.mark.parametrize("name", sorted(FILES))
def test_imports_point_downward(name):
    room = name.split(".")[0]
    for other in {other.split(".")[0] for other in modules(name)} - {room} - FREE:
        assert LEVEL[other] > LEVEL[room], f"{name} imports {other}, which is not below it"


def test_nothing_imports_in_a_circle():
    order = TopologicalSorter({name: modules(name) for name in FILES}).static_order()
    assert set(order) == set(FILES)


@pytest.mark.parametrize(
    ("library", "rooms"),
    [("hydra", {"train", "config", "sweep", "safety", "demo"}), ("wandb", {"loggers"})],
)
def test_hydra_and_wandb_are_met_in_few_rooms(library, rooms):
    users = {name.split(".")[0] for name, path in FILES.items() if library in {i.split(".")[0] for i in imports(path)}}
    assert users == rooms


def test_importing_the_package_and_asking_for_help_load_no_torch():
    code = "import sys, lightning_dpo.train; assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_files_are_short():
    long = {name: n for name, path in FILES.items() if (n := len(path.read_text().splitlines())) > 250}
    assert not long
