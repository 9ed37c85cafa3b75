"""What gets installed: the wheel is whole, the pins fit, and the tests pass against the wheel."""

import ast
import email
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
if not (ROOT / "pyproject.toml").exists():
    pytest.skip("needs the project's folder, to build from", allow_module_level=True)

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("*.whl")
    return built


def test_wheel_holds_every_file_of_the_packages(wheel: Path):
    expected = {
        path.relative_to(ROOT).as_posix()
        for package in ("jaxenergy", "experiments")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == expected
    assert "jaxenergy/data/digits.npz" in names


def test_wheel_says_what_it_is(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        facts = email.message_from_bytes(archive.read(metadata))
        licences = [name for name in archive.namelist() if name.endswith("/licenses/LICENSE")]
    init = (ROOT / "jaxenergy" / "__init__.py").read_text()
    assert f'__version__ = "{facts["Version"]}"' in init
    assert facts["License-Expression"] == "Apache-2.0"
    assert len(licences) == 1
    extras = {"cuda12", "cuda13", "tfds", "rapl", "torch", "report", "all"}
    assert extras <= set(facts.get_all("Provides-Extra") or [])


def test_every_driver_has_a_command():
    mains = {
        path.stem: node
        for path in (ROOT / "experiments").glob("*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name == "main"
    }
    commands = {f"jaxenergy-{name}": f"experiments.{name}:main" for name in mains}
    assert PROJECT["scripts"] == commands
    assert {name for name, main in mains.items() if main.args.args} == set()  # called with none


def read_pins() -> dict[str, list[Requirement]]:
    """The lines of constraints.txt by package; several where they differ by Python version."""
    pins: dict[str, list[Requirement]] = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            pin = Requirement(line)  # refuses options, such as the address of an index
            pins.setdefault(canonicalize_name(pin.name), []).append(pin)
    return pins


EXTRAS = PROJECT["optional-dependencies"]
REQUIREMENTS = [*PROJECT["dependencies"], *(line for lines in EXTRAS.values() for line in lines)]


# Those that name an extra, like jax[cuda12], have the bounds of the package itself.
@pytest.mark.parametrize("requirement", [line for line in REQUIREMENTS if "[" not in line])
def test_requirement_is_bounded_and_its_pins_lie_within(requirement):
    needed = Requirement(requirement)
    operators = {bound.operator for bound in needed.specifier}
    assert operators in ({">=", "<"}, {"=="})
    pins = read_pins()[canonicalize_name(needed.name)]
    for pin in pins:
        (exact,) = pin.specifier
        assert exact.operator == "=="
        assert exact.version in needed.specifier


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_every_python_has_one_pin_a_package(python):
    environment = {"python_version": python, "python_full_version": f"{python}.0"}
    for name, pins in read_pins().items():
        if any("sys_platform" in str(pin.marker) for pin in pins):
            continue
        fitting = [pin for pin in pins if not pin.marker or pin.marker.evaluate(environment)]
        assert len(fitting) == 1, name


def test_pins_name_no_place():
    text = (ROOT / "constraints.txt").read_text()
    assert not re.search(r"https?:|file:|@ |^-", text, flags=re.MULTILINE)


def test_tools_of_pre_commit_are_those_of_the_project():
    (pin,) = read_pins()["ruff"]
    version = str(pin.specifier).removeprefix("==")
    assert f"rev: v{version}\n" in (ROOT / ".pre-commit-config.yaml").read_text()


def test_the_examples_of_extending_work():
    readme = (ROOT / "README.md").read_text()
    text = readme[readme.index("## Extending") :] + (ROOT / "CONTRIBUTING.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    check = """
import jax
from jaxenergy import data, meters, models, optimizers
stripes = data.load("stripes")
model = models.build(
    "funnel", input_shape=stripes.input_shape, classes=stripes.classes, activation="arctan"
)
variables = jax.jit(model.init)(jax.random.key(0))
logits, _ = model.apply(variables, stripes.test.inputs / 255, train=False)
assert logits.shape == (100, 2)
for tx in (optimizers.build("adam_slow", total_updates=1).tx, sign_descent()):
    state = tx.init(variables["params"])
    tx.update(variables["params"], state, variables["params"])
(counter,) = meters.open_meters("plug").counters
try:
    counter.read_j()
except meters.CounterError as error:
    print(error)
"""
    code = "\n".join([*blocks, check])
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("the wattmeter does not answer")


@pytest.mark.slow
def test_the_tests_pass_against_the_wheel_from_another_folder(wheel: Path, tmp_path: Path):
    site = tmp_path / "site"
    install = ["install", "--quiet", "--no-deps", "--no-index", "--target", str(site), str(wheel)]
    subprocess.run([sys.executable, "-m", "pip", *install], check=True)
    elsewhere = tmp_path / "else where"
    for folder in ("tests", "benchmarks"):  # some tests run the benchmarks' code
        shutil.copytree(ROOT / folder, elsewhere / folder)
    environment = {**os.environ, "PYTHONPATH": str(site)}

    where = (
        "import experiments, jaxenergy; print(experiments.__file__, jaxenergy.__file__, sep='\\n')"
    )
    found = subprocess.run(
        [sys.executable, "-c", where],
        cwd=elsewhere,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert all(Path(line).is_relative_to(site) for line in found.stdout.splitlines())

    settings = [f"--config-file={ROOT / 'pyproject.toml'}", f"--rootdir={elsewhere}"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *settings, "-q", "tests"],
        cwd=elsewhere,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-10000:]
