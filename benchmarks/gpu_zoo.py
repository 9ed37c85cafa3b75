"""Every family of networks on a GPU: J per update, time beside torch.compile, share of the peak.

    benchmarks/gpu.sh zoo

Each network is trained by the program that `experiments.run` compiles, in bfloat16 and float32, on
random data that lies on the device: many updates in a scan, the state donated, nothing fetched.
PyTorch's twin makes the same updates by `torch.compile`, and by `torch.compile` with each update
replayed as one CUDA graph, where PyTorch is installed. They take turns, in random order. Factors of
float32 products are rounded to TF32 by all. Operations are three times the forward pass's products,
whatever computes them; the peak is that of a product of matrices, measured here in the same
precision.
"""

import dataclasses
import functools
import os
from collections.abc import Callable
from typing import Any

from gpu_measure import make_product
from gpu_stage import Check, Stage, run_stage

from jaxenergy.errors import RunError
from jaxenergy.units import format_si

PRECISIONS = ("bfloat16", "float32")
_PEAK_SIZE = 8192
_UPDATES = 16  # of a call
# What the CPU's batch of images, 128, leaves idle; its 128 sequences of 256 tokens do not.
_IMAGES = {"dataset": "synthetic:32x32x3,examples=16384", "batch_size": 512}


def check_peak(stage: Stage, precision: str, seconds: float) -> dict[str, Any]:
    """The most operations per second that a product of matrices reaches here."""
    from jaxenergy.measuring import measure

    kernel = make_product(128 if stage.options.smoke else _PEAK_SIZE, precision)
    with stage.rig.open_meters() as meters:
        found = measure(kernel.fn, *kernel.args, meters=meters, max_seconds=seconds)
    if found.seconds_per_call is None:
        raise RunError(f"nothing was measured: {dict(found.why)}")
    flop_per_s = kernel.flops / found.seconds_per_call
    return {"flop_per_s": flop_per_s, "says": [f"{format_si(flop_per_s, 'FLOP/s')}"]}


def make_jax_call(plan: Any, updates: int) -> tuple[Callable[[], None], Callable[[], None]]:
    """A call of `updates` updates in one program, and what waits for the state it left."""
    import jax

    from jaxenergy.training.programs import transfer
    from jaxenergy.training.steps import make_init, make_orders, make_updates

    train = transfer(plan)["train"]
    state = jax.jit(make_init(plan.program))(jax.random.key(0))
    orders = jax.jit(make_orders(train.labels.shape[0]))(jax.random.key(1), 0)
    update = jax.jit(make_updates(plan.program, updates), donate_argnums=0)
    states = [state]

    def call() -> None:
        states[0], _ = update(states[0], train, orders)

    def wait() -> None:
        jax.block_until_ready(states[0])

    call()  # compiles
    wait()
    return call, wait


def make_torch_call(
    plan: Any, updates: int, mode: str, device: str
) -> tuple[Callable[[], Any], Callable[[], None]]:
    """A call of as many updates of the twin, and what waits for it."""
    import jax
    import numpy as np

    from jaxenergy import torch_twin
    from jaxenergy.torch_twin.process import set_up

    set_up(threads=os.cpu_count() or 1, tf32=True if device == "cuda" else None, device=device)
    variables = jax.device_get(jax.jit(plan.program.model.init)(jax.random.key(0)))
    training = torch_twin.build_training(plan.program, variables, mode=mode, device=device)  # type: ignore[arg-type]
    size, examples = plan.config.batch_size, len(plan.dataset.train.labels)
    order = training.to_device(np.random.default_rng(0).permutation(examples))
    batches = [order[begin : begin + size] for begin in range(0, examples - size + 1, size)]
    made = [0]

    def call() -> None:
        for _ in range(updates):
            training.update(batches[made[0] % len(batches)])
            made[0] += 1

    call()  # compiles
    training.fence()
    return call, training.fence


def build_network_plan(name: str, platform: str, precision: str, *, smoke: bool) -> Any:
    """The plan of one network's training, of the size that is measured."""
    from zoo import CASES, build_plan

    settings: dict[str, Any] = {"precision": precision}
    if smoke:
        settings |= {"width": 1 if name == "wide_resnet" else 8, "batch_size": 16}
    elif CASES[name].dataset == CASES["mlp"].dataset:
        settings |= _IMAGES
    return build_plan(name, platform, **settings)


def check_network(stage: Stage, name: str, precision: str, seconds: float) -> dict[str, Any]:
    """Measures one network's updates in both frameworks, by turns."""
    import jax
    from zoo import forward_flops

    from jaxenergy.measuring import compare, measure

    smoke, platform = stage.options.smoke, jax.default_backend()
    plan = build_network_plan(name, platform, precision, smoke=smoke)
    # On a CPU, where this is only tried, loops of convolutions and torch.compile take too long.
    updates, modes = (1, ("eager",)) if smoke else (_UPDATES, ("compile", "cuda_graphs"))
    calls, waits, why = {}, [], {}
    calls["jax"], wait = make_jax_call(plan, updates)
    waits.append(wait)
    for mode in modes:
        try:
            device = "cuda" if platform == "gpu" else "cpu"
            calls[f"torch_{mode}"], wait = make_torch_call(plan, updates, mode, device)
            waits.append(wait)
        except Exception as error:  # no PyTorch, or what it can't do: JAX is measured all the same
            why[f"torch_{mode}"] = f"{type(error).__name__}: {error}"[-2000:]

    def fence(outputs: Any) -> None:
        del outputs  # states are donated from call to call: what is there now is waited for
        for wait in waits:
            wait()

    with stage.rig.open_meters() as meters:
        given: dict[str, Any] = {"meters": meters, "fence": fence, "max_seconds": seconds}
        if len(calls) > 1:
            compared = compare(calls, **given)
            measurements = compared.measurements
            ratios = {"time": compared.time_ratios, "energy": compared.energy_ratios}
        else:
            measurements, ratios = {"jax": measure(calls["jax"], **given)}, {}
    flops = 3 * plan.config.batch_size * forward_flops(plan.program.model)
    peak = stage.result(f"peak_{precision}")
    results, says = {}, []
    for framework, found in measurements.items():
        if found.seconds_per_call is None:
            raise RunError(f"{framework}: nothing was measured: {dict(found.why)}")
        flop_per_s = flops / (found.seconds_per_call / updates)
        results[framework] = {
            "measurement": dataclasses.asdict(found),
            "seconds_per_update": found.seconds_per_call / updates,
            "j_per_update": None if found.per_call_j is None else found.per_call_j / updates,
            "flop_per_s": flop_per_s,
            "mfu": None if peak is None else flop_per_s / peak["flop_per_s"],
        }
        joules = (
            "J unknown" if found.per_call_j is None else format_si(found.per_call_j / updates, "J")
        )
        share = "" if peak is None else f", {100 * flop_per_s / peak['flop_per_s']:.1f} % of peak"
        says.append(
            f"{framework}: {joules} and {format_si(found.seconds_per_call / updates, 's')} an "
            f"update, {format_si(flop_per_s, 'FLOP/s')}{share}"
        )
    for what, by_framework in ratios.items():
        says += [
            f"{framework} takes {ratio} times JAX's {what}"
            for framework, ratio in by_framework.items()
            if ratio is not None
        ]
    return {
        "parameters": plan.parameters,
        "batch_size": plan.config.batch_size,
        "updates_per_call": updates,
        "flops_per_update": flops,
        "forms": list(plan.forms),
        "frameworks": results,
        **{
            f"{what}_over_jax": {
                framework: None if ratio is None else dataclasses.asdict(ratio)
                for framework, ratio in by_framework.items()
            }
            for what, by_framework in ratios.items()
        },
        "why": why,
        "says": says,
    }


def make_checks(stage: Stage) -> list[Check]:
    """The checks of this stage: for each precision the peak, then each network."""
    from zoo import CASES

    seconds = 3.0 if stage.options.smoke else 10.0
    checks = []
    for p in PRECISIONS:
        checks.append(
            Check(f"peak_{p}", seconds + 4, functools.partial(check_peak, stage, p, seconds))
        )
        checks += [
            # torch.compile takes up to a minute of it.
            Check(f"{n}_{p}", seconds + 60, functools.partial(check_network, stage, n, p, seconds))
            for n in CASES
        ]
    return checks


if __name__ == "__main__":
    # Both frameworks share the card's memory.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    run_stage("zoo", __doc__, make_checks, computes=True)
