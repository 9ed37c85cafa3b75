"""Looks at a machine and at a sweep's configs before anything is started, in a process of its own.

JAX takes most of a GPU's memory and threads of the CPU, which the sweep must leave to its runs; so
what needs JAX (is there such an optimizer, does this depth exist, what device is this) is asked of
a child, which ends before the first run begins.
"""

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

from jaxenergy.config import PROTOCOL, RunConfig
from jaxenergy.errors import RunError, UsageError
from jaxenergy.meters import Device, open_meters
from jaxenergy.sweeps.conditions import Conditions, conditions_of
from jaxenergy.sweeps.design import Sweep

# Counting operations takes some 0.2 s a set-up; of more set-ups than this, none is counted.
_MOST_COUNTED = 60


@dataclasses.dataclass(frozen=True)
class Size:
    """How much work a run is.

    Attributes:
        updates: updates of the whole run.
        parameters: trained parameters.
        batch_size: examples per update.
        flops_per_update: operations of one update before XLA's optimisations; None where not known.
    """

    updates: int
    parameters: int
    batch_size: int
    flops_per_update: float | None


@dataclasses.dataclass(frozen=True)
class Survey:
    """What was found.

    Attributes:
        sizes: by run id.
        conditions: by run id, as they will be here; empty where this machine was not looked at.
        digests: of the data of each run, by run id.
        optimizer_digests: of the file of each run's optimizer, where that is a plug-in, by run id.
        devices: what has to be locked: `cpu`, and the GPUs' uuids.
        startup_s: what a process takes until it can begin.
    """

    sizes: Mapping[str, Size]
    conditions: Mapping[str, Conditions]
    digests: Mapping[str, str]
    optimizer_digests: Mapping[str, str]
    devices: tuple[str, ...]
    startup_s: float


def _ask(question: Mapping[str, Any], environment: Mapping[str, str] | None = None) -> Any:
    """The child's answer.

    Raises:
        UsageError: a config cannot be run; the message says which and why.
        RunError: the child failed.
    """
    ended = subprocess.run(
        [sys.executable, "-m", "jaxenergy.sweeps.survey"],
        input=json.dumps(question),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false", **(environment or {})},
    )
    try:
        answer = json.loads(ended.stdout)
    except ValueError:
        raise RunError(
            f"Looking at the machine failed with status {ended.returncode}: "
            f"{ended.stderr.strip()[-500:] or 'no message'}"
        ) from None
    if "refused" in answer:
        raise UsageError(answer["refused"])
    return answer


def survey(sweep: Sweep, *, machine: bool = True) -> Survey:
    """Checks every config as far as that can be done without running it.

    Args:
        sweep: the runs.
        machine: whether the runs will be run on this machine: its device and meters are then
            looked at, too. Otherwise JAX is kept off its devices.

    Returns:
        What was found.

    Raises:
        UsageError: a config cannot be run; the message says which and why.
        RunError: the child failed.
    """
    # Runs that differ in their seed alone have one size; one of each is looked at.
    keys = {cell.run_id: cell.config.setup_id for cell in sweep.cells}
    configs: dict[str, RunConfig] = {}
    for cell in sweep.cells:
        configs.setdefault(keys[cell.run_id], cell.config)
    question = {
        "plans": True,
        "machine": machine,
        "configs": {key: dataclasses.asdict(config) for key, config in configs.items()},
    }
    begun_s = time.monotonic()
    answer = _ask(question, None if machine else {"JAX_PLATFORMS": "cpu"})
    conditions = {}
    if machine:
        conditions = {
            run_id: Conditions.from_json(answer["conditions"][key]) for run_id, key in keys.items()
        }
    return Survey(
        sizes={run_id: Size(**answer["sizes"][key]) for run_id, key in keys.items()},
        conditions=conditions,
        digests={run_id: answer["digests"][key] for run_id, key in keys.items()},
        optimizer_digests={
            run_id: answer["optimizer_digests"][key]
            for run_id, key in keys.items()
            if key in answer["optimizer_digests"]
        },
        devices=tuple(answer["devices"]),
        startup_s=max(0.0, time.monotonic() - begun_s - answer["work_s"]),
    )


def find_devices(meters: str, powercap_root: str) -> tuple[str, ...]:
    """What has to be locked here by whoever meters without a sweep: see `Survey.devices`."""
    config = RunConfig(meters=meters, powercap_root=powercap_root)
    question = {
        "plans": False,
        "machine": True,
        "configs": {config.setup_id: dataclasses.asdict(config)},
    }
    return tuple(_ask(question)["devices"])


def _look(question: Mapping[str, Any]) -> dict[str, Any]:
    """In the child: builds every plan that is asked for, opens the meters that runs will open."""
    from jaxenergy import runtime

    runtime.prepare()

    from jaxenergy.optimizers import parse_args, read_plug_in_source
    from jaxenergy.training.session import load_source, one_device

    begun_s = time.monotonic()
    configs = {key: RunConfig(**values) for key, values in question["configs"].items()}
    sizes, digests, optimizer_digests, datasets = {}, {}, {}, {}
    platform = one_device().platform if question["plans"] else ""
    for key, config in configs.items() if question["plans"] else ():
        which = (config.dataset, config.data_dir)
        try:
            if which not in datasets:
                datasets[which] = load_source(config)
            digests[key] = datasets[which].digest
            counted = len(configs) <= _MOST_COUNTED
            sizes[key] = _size(config, datasets[which], platform, counted)
            code = read_plug_in_source(config.optimizer, parse_args(config.optimizer_args))
            if code is not None:
                optimizer_digests[key] = code["digest"]
        except UsageError as error:
            raise UsageError(_with_flags(str(error), config, configs)) from error
    conditions, devices = {}, set()
    if question["machine"]:
        conditions, devices = _look_at_machine(configs)
    return {
        "sizes": {key: dataclasses.asdict(size) for key, size in sizes.items()},
        "conditions": conditions,
        "digests": digests,
        "optimizer_digests": optimizer_digests,
        "devices": sorted(devices),
        "work_s": time.monotonic() - begun_s,
    }


def _with_flags(message: str, config: RunConfig, configs: Mapping[str, RunConfig]) -> str:
    """A refusal, with the settings in which the refused config is one among several."""
    names = [field.name for field in dataclasses.fields(RunConfig) if field.name != "seed"]
    varied = [n for n in names if len({getattr(c, n) for c in configs.values()}) > 1]
    flags = " ".join(f"--{name}={getattr(config, name)}" for name in varied)
    lines = message.splitlines()
    return "\n".join([*lines[:2], f"In the cell {flags}."]) if flags else message


def _size(config: RunConfig, dataset: Any, platform: str, counted: bool) -> Size:
    from jaxenergy.training.control import ControlPlan
    from jaxenergy.training.session import make_any_plan

    plan = make_any_plan(config, dataset, platform)
    return Size(
        updates=plan.total_updates,
        parameters=plan.parameters,
        batch_size=config.batch_size,
        flops_per_update=(
            _count_flops(plan) if counted and not isinstance(plan, ControlPlan) else None
        ),
    )


def _count_flops(plan: Any) -> float | None:
    """Operations of one update as traced; None where a loop hides them, as in a run's record."""
    import jax
    import jax.numpy as jnp

    from jaxenergy.flops import count_flops_as_written
    from jaxenergy.training.steps import DeviceSplit, fixed_iterations, make_init, make_updates

    program = dataclasses.replace(plan.program, unroll_accumulation=True)
    if program.model.recurrent or program.optimizer.row.uncounted:
        return None
    if fixed_iterations(program) is None:
        return None
    train = plan.dataset.train
    state = jax.eval_shape(make_init(program), jax.random.key(0))
    split = DeviceSplit(
        *(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in (train.inputs, train.labels))
    )
    orders = jax.ShapeDtypeStruct((2, len(train.labels)), jnp.int32)
    return count_flops_as_written(make_updates(program, 1), (state, split, orders))


def _look_at_machine(configs: Mapping[str, RunConfig]) -> tuple[dict[str, Any], set[str]]:
    """The conditions of each config here, and the devices that must not be shared."""
    from jaxenergy.measuring import read_jax_devices
    from jaxenergy.records.environment import read_environment

    device = read_jax_devices()[0]
    found: dict[tuple[str, str], dict[str, Any]] = {}
    locked: set[str] = set()
    for config in configs.values():
        which = (config.meters, config.powercap_root)
        if which in found:
            continue
        with open_meters(config.meters, [device], powercap_root=config.powercap_root) as meters:
            environment = read_environment(devices=[device], meters=meters, runtime={})
            found[which] = conditions_of(
                environment, PROTOCOL, meters.provenance, meters.counted_domains
            ).to_json()
            gpus = meters.describe().get("nvml", {}).get("gpus", {})
            for domain in meters.domains:
                name = domain.name.partition("@")[0]
                locked.add(gpus[name]["uuid"] if name in gpus else "cpu")
        if device.platform == "cpu":
            locked.add("cpu")
        elif not gpus:  # it is not metered, and still must not be shared
            locked.add(_name_of_gpu(device))
    conditions = {
        key: found[config.meters, config.powercap_root] for key, config in configs.items()
    }
    return conditions, locked


def _name_of_gpu(device: Device) -> str:
    """An unmetered GPU by its uuid, as a sweep that meters it calls it; else by its number."""
    with contextlib.suppress(UsageError), open_meters("nvml", [device]) as meters:
        (gpu,) = meters.describe()["nvml"]["gpus"].values()
        return gpu["uuid"]
    return f"gpu-{os.environ.get('CUDA_VISIBLE_DEVICES', device.index)}"


def main() -> None:
    """The child: a question on stdin, an answer on stdout."""
    answer_to = os.dup(1)
    os.dup2(2, 1)  # whatever a library prints is not the answer
    try:
        answer = _look(json.load(sys.stdin))
    except UsageError as error:
        answer = {"refused": str(error)}
    with open(answer_to, "w") as file:
        json.dump(answer, file)


if __name__ == "__main__":
    main()
