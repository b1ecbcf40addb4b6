"""Imports point one way, and importing dtrain stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import dtrain

PACKAGE = Path(dtrain.__file__).parent
LAYERS: dict[str, set[str]] = {
    "errors": set(),
    "options": {"errors"},
    "graph": {"errors"},
    "scipy": {"errors", "graph"},
    "comm": {"errors"},
    "data": {"errors", "options", "graph", "comm"},
    "optim": {"errors", "options", "graph", "comm"},
    "nn": {"errors", "options", "graph", "comm"},
    "monitor": {"errors", "options", "graph", "comm"},
}
LAYERS["train"] = {*LAYERS}
LAYERS["jobs"] = {*LAYERS}
LAYERS["commands"] = {*LAYERS}
LAYERS["cli"] = {*LAYERS}
"""What each part may import besides itself; a new part has to be put in its place here."""

HEAVY = (
    "ray",
    "mpi4py",
    "pandas",
    "starlette",
    "http.server",
    "prometheus_client",
    "rich",
    "pydantic",
    "typer",
    "yaml",
    "torch",
    "sklearn",
    "cloudpickle",
    "threadpoolctl",
    "multiprocessing",
    "asyncio",
)


def part_of(module: str) -> str:
    """The first name below ``dtrain``; the empty string for ``dtrain`` itself."""
    return module.split(".")[1] if "." in module else ""


def imports_of(tree: ast.AST, module: str) -> Iterator[tuple[str, tuple[str, ...], int]]:
    """(module, names, line) of each import of dtrain in a module, wherever it stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, (), node.lineno) for alias in node.names if alias.name.split(".")[0] == "dtrain")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno} imports relatively"
            assert node.module is not None
            names = tuple(alias.name for alias in node.names)
            if node.module == "dtrain":
                for name in names:
                    is_module = (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").exists()
                    yield (f"dtrain.{name}" if is_module else "dtrain", (name,), node.lineno)
            elif node.module.split(".")[0] == "dtrain":
                yield node.module, names, node.lineno


def mistakes(module: str, source: str) -> list[str]:
    """The imports of a module that point the wrong way."""
    part = part_of(module)
    found = []
    for target, names, line in imports_of(ast.parse(source), module):
        other = part_of(target)
        if other == "":
            is_fine = part in ("train", "jobs", "commands", "cli") and names == ("__version__",)
        elif part == "":
            is_fine = other == "graph" or target == "dtrain.jobs.fit"
        else:
            is_fine = other == part or other in LAYERS.get(part, set())
        if not is_fine:
            found.append(f"{module}:{line} imports {target}")
    return found


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    name = ".".join(["dtrain", *path.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__")
    assert part_of(name) in {"", *LAYERS}, f"{name} has no place among the layers"
    assert mistakes(name, path.read_text()) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("dtrain.graph.plan", "from dtrain.comm.layout import Layout"),
        ("dtrain.comm.reduce", "import dtrain.graph"),
        ("dtrain.comm.reduce", "def f():\n    from dtrain.train import worker"),
        ("dtrain.options", "from dtrain.graph import Tensor"),
        ("dtrain.errors", "from dtrain.options import Options"),
        ("dtrain.optim.sgd", "from dtrain.nn import losses"),
        ("dtrain.monitor.table", "if TYPE_CHECKING:\n    from dtrain.train import service"),
        ("dtrain.train.service", "from dtrain.jobs.spec import JobSpec"),
        ("dtrain.jobs.run", "from dtrain.cli import main"),
        ("dtrain.jobs.run", "from dtrain import cli"),
        ("dtrain.graph.api", "from dtrain import grad"),
        ("dtrain", "from dtrain.train import service"),
    ],
)
def test_a_wrong_import_is_found(module: str, source: str) -> None:
    assert len(mistakes(module, source)) == 1


def test_a_relative_import_is_found() -> None:
    with pytest.raises(AssertionError, match="imports relatively"):
        mistakes("dtrain.graph.api", "from ..comm import layout")


def test_importing_dtrain_is_light() -> None:
    code = f"import dtrain, sys; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_importing_dtrain_brings_numpy_alone() -> None:
    code = """
import sys
import numpy
before = set(sys.modules)
import dtrain
new = {name.partition(".")[0] for name in set(sys.modules) - before}
print(sorted(new - set(sys.stdlib_module_names)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['dtrain']"


def test_a_worker_needs_no_server_and_no_terminal() -> None:
    code = (
        "import dtrain.train.worker, sys; "
        f"print([m for m in {HEAVY!r} if m in sys.modules and m not in ('threadpoolctl', 'multiprocessing')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
