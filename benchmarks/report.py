"""How long a report of many runs takes, how much memory, and how large its page is.

python benchmarks/report.py                    # 10,000 runs, in a temporary folder
python benchmarks/report.py --runs=1000 --keep=/tmp/many

The runs are made up: folders as experiments.run leaves them, of four optimizers, five activations,
four depths and many seeds, with 40 windows and 20 evaluations each; their joules say that they are
simulated. Each report is a process of its own, as a user would start it.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from made_up_runs import make_runs


def main() -> None:
    """Makes the runs and times the reports."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--windows", type=int, default=40)
    parser.add_argument("--keep", type=Path, help="make the folders here, and leave them")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        home = options.keep or Path(temporary)
        root, out = home / "runs", home / "report"
        if not root.exists():
            make_runs(root, options.runs, options.windows)
        print(f"{options.runs:,} runs of {options.windows} windows, {os.cpu_count()} processors")
        measure("made first", root, out)
        measure("nothing changed", root, out)
        (root / "run-00000" / "metrics.jsonl").touch()
        measure("one run changed", root, out)
        measure("--summary", root, out, "--summary")
        size = (out / "index.html").stat().st_size
        pages = sum(1 for _ in (out / "runs").iterdir())
        print(f"page {size / 1e6:.2f} MB, {pages:,} pages of runs")


def measure(what: str, root: Path, out: Path, *flags: str) -> None:
    """Times one report, with the memory of the process and of the largest of its children."""
    command = [sys.executable, "-c", _CHILD, str(root), f"--out={out}", *flags]
    before = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    took_s = time.monotonic() - before
    own_kb, child_kb, busy_s = map(float, done.stderr.split()[-3:])
    print(
        f"{what}: {took_s:.1f} s, {busy_s:.1f} s of processors, {own_kb / 1e6:.2f} GB,"
        f" largest child {child_kb / 1e6:.2f} GB",
        flush=True,
    )


# Both processes that read and draw count against the bound.
_CHILD = """
import resource, sys
sys.argv[0] = "report"
from experiments.report import main
try:
    main()
except SystemExit as end:
    code = end.code
own = resource.getrusage(resource.RUSAGE_SELF)
child = resource.getrusage(resource.RUSAGE_CHILDREN)
busy_s = own.ru_utime + own.ru_stime + child.ru_utime + child.ru_stime
print(own.ru_maxrss, child.ru_maxrss, busy_s, file=sys.stderr)
sys.exit(code)
"""


if __name__ == "__main__":
    main()
