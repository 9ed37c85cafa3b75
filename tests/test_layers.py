"""The house stands: who may import whom, and what an import may cost."""

import ast
import functools
import graphlib
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import experiments
import jaxenergy

# A module imports from lower rows and within its own package; on the ground floor also from its
# neighbours. A dotted entry is a module that stands lower than the rest of its package.
ROWS = (
    {"errors", "units", "registry", "runtime", "arguments"},
    {"config", "activations", "stats", "flops", "meters.base"},
    {"models", "optimizers", "data", "meters", "records"},
    {"training.steps", "energy"},
    {"training", "measuring"},
    {"sweeps", "torch_twin", "inference"},
    {"studies", "report", "frameworks"},
)
DRIVERS_ROW = len(ROWS)

COMPUTES = {"activations", "flops", "models", "optimizers", "data", "training.steps"}
MEASURES = {"stats", "meters", "records", "energy"}

# Who alone may import what, also inside a function.
RESERVED = {"absl": "experiments", "torch": "jaxenergy.torch_twin"}

HEAVY = {
    *("jax", "jaxlib", "flax", "optax", "orbax", "torch", "tensorflow", "tensorflow_datasets"),
    *("pynvml", "pyRAPL", "scipy", "numpy"),
}


def find_modules(package: str) -> Iterator[tuple[str, Path]]:
    """The dotted name and the file of every module of a package."""
    (root,) = sys.modules[package].__path__
    for path in Path(root).rglob("*.py"):
        parts = path.relative_to(root).with_suffix("").parts
        if parts[-1] == "__init__":
            parts = parts[:-1]
        yield ".".join((package, *parts)), path


MODULES = dict(sorted([*find_modules("jaxenergy"), *find_modules("experiments")]))
DRIVERS = [
    name
    for name, path in MODULES.items()
    if name.startswith("experiments.") and "\ndef main(" in path.read_text()
]


@functools.cache
def read_imports(module: str) -> frozenset[str]:
    """What a module imports anywhere in its file: our modules by full name, others by package."""
    path = MODULES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            names = [f"{base}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES else base for name in names]
        else:
            continue
        found |= {name if name in MODULES else name.partition(".")[0] for name in names}
    return frozenset(found - {module})


def find_entry(module: str) -> str:
    """The entry of the table to which a module of jaxenergy belongs: the longest that fits."""
    parts = module.split(".")[1:]
    entries = set().union(*ROWS)
    for length in range(len(parts), 0, -1):
        if ".".join(parts[:length]) in entries:
            return ".".join(parts[:length])
    pytest.fail(f"{module} has no place in the table of layers: give it one")


def find_row(module: str) -> int:
    if module.startswith("experiments"):
        return DRIVERS_ROW
    if module == "jaxenergy":  # the version and lazily loaded names
        return 0
    return next(row for row, entries in enumerate(ROWS) if find_entry(module) in entries)


def find_package(module: str) -> str:
    """The part of the house to which a module belongs: `jaxenergy.meters`, or `experiments`."""
    parts = module.split(".")
    return parts[0] if parts[0] == "experiments" else ".".join(parts[:2])


@pytest.mark.parametrize("module", [name for name in MODULES if name != "jaxenergy"])
def test_imports_only_from_lower_rows(module):
    row = find_row(module)
    wrong = [
        f"{other} (row {find_row(other)})"
        for other in read_imports(module) & MODULES.keys()
        if find_row(other) >= row > 0 and find_package(other) != find_package(module)
    ]
    assert not wrong, f"{module} (row {row}) imports {', '.join(wrong)}"


def test_no_circles():
    graph = {
        module: read_imports(module) & MODULES.keys() for module in MODULES if module != "jaxenergy"
    }
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


@pytest.mark.parametrize("module", MODULES)
def test_the_towers_do_not_touch(module):
    if module == "jaxenergy" or find_row(module) == DRIVERS_ROW:
        return
    imports = read_imports(module)
    entries = {find_entry(name) for name in imports & MODULES.keys() - {"jaxenergy"}}
    if find_entry(module) in COMPUTES:
        assert not entries & MEASURES, f"{module} computes, and knows no joules"
    if find_entry(module) in MEASURES:
        assert not entries & COMPUTES, f"{module} measures, and knows no models"
        frameworks = imports & {"jax", "jaxlib", "flax", "optax", "orbax", "torch"}
        assert not frameworks, f"{module} measures, and knows no framework"


@pytest.mark.parametrize("package", RESERVED)
def test_reserved_packages(package):
    owner = RESERVED[package]
    users = {module for module in MODULES if package in read_imports(module)}
    assert {user for user in users if not f"{user}.".startswith(f"{owner}.")} == set()


def loaded_by(code: str) -> set[str]:
    """The packages of `HEAVY` that a fresh process has loaded after running code."""
    report = f"import sys; print('loaded', *sys.modules.keys() & {HEAVY!r}, file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, check=True
    )
    return set(done.stderr.splitlines()[-1].split()[1:])


def test_importing_the_library_loads_nothing_heavy():
    assert loaded_by("import jaxenergy") == set()


@pytest.mark.parametrize("driver", DRIVERS)
def test_help_loads_nothing_heavy(driver):
    code = f"""
import runpy, sys
sys.argv = ["-m", "--help"]
try:
    runpy.run_module("{driver}", run_name="__main__", alter_sys=True)
except SystemExit:
    pass
"""
    assert loaded_by(code) == set()


def test_measuring_loads_no_framework():
    measuring = [name for name in MODULES if "." in name and find_row(name) < DRIVERS_ROW]
    measuring = [name for name in measuring if find_entry(name) in MEASURES]
    assert measuring
    frameworks = HEAVY - {"numpy", "scipy"}
    assert loaded_by(f"import {', '.join(measuring)}") & frameworks == set()


def test_this_file_looks_at_the_whole_house():
    assert {jaxenergy.__name__, experiments.__name__} < MODULES.keys()
    assert DRIVERS
