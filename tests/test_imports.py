"""Imports point downward only, and the package itself loads nothing heavy."""

import ast
import subprocess
import sys

import pytest

from tests.conftest import ROOT

PACKAGE = ROOT / "lightning_dpo"
FILES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
    if path.name != "__init__.py" or path.parent != PACKAGE
}
LAYERS = [
    {"__main__"},
    {"train", "dashboard"} | {n for n in FILES if n.startswith("benchmark")},
    {"sweep"},
    {"overview", "grid", "guard", "workers"} | {n for n in FILES if n.startswith("report")},
    {"jobs"},
    {"console", "config"},
    {"collapse"},
    {"run_folder"},
    {"samples", "displacement", "saving"},
    {"module", "data.module", "tracking"},
    {"checks", "data", "data.report", "data.ches_report", "data.stream"},
    {"needs"},
    {"reference"},
    {"precompute", "optim", "data.loader", "data.warn"},
    {"data.sets"},
    {"data.store"},
    {"data.encode"},
    {"data.tokenize", "data.cut"},
    {"data.chat", "data.formats", "data.sources"},
    {"data.dialogue", "data.lines"},
    {"data.rows"},
    {"checkpoint", "store", "generation", "models", "metrics", "ches", "finite"},
    {"losses"} | {n for n in FILES if n.startswith("losses.")},
    {"scoring"},
    {"experts", "head"},
    {"soundness"},
    {"layout"},
    {"attention"},
    {"combinations"},
    {"allow", "redact"},
    {"batch", "content", "signatures", "errors", "files", "free_keys", "signals", "resolvers", "demo"},
]
"""From the top; a module imports from lower layers, or from its own package."""

LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def imports(path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_every_module_has_its_layer():
    assert {n for n in FILES if not n.startswith("demo.")} - {"demo"} == set(LEVEL) - {"demo"}


@pytest.mark.parametrize("name", sorted(set(LEVEL) & set(FILES)))
def test_imports_point_downward(name):
    own = {n.removeprefix("lightning_dpo.") for n in imports(FILES[name]) if n.startswith("lightning_dpo.")}
    for other in own & set(LEVEL):
        same_package = other.split(".")[0] == name.split(".")[0]
        assert LEVEL[other] > LEVEL[name] or same_package, f"{name} imports {other}, which is above it"


@pytest.mark.parametrize(
    ("library", "users"),
    [("hydra", {"train", "config", "sweep", "grid", "guard", "demo.optimum"}), ("wandb", {"tracking"})],
)
def test_hydra_and_wandb_are_met_in_few_places(library, users):
    assert {name for name, path in FILES.items() if any(i.split(".")[0] == library for i in imports(path))} == users


def test_importing_the_package_and_asking_for_help_load_no_torch():
    code = "import sys, lightning_dpo.train; assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_files_are_short():
    long = {name: n for name, path in FILES.items() if (n := len(path.read_text().splitlines())) > 250}
    assert not long
