"""One process of a comparison: meters one framework, by the same lines of code for all of them.

    python -m jaxenergy.frameworks.worker REQUEST.json RESULT.json

The meters are opened before the framework is imported, so that importing it is part of the account.
One ledger cuts all phases, at the same places in every framework:

    start_up   importing it, waking the device, moving data and weights there, optimizer state
    (other)    what is ours and no framework's: this library, the data set, the plan; left out
    compile    building the update, and its first call to the end
    warmup     more calls, until late compilation is over and a call can be timed
    train      windows of whole calls, each fenced on what its last call returned
    idle       afterwards: everything loaded, nothing running
"""

import ctypes
import math
import os
import signal
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxenergy import runtime
from jaxenergy.config import RunConfig
from jaxenergy.energy import Ledger, updates_per_window
from jaxenergy.energy.windows import estimate_per, idle_power_w
from jaxenergy.errors import RunError, UsageError
from jaxenergy.frameworks import FRAMEWORKS
from jaxenergy.frameworks.inputs import Inputs, read_inputs
from jaxenergy.frameworks.request import Request
from jaxenergy.frameworks.side import Side, read_host_bytes
from jaxenergy.meters import Device, Meters, open_meters
from jaxenergy.meters.cpu_time import OtherProcesses
from jaxenergy.records.environment import read_environment
from jaxenergy.records.files import read_document, write_json_atomic
from jaxenergy.records.summary import add_energy
from jaxenergy.units import NS_PER_S

SCHEMA = 1

# Calls after the first one before any are timed; then losses are held against each other. As many
# for all, and enough that updates made by a captured CUDA graph, which PyTorch has from the fourth
# one on, have moved the parameters of the last one's loss.
_WARMUP_CALLS = 8
_TIMED_S = 0.2  # how long calls are timed before their number in a window is decided
_WINDOWS = 20  # of about equal length, in the seconds asked for
_MIN_WINDOWS = 6
_MIN_WINDOW_S = 0.05
_SETTLE_S = 0.5  # after the work, in which clocks come to rest before idle is measured
_PR_SET_PDEATHSIG = 1

# The stages of the account, and the ledger's label of each.
STAGES = {"start_up": "input", "compile": "compile", "warmup": "warmup"}


def measure(request: Request) -> dict[str, Any]:
    """Meters one framework in this process.

    Args:
        request: what to do.

    Returns:
        The process's record, as docs/frameworks.md describes it.
    """
    runtime_facts = runtime.prepare()  # the allocator, before any framework takes memory
    config = RunConfig.from_json(request.config)
    inputs = read_inputs(Path(request.inputs))
    device = Device(**inputs.facts["device"])
    side = _open_side(request.framework, config, inputs)
    lines: list[dict[str, Any]] = []
    with open_meters(config.meters, [device], powercap_root=config.powercap_root) as meters:
        with Ledger(meters, fence=lambda _: side.fence(), on_line=lines.append) as ledger:
            others = OtherProcesses()
            updates, first_losses = _train(side, ledger, meters, request.seconds)
            busy_cores = others.read_busy_cores()
            peak = _read_peaks(side)
            loss = side.loss()
            if config.idle_seconds and any(d.provenance != "estimated" for d in meters.domains):
                with ledger.phase("other"):
                    time.sleep(_SETTLE_S)
                with ledger.phase("idle"):
                    time.sleep(config.idle_seconds)
        environment = read_environment(devices=[device], meters=meters, runtime=runtime_facts)
    if not math.isfinite(loss):
        raise RunError(
            f"the loss became {loss} after {sum(updates.values())} updates; a lower "
            "--learning_rate may help."
        )
    return {
        "schema": SCHEMA,
        "framework": request.framework,
        **account(lines, updates, meters.counted_domains),
        "provenance": meters.provenance,
        "counted_domains": list(meters.counted_domains),
        "updates": updates,
        "updates_per_call": side.updates_per_call,
        "others_busy_cores": busy_cores[0] if busy_cores else None,
        "first_losses": first_losses if side.updates_per_call == 1 else None,
        "loss": loss,
        "peak_memory": peak,
        "described": side.describe(),
        "environment": environment,
        "lines": lines,
    }


def _train(
    side: Side, ledger: Ledger, meters: Meters, seconds: float
) -> tuple[dict[str, int], list[float]]:
    """Takes a framework from its import through its training.

    Returns:
        The updates made, by stage; and the losses of the first call and of the last one before
        calls are timed, which are to be the same in every framework.
    """
    calls = {"compile": 1, "warmup": 0, "train": 0}
    for label, step in (
        ("other", side.before_start),
        ("input", side.start),
        ("other", side.prepare),
        ("input", side.load),
    ):
        with ledger.phase(label):
            step()
    with ledger.phase("compile") as phase:
        side.build()
        side.call()
        phase.fence()
        first_losses = [side.loss()]
    with ledger.phase("warmup") as phase:
        calls["warmup"] = _WARMUP_CALLS
        for _ in range(_WARMUP_CALLS):
            side.call()
        phase.fence()
        first_losses.append(side.loss())
        timed, elapsed_s = 1, 0.0
        while elapsed_s < min(_TIMED_S, seconds):
            timed *= 2
            start_s = time.perf_counter()
            for _ in range(timed):
                side.call()
            phase.fence()
            elapsed_s = time.perf_counter() - start_s
            calls["warmup"] += timed
    tick_s = max((domain.tick_s for domain in meters.domains if domain.counted), default=0.0)
    window = updates_per_window(
        elapsed_s / timed, tick_s, max_seconds=seconds / _WINDOWS, min_seconds=_MIN_WINDOW_S
    )
    begin_s, windows = time.perf_counter(), 0
    with ledger.phase("train") as phase:
        while time.perf_counter() - begin_s < seconds or windows < _MIN_WINDOWS:
            for _ in range(window):
                side.call()
            phase.cut(updates=window * side.updates_per_call)
            calls["train"] += window
            windows += 1
    updates = {stage: number * side.updates_per_call for stage, number in calls.items()}
    return updates, first_losses


def account(
    lines: Sequence[Mapping[str, Any]], updates: Mapping[str, int], domains: Sequence[str]
) -> dict[str, Any]:
    """What one process tells: joules and seconds of each stage, and of one update.

    Args:
        lines: the ledger's lines, in the order of time.
        updates: how many were made, by stage.
        domains: those that are added.

    Returns:
        `stages`: by stage `energy_j` and `duration_s`; `per_update`: `energy_j`, `duration_s`,
        `power_w` and how many `windows` they come from; `fixed`: what a training takes beside its
        updates; `idle_w`. What is not known is None, with its reason in `why`.
    """
    stages, why = {}, {}
    for stage, label in STAGES.items():
        own = [line for line in lines if line["phase"] == label]
        energy_j, reason = add_energy(own, domains)
        stages[stage] = {"energy_j": energy_j, "duration_s": _duration_s(own)}
        if reason is not None:
            why[f"stages.{stage}.energy_j"] = reason
    train = [line for line in lines if line["phase"] == "train" and line["updates"]]
    per_update, reason = _per_update(train, domains)
    if reason is not None:
        why["per_update.energy_j"] = reason
    first = updates["compile"] + updates["warmup"]
    fixed: dict[str, float | None] = {}
    for unit in ("energy_j", "duration_s"):
        spent = [stage[unit] for stage in stages.values()]
        known = [value for value in (*spent, per_update[unit]) if value is not None]
        fixed[unit] = None
        if len(known) == len(spent) + 1:
            fixed[unit] = math.fsum(known[:-1]) - first * known[-1]
    idle_w = _idle_power_w(lines, domains)
    if isinstance(idle_w, str):
        idle_w, why["idle_w"] = None, idle_w
    told = {"stages": stages, "per_update": per_update, "fixed": fixed, "idle_w": idle_w}
    return {**told, "why": why}


def _per_update(
    train: Sequence[Mapping[str, Any]], domains: Sequence[str]
) -> tuple[dict[str, Any], str | None]:
    """What one update takes, and why its joules are not known.

    Of the steady windows; of all of them where too few are steady, or joules are not known.
    """
    found = estimate_per(train, "updates", domains)
    if not isinstance(found, str):
        energy_j, duration_s, windows = found.energy_j.value, found.duration_s, found.windows
        reason = None
    else:
        updates = sum(line["updates"] for line in train)
        energy_j, reason = add_energy(train, domains)
        energy_j = None if energy_j is None else energy_j / updates
        duration_s, windows = _duration_s(train) / updates, len(train)
    told = {
        "energy_j": energy_j,
        "duration_s": duration_s,
        "power_w": None if energy_j is None else energy_j / duration_s,
        "windows": windows,
    }
    return told, reason


def _idle_power_w(lines: Sequence[Mapping[str, Any]], domains: Sequence[str]) -> float | str:
    """Idle power of all domains together, or why it is not known."""
    idle = [idle_power_w(lines, domain) for domain in domains]
    reasons = [found for found in idle if isinstance(found, str)]
    if reasons or not idle:
        return reasons[0] if reasons else "no domain was counted"
    return math.fsum(found.during.value for found in idle if not isinstance(found, str))


def _duration_s(lines: Sequence[Mapping[str, Any]]) -> float:
    return sum(line["end_ns"] - line["start_ns"] for line in lines) / NS_PER_S


def _open_side(framework: str, config: RunConfig, inputs: Inputs) -> Side:
    """The framework's side, not started: nothing heavy is imported yet."""
    entry = FRAMEWORKS[framework]
    if entry.package == "jax":
        from jaxenergy.frameworks.side_jax import JaxSide

        return JaxSide(config, entry.variant, inputs)
    from jaxenergy.frameworks.side_torch import TorchSide

    return TorchSide(config, entry.variant, inputs)


def _read_peaks(side: Side) -> dict[str, int | None]:
    """The most memory in use at once, of the host and of the device."""
    host_bytes = read_host_bytes("VmHWM")
    if host_bytes is not None:
        host_bytes -= side.scaffold_bytes
    return {"host_bytes": host_bytes, "device_bytes": side.peak_device_bytes()}


def _die_with_parent() -> None:
    """Ends this process when its comparison is killed: the next would share the machine with it."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() == 1:
        os._exit(1)


def main(request_path: str, result_path: str) -> int:
    """Does what a request says; the exit status.

    Bad input ends with 2 and a failure with 1, with the message in the result's `error`.
    """
    _die_with_parent()
    status = 0
    try:
        request = Request(**(read_document(request_path) or {}))
        if request.task == "prepare":
            from jaxenergy.frameworks.preparation import prepare

            result = prepare(request)
        else:
            result = measure(request)
    except UsageError as error:
        status, result = 2, {"error": str(error)}
    except Exception as error:  # whatever a framework or its compiler does; the parent goes on
        traceback.print_exc()
        status, result = 1, {"error": f"{type(error).__name__}: {error}"[-2000:]}
    write_json_atomic(result_path, result)
    return status


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
