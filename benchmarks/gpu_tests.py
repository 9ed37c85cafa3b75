"""The tests that need a real GPU, with their outcomes in the results: `pytest --gpu`.

benchmarks/gpu.sh tests
"""

import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

from gpu_stage import ROOT, Check, Stage, run_stage

from jaxenergy.errors import RunError


def check_tests() -> dict[str, Any]:
    """Runs them.

    Raises:
        RunError: there are none, or one failed; the message has pytest's output.
    """
    # Only the files with such tests: others may import what is not installed here.
    files = [path for path in (ROOT / "tests").glob("test_*.py") if "mark.gpu" in path.read_text()]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        ended = subprocess.run(
            [sys.executable, "-m", "pytest", "--gpu", "-q", f"--junitxml={report}", *files],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        if ended.returncode != 0:
            raise RunError(f"pytest ended with status {ended.returncode}:\n{ended.stdout}")
        outcomes = read_outcomes(report)
    return {
        "outcomes": outcomes,
        "says": [f"{name}: {outcome['outcome']}" for name, outcome in outcomes.items()],
    }


def read_outcomes(report: Path) -> dict[str, dict[str, Any]]:
    """What became of each test, from a JUnit report.

    Args:
        report: the file.

    Returns:
        By test: `outcome` (`passed`, `failure`, `error`, `skipped`) and `duration_s`.
    """
    outcomes = {}
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        tags = [child.tag for child in case if child.tag in ("failure", "error", "skipped")]
        name = f"{case.get('classname')}::{case.get('name')}"
        outcomes[name] = {
            "outcome": tags[0] if tags else "passed",
            "duration_s": float(case.get("time") or 0),
        }
    return outcomes


def make_checks(stage: Stage) -> list[Check]:
    """The one check of this stage."""
    return [Check("pytest", 60 if stage.options.smoke else 240, check_tests)]


if __name__ == "__main__":
    run_stage("tests", __doc__, make_checks, computes=False)
