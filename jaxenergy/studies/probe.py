"""Measures what the study `instrument` judges: rounds of idle and of loads, on this machine.

It computes, so it is a process of its own: the process of the studies loads no framework and
leaves the device to the runs.

    python -m jaxenergy.studies.probe OUT.json METERS POWERCAP_ROOT ROUNDS SECONDS

Each round has, in an order drawn anew: idle; products of random matrices; the same of zeros; and
products on and off in turn. Over the whole of it the energy counter is held against integrated
power, where a meter has both. A machine without counters is told so, and nothing is run.
"""

import random
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxenergy.errors import RunError, UsageError
from jaxenergy.meters.base import CrossCheck
from jaxenergy.studies.core import MEASURED, SIMULATED
from jaxenergy.studies.instrument import IDLE, RANDOM, SQUARE, ZEROS
from jaxenergy.units import NS_PER_S

_ORDER = (IDLE, RANDOM, ZEROS, SQUARE)
# Twice of it is a period of the square load: shorter than a tick of NVML and longer than one of
# RAPL, so that the counter has to be right amid ticks and not only at their ends.
_SWITCH_S = 0.037
_SETTLE_S = 0.3
_SIZES = {"cpu": 512, "gpu": 4096}


def run_probe(
    out: Path, meters: str, powercap_root: str, rounds: int, seconds: float
) -> dict[str, Any]:
    """Starts the process and reads what it wrote.

    Args:
        out: the file to write.
        meters: as for `open_meters`.
        powercap_root: where the powercap tree is.
        rounds: how many.
        seconds: of each probe.

    Returns:
        `provenance`, `rows` for `Table`, and `why` there are none.

    Raises:
        UsageError: the meters cannot be had; the message is theirs.
        RunError: the process failed.
    """
    from jaxenergy.records.files import read_document

    command = [sys.executable, "-m", "jaxenergy.studies.probe", str(out)]
    ended = subprocess.run(
        [*command, meters, powercap_root, str(rounds), str(seconds)],
        capture_output=True,
        text=True,
        check=False,
    )
    if ended.returncode == 2:
        raise UsageError(ended.stderr.strip())
    record = read_document(out) if ended.returncode == 0 else None
    if record is None:
        raise RunError(f"The instrument's probe failed:\n{ended.stderr.strip()[-1000:]}")
    return record


def probe(meters_names: str, powercap_root: str, rounds: int, seconds: float) -> dict[str, Any]:
    """Measures in this process.

    Returns:
        As `run_probe`.
    """
    from jaxenergy import runtime

    runtime.prepare()

    import jax
    import jax.numpy as jnp

    from jaxenergy.energy import Ledger
    from jaxenergy.measuring import read_jax_devices
    from jaxenergy.meters import open_meters

    devices = read_jax_devices()[:1]
    with open_meters(meters_names, devices, powercap_root=powercap_root) as meters:
        if meters.provenance not in (MEASURED, SIMULATED):
            why = "; ".join(meters.notes) or "nothing is metered"
            return {"provenance": meters.provenance, "rows": [], "why": why}
        size = _SIZES.get(devices[0].platform, 512)
        product = jax.jit(jnp.dot)
        inputs = {
            RANDOM: jax.random.normal(jax.random.key(0), (size, size)),
            ZEROS: jnp.zeros((size, size)),
        }
        lines: list[Mapping[str, Any]] = []
        done: list[tuple[str, int, float]] = []
        with Ledger(meters, fence=jax.block_until_ready, on_line=lines.append) as ledger:
            for x in inputs.values():
                with ledger.phase("compile") as phase:
                    phase.fence(product(x, x))
            order = random.Random(0)
            checks: list[tuple[CrossCheck, ...]] = []
            meters.cross_checks()  # those of the first round begin here
            for number in range(rounds):
                for name in order.sample(_ORDER, len(_ORDER)):
                    time.sleep(_SETTLE_S)
                    x = inputs.get(name, inputs[RANDOM])
                    if name == IDLE:
                        with ledger.phase("idle"):
                            time.sleep(seconds)
                        done.append((name, number, 0.0))
                        continue
                    with ledger.phase("train", updates=1) as phase:

                        def work(until_s: float, x=x) -> Any:
                            return _work(lambda: product(x, x), until_s, jax.block_until_ready)

                        on_s, last = _load(work, seconds, name == SQUARE)
                        phase.fence(last)
                    done.append((name, number, on_s))
                # Amid a load a part of it would be in the energy of one sensor alone.
                time.sleep(_SETTLE_S)
                checks.append(meters.cross_checks())
        provenance, counted = meters.provenance, meters.counted_domains
    told = [line for line in lines if line.get("phase") in ("idle", "train")]
    rows = [
        _row(name, number, on_s, line, counted, provenance) | _checked(checks[number])
        for (name, number, on_s), line in zip(done, told, strict=True)
    ]
    return {"provenance": provenance, "rows": rows, "why": ""}


def _load(work: Callable[[float], Any], seconds: float, switches: bool) -> tuple[float, Any]:
    """Works for a time, throughout or in turns; gives the seconds of work and the last result."""
    end_s, on_s = time.perf_counter() + seconds, 0.0
    while True:
        begun_s = time.perf_counter()
        last = work(min(end_s, begun_s + _SWITCH_S) if switches else end_s)
        now_s = time.perf_counter()
        on_s += now_s - begun_s
        if switches and now_s < end_s:
            time.sleep(min(_SWITCH_S, end_s - now_s))
        if time.perf_counter() >= end_s:
            return on_s, last


def _work(call: Callable[[], Any], until_s: float, wait: Callable[[Any], Any]) -> Any:
    """Calls until a time, each waited for, and at least once."""
    while True:
        last = wait(call())
        if time.perf_counter() >= until_s:
            return last


def _row(
    name: str,
    number: int,
    on_s: float,
    line: Mapping[str, Any],
    counted: tuple[str, ...],
    provenance: str,
) -> dict[str, Any]:
    """A line of the ledger as a row: watts of the counted domains."""
    duration_s = (line["end_ns"] - line["start_ns"]) / NS_PER_S
    joules = [line["energy_j"].get(domain) for domain in counted]
    total = None if any(j is None for j in joules) else sum(j for j in joules if j is not None)
    return {
        "state": "completed",
        "provenance": provenance,
        "probe": name,
        "round": number,
        "duration_s": duration_s,
        "duty": min(1.0, on_s / duration_s),
        "power_w": None if total is None else total / duration_s,
    }


def _checked(checks: Sequence[CrossCheck]) -> dict[str, float | None]:
    """The joules of a round by energy counters and by integrated power; None without both.

    A second reader of the same counter (a domain `NAME@METER`) says nothing of it.
    """
    return {
        "counter_j": sum(check.energy_j for check in checks) if checks else None,
        "integral_j": sum(check.other_energy_j for check in checks) if checks else None,
    }


def main(arguments: list[str]) -> None:
    """Measures and writes, as the command line says."""
    from jaxenergy.records.files import write_json_atomic

    out, meters, powercap_root, rounds, seconds = arguments
    try:
        record = probe(meters, powercap_root, int(rounds), float(seconds))
    except UsageError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    write_json_atomic(Path(out), record)


if __name__ == "__main__":
    main(sys.argv[1:])
