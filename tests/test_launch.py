"""`launch.sh` on a machine of its own: a small project in a folder with spaces, no git, real pip.

The project needs nothing from a package index, so that these tests say what the script does, and
not what the network does. `.ci/run` calls the script on the real project.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest

LAUNCH = Path(__file__).parent.parent / "launch.sh"
if not LAUNCH.exists():
    pytest.skip("launch.sh is not part of an installed package", allow_module_level=True)

NVIDIA_IN_PROC = Path("/proc/driver/nvidia/version")

PYPROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
"""

# A build backend, as pip calls it. It reports the extras that it knows, and where a file called
# `block` lies beside it, it never comes back.
BACKEND = """
import time, zipfile
from pathlib import Path

METADATA = "Metadata-Version: 2.1\\nName: toy\\nVersion: 1\\n"
WHEEL = "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n"
EXTRAS = ("tfds", "rapl", "test", "cuda12", "cuda13")

def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    if Path("block").exists():
        Path("blocked").touch()
        time.sleep(600)
    extras = "".join(f"Provides-Extra: {extra}\\n" for extra in EXTRAS)
    needs = Path("needs").read_text() if Path("needs").exists() else ""
    name = "toy-1-py3-none-any.whl"
    with zipfile.ZipFile(Path(wheel_directory) / name, "w") as wheel:
        wheel.writestr("toy-1.dist-info/METADATA", METADATA + extras + needs)
        wheel.writestr("toy-1.dist-info/WHEEL", WHEEL)
        wheel.writestr("toy-1.dist-info/RECORD", "")
        wheel.writestr("toy.pth", str(Path.cwd()))
    return name
"""

DRIVER = """
import os, sys
import plugin

def main():
    print(sys.argv[1:], os.getcwd(), plugin.__name__)
    sys.exit(3 if "--fail" in sys.argv else 0)

if __name__ == "__main__":
    main()
"""


class Toy(NamedTuple):
    """The project, a folder to call it from, and what the first call of all left to be seen."""

    root: Path
    elsewhere: Path
    stories: dict[str, subprocess.CompletedProcess[str]]

    def start(self, *args: str, **variables: str) -> subprocess.Popen[str]:
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("PYTHON", "PIP_", "VIRTUAL_ENV"))
        }
        return subprocess.Popen(
            [str(self.root / "launch.sh"), *args],
            cwd=self.elsewhere,
            env={**environment, "PIP_NO_INDEX": "1", **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def call(self, *args: str, **variables: str) -> subprocess.CompletedProcess[str]:
        process = self.start(*args, **variables)
        out, err = process.communicate()
        return subprocess.CompletedProcess(args, process.returncode, out, err)


def make_tree(folder: Path) -> Toy:
    """The project without its venv, and beside it a folder with an `experiments` of its own."""
    toy = Toy(folder / "a b c", folder / "elsewhere", {})
    for path, text in {
        toy.root / "pyproject.toml": PYPROJECT,
        toy.root / "constraints.txt": "",
        toy.root / "backend.py": BACKEND,
        toy.root / "pytest.py": "import os, sys; print('tests', sys.argv[1:], os.getcwd())",
        toy.root / "experiments" / "__init__.py": "",
        toy.root / "experiments" / "flags.py": "def launch(): pass",
        toy.root / "experiments" / "measure.py": DRIVER,
        toy.root / "experiments" / "run.py": DRIVER,
        toy.elsewhere / "experiments" / "__init__.py": "raise RuntimeError('the wrong one')",
        toy.elsewhere / "plugin.py": "",
    }.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    shutil.copy(LAUNCH, toy.root)
    return toy


def make_shims(folder: Path) -> str:
    """A PATH on which the first Pythons only print an error, as those of a version manager do."""
    folder.mkdir()
    for name in ("python3.11", "python3.12", "python3.13"):
        shim = folder / name
        shim.write_text("#!/bin/sh\necho 'not installed' >&2\nexit 127\n")
        shim.chmod(0o755)
    (folder / "python3").symlink_to(sys.executable)
    return os.pathsep.join([str(folder), os.environ["PATH"]])


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    """The project after an installation that failed, one that was killed, and one that worked."""
    folder = tmp_path_factory.mktemp("launch")
    toy = make_tree(folder)
    (toy.root / "needs").write_text("Requires-Dist: no-such-package\n")
    toy.stories["failed"] = toy.call("measure", PYTHON=sys.executable)
    (toy.root / "needs").unlink()

    (toy.root / "block").touch()
    process = toy.start("measure", PYTHON=sys.executable)
    while not (toy.root / "blocked").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    (toy.root / "block").unlink()

    toy.stories["repaired"] = toy.call("measure", "--flag=1 2", PATH=make_shims(folder / "shims"))
    return toy


def test_failed_installation_says_what_failed(toy: Toy):
    failed = toy.stories["failed"]
    assert failed.returncode == 1
    assert failed.stdout == ""
    assert "No matching distribution found for no-such-package" in failed.stderr
    assert str(toy.root / ".venv" / "launch" / "pip.log") in failed.stderr.splitlines()[-1]


def test_installation_cut_off_is_repaired_by_the_next_call(toy: Toy):
    repaired = toy.stories["repaired"]
    assert repaired.returncode == 0, repaired.stderr
    assert repaired.stdout == f"['--flag=1 2'] {toy.elsewhere} plugin\n"
    lines = [line.removeprefix("launch.sh: ") for line in repaired.stderr.splitlines()]
    assert lines[0].startswith(f"making {toy.root}/.venv with Python 3.")
    assert lines[1].startswith("installing jaxenergy[")
    assert lines[2].startswith("installed in ")
    assert len(lines) == 3


def test_second_call_installs_nothing_and_passes_the_status_on(toy: Toy):
    log = toy.root / ".venv" / "launch" / "pip.log"
    before = log.stat().st_mtime_ns
    second = toy.call("measure", "--fail")
    assert second.returncode == 3
    assert second.stdout == f"['--fail'] {toy.elsewhere} plugin\n"
    assert second.stderr == ""
    assert log.stat().st_mtime_ns == before


def test_tests_add_what_they_need_and_run_in_the_project(toy: Toy):
    done = toy.call("test", "--slow", "-k", "a b")
    assert done.returncode == 0, done.stderr
    assert done.stdout == (
        f"tests ['--numprocesses=auto', '--dist=loadfile', '--slow', '-k', 'a b'] {toy.root}\n"
    )
    assert "making" not in done.stderr
    extras = (toy.root / ".venv" / "launch" / "installed").read_text().splitlines()[2].split()
    assert {"rapl", "tfds", "test"} <= set(extras)
    assert (
        toy.call("measure").stderr == ""
    )  # what there is more than needed is no reason to install


@pytest.mark.parametrize(
    ("args", "needed"),
    [
        (("--dataset=cartpole",), True),
        (("--dataset", "acrobot:environments=16"), True),
        (("--grid=dataset=digits,cartpole",), True),
        (("--grid", "dataset=digits; acrobot"), True),
        (("--dataset=digits", "--name=polecart"), False),
    ],
    ids=lambda value: str(value),
)
def test_an_environment_brings_its_extra_however_it_is_named(toy: Toy, args, needed):
    stamp = toy.root / ".venv" / "launch" / "installed"
    *before, extras = stamp.read_text().splitlines()
    others = [name for name in extras.split() if name != "rl"]
    stamp.write_text("\n".join([*before, " ".join(others)]) + "\n")
    done = toy.call("measure", *args)
    assert done.returncode == 0, done.stderr
    assert ("rl" in stamp.read_text().splitlines()[2].split()) == needed


def test_changed_pins_are_installed(toy: Toy):
    (toy.root / "constraints.txt").write_text("some-package==2\n")
    assert "launch.sh: installing" in toy.call("measure").stderr
    assert toy.call("measure").stderr == ""


def test_moved_project_is_installed_again(toy: Toy, tmp_path: Path):
    moved = Toy(tmp_path / "moved here", toy.elsewhere, {})
    shutil.copytree(toy.root, moved.root, symlinks=True)
    done = moved.call("measure")
    assert (done.returncode, done.stdout) == (0, f"[] {toy.elsewhere} plugin\n")
    assert "launch.sh: installing" in done.stderr
    paths = (moved.root / ".venv").glob("lib/python3*/site-packages/toy.pth")
    assert [path.read_text() for path in paths] == [str(moved.root)]


@pytest.mark.skipif(NVIDIA_IN_PROC.exists(), reason="this machine has an NVIDIA driver of its own")
@pytest.mark.parametrize(
    ("driver", "extra", "message"),
    [
        ("470.256.02", None, "NVIDIA driver 470.256.02 is older than 525"),
        ("580.65.06", "cuda13", "installing jaxenergy[cuda13,"),
        # Another CUDA than before: a new venv.
        pytest.param(
            *("535.183.01", "cuda12", "installing jaxenergy[cuda12,"), marks=pytest.mark.slow
        ),
    ],
)
def test_the_driver_chooses_cuda(toy: Toy, tmp_path: Path, driver, extra, message):
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\necho {driver}\n")
    tool.chmod(0o755)
    path = os.pathsep.join([str(tmp_path), os.environ["PATH"]])
    assert f"launch.sh: {message}" in toy.call("measure", PATH=path).stderr
    extras = (toy.root / ".venv" / "launch" / "installed").read_text().splitlines()[2].split()
    assert {name for name in extras if name.startswith("cuda")} == ({extra} if extra else set())


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("mesure",), "DRIVER=mesure is unknown. Did you mean measure?"),
        (("flags",), "DRIVER=flags is unknown."),
        (("../x",), "DRIVER=../x is unknown."),
        (("measure run",), "DRIVER=measure run is unknown."),
    ],
)
def test_unknown_driver(tmp_path: Path, args, message):
    done = make_tree(tmp_path).call(*args)
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert lines[0].startswith(f"launch.sh: {message}")
    assert lines[1:] == ["launch.sh: Allowed: measure run test."]


def test_usage_lists_the_drivers_there_are(tmp_path: Path):
    toy = make_tree(tmp_path)
    asked, unasked = toy.call("--help"), toy.call()
    assert (asked.returncode, asked.stderr) == (0, "")
    assert (unasked.returncode, unasked.stdout) == (2, "")
    assert "DRIVER: measure run" in asked.stdout
    assert unasked.stderr == asked.stdout


def test_works_through_a_link(tmp_path: Path):
    toy = make_tree(tmp_path)
    link = tmp_path / "launch"
    link.symlink_to(toy.root / "launch.sh")
    done = subprocess.run([str(link), "--help"], capture_output=True, text=True, check=True)
    assert "DRIVER: measure run" in done.stdout


def test_venv_of_somebody_else_is_refused_and_kept(tmp_path: Path):
    toy = make_tree(tmp_path)
    precious = toy.root / ".venv" / "precious"
    precious.parent.mkdir()
    precious.touch()
    done = toy.call("measure", PYTHON=sys.executable)
    assert done.returncode == 1
    assert f"{toy.root}/.venv was not made by launch.sh" in done.stderr
    assert precious.exists()


def test_python_that_does_not_work_is_refused(tmp_path: Path):
    done = make_tree(tmp_path).call("measure", PYTHON="/no/such/python")
    assert done.returncode == 2
    assert done.stderr.startswith(
        "launch.sh: PYTHON=/no/such/python is not a working Python >= 3.11"
    )


def test_no_python_at_all(tmp_path: Path):
    shims = tmp_path / "shims"
    path = make_shims(shims)
    (shims / "python3").unlink()
    (shims / "python3").symlink_to(shims / "python3.11")
    done = make_tree(tmp_path).call("measure", PATH=path)
    assert done.returncode == 2
    assert "no Python >= 3.11" in done.stderr
