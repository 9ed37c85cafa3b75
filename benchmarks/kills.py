"""Kills runs by `kill -9` at random moments, continues them to their end, and checks what is left.

    python benchmarks/kills.py --n=200          some 20 minutes on two cores

Each run is killed one to three times, some while their wall clock is a day ahead or behind, and
must then end with the parameters of a run that was never killed, bit for bit, and with its energy
account whole (`tests/killed_runs.py` says what is checked). The histories follow from the seed;
when exactly a kill falls, the machine decides. An interrupted benchmark goes on where it was: what
is done stands in FOLDER/kills.jsonl. `docs/reliability.md` quotes the figures.
"""

import argparse
import collections
import json
import os
import random
import shutil
import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent / "tests"
sys.path.insert(0, str(TESTS))

import killed_runs  # noqa: E402
from powercap_tree import Writer  # noqa: E402

# Most processes are killed in training, most of what can go wrong is elsewhere.
WALL_CLOCKS_S = (0, 0, 0, 86_400, -86_400)


def main() -> int:
    """Does what is left of the histories, prints the figures; 1 where anything was violated."""
    parser = argparse.ArgumentParser(description="Kills runs and checks what is left.")
    parser.add_argument("--n", type=int, default=200, help="kills")
    parser.add_argument("--seed", type=int, default=0)
    default = Path(tempfile.gettempdir()) / f"jaxenergy-kills-{os.getuid()}"
    parser.add_argument("--folder", type=Path, default=default, help="where runs and results lie")
    options = parser.parse_args()
    options.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    done_file = options.folder / "kills.jsonl"
    done = killed_runs.lines_of(done_file)
    done = [history for history in done if history["seed"] == options.seed]
    shutil.rmtree(options.folder / "powercap", ignore_errors=True)
    tree = killed_runs.NotedTree(options.folder / "powercap")
    clock = killed_runs.build_clock(options.folder)
    reference = options.folder / "reference"
    with Writer(tree):
        killed_runs.finish(killed_runs.start(reference, tree))
        while sum(len(history["fell"]) for history in done) < options.n:
            history = make_history(options, len(done), tree, clock, reference / killed_runs.NAME)
            done.append(history)
            with open(done_file, "a") as file:
                file.write(json.dumps(history) + "\n")
            for violation in history["violations"]:
                print(f"history {history['index']}: {violation}", flush=True)
    print_figures(done)
    return 1 if any(history["violations"] for history in done) else 0


def make_history(options, index: int, tree, clock: Path, reference: Path) -> dict:
    """One run, killed one to three times and then finished."""
    seeded = random.Random(f"{options.seed}-{index}")
    out = options.folder / f"history-{index}"
    shutil.rmtree(out, ignore_errors=True)
    folder = out / killed_runs.NAME
    deaths, missed, clocks = [], 0, []
    for _ in range(seeded.randint(1, 3)):
        moment = seeded.choice(list(killed_runs.MOMENTS))
        clocks.append(seeded.choice(WALL_CLOCKS_S))
        process = killed_runs.start(out, tree, env=killed_runs.shifted(clock, clocks[-1]))
        if not killed_runs.kill(process, folder, moment, seeded):
            missed += 1  # it had ended before
            break
        deaths.append(killed_runs.look_at(folder, moment, deaths))
    clocks.append(seeded.choice(WALL_CLOCKS_S))
    env = killed_runs.shifted(clock, clocks[-1])
    process = killed_runs.start(out, tree, env=env)
    output, null = process.communicate()[0], 0
    if process.returncode:
        violations = [f"it ended with status {process.returncode}: {output[-500:]}"]
    else:
        violations = killed_runs.violations(folder, reference, deaths, tree)
        null = killed_runs.null_attempts(folder)
    if not violations:
        shutil.rmtree(out)
    return {
        "seed": options.seed,
        "index": index,
        "moments": [death.moment for death in deaths],
        "fell": [death.fell for death in deaths],
        "late": sum(death.late for death in deaths),
        "missed": missed,
        "null": null,
        "wall_clocks_s": clocks,
        "violations": violations,
    }


def print_figures(done: list[dict]) -> None:
    """What `docs/reliability.md` quotes."""
    fell = collections.Counter(where for history in done for where in history["fell"])
    kills = sum(fell.values())
    print(f"{kills} kills of {len(done)} runs; they fell")
    for where, count in fell.most_common():
        print(f"  {count:4d}  {where}")
    changed = sum(len(set(history["wall_clocks_s"])) > 1 for history in done)
    print(f"runs continued under another wall clock: {changed}")
    print(f"kills that took the line of a window not told yet: {sum(h['late'] for h in done)}")
    print(
        f"processes with a null, the simulated counter being late: {sum(h['null'] for h in done)}"
    )
    print(f"violations: {sum(len(history['violations']) for history in done)}")


if __name__ == "__main__":
    sys.exit(main())
