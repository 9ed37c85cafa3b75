"""The first process of a comparison: are the two programs the same, and what are they given?

Parity comes before energy. What the check finds is written down; whether to go on is the
comparison's decision.
"""

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np

from jaxenergy import data, runtime
from jaxenergy.config import RunConfig
from jaxenergy.data.pipeline import epoch_orders
from jaxenergy.errors import UsageError
from jaxenergy.frameworks import FRAMEWORKS, Framework
from jaxenergy.frameworks.inputs import EPOCHS, Inputs
from jaxenergy.frameworks.request import Request
from jaxenergy.meters import Device, open_meters
from jaxenergy.training.plan import Plan, make_plan, updates_per_call
from jaxenergy.training.programs import compile_programs, transfer
from jaxenergy.training.steps import make_init


def prepare(request: Request) -> dict[str, Any]:
    """Resolves the training, checks parity, and writes what all processes are given.

    Args:
        request: what to prepare.

    Returns:
        The facts, as written: `parity` is None where only one package is compared.

    Raises:
        UsageError: the training cannot be had in every framework asked for.
    """
    runtime.prepare()
    config = RunConfig.from_json(request.config)
    chosen = {name: FRAMEWORKS[name] for name in request.framework.split(",")}
    torch_twin = _import_torch_twin() if _has_torch(chosen.values()) else None
    device = _one_device()
    for name, entry in chosen.items():
        if entry.needs_gpu and device.platform != "gpu":
            raise UsageError(
                f"--frameworks={name} needs a GPU; JAX computes on {device.platform} here."
            )
    described = Device(platform=device.platform, index=device.id, name=device.device_kind)
    with open_meters(config.meters, [described], powercap_root=config.powercap_root) as meters:
        notes = list(meters.notes)
    dataset = data.load(config.dataset, data_dir=config.data_dir)
    plan = make_plan(config, dataset, device.platform)
    state_key, order_key = jax.random.split(jax.random.key(config.seed))
    state = jax.jit(make_init(plan.program))(state_key)
    variables = {"params": state.params}
    if state.batch_stats:
        variables["batch_stats"] = state.batch_stats
    parity = None
    if torch_twin is not None:
        # Of PyTorch's modes, eager is what decides: compiled ones are held to the same losses in
        # the processes themselves, and compiling for float64 too would take longer than all else.
        where = "cuda" if device.platform == "gpu" else "cpu"
        parity = torch_twin.check_parity(plan.program, variables, device=where).to_json()
    orders = epoch_orders(order_key, 0, EPOCHS, dataset.train.examples)
    facts = {
        "device": dataclasses.asdict(described),
        "meter_notes": notes,
        "tf32": request.tf32 if device.platform == "gpu" else None,
        "updates_per_call": _updates_per_call(plan, device.platform),
        "total_updates": plan.total_updates,
        "resolved": plan.resolved(),
        "parity": parity,
    }
    given = Inputs(facts, np.asarray(orders), jax.tree.map(np.asarray, variables))
    given.write(Path(request.inputs))
    return facts


def _has_torch(chosen: Iterable[Framework]) -> bool:
    return any(framework.package == "torch" for framework in chosen)


def _import_torch_twin() -> ModuleType:
    """The twin, whose import says how to install PyTorch where it is missing."""
    from jaxenergy import torch_twin

    return torch_twin


def _one_device() -> jax.Device:
    devices = jax.devices()
    if len(devices) > 1:
        raise UsageError(
            f"JAX sees {len(devices)} devices; a comparison trains on one.\n"
            "Choose one, e.g. with CUDA_VISIBLE_DEVICES=0."
        )
    return devices[0]


def _updates_per_call(plan: Plan, platform: str) -> int:
    """How many updates a run of this plan makes in one call."""
    if updates_per_call(plan, 1.0, platform) == 1:  # whatever an update costs
        return 1
    return compile_programs(plan, transfer(plan), platform).updates_per_call
