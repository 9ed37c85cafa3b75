"""Every family of networks on a GPU: J per update, time beside torch.compile, share of the peak.

    benchmarks/gpu.sh zoo

Each network is trained by the program that `experiments.run` compiles, in bfloat16 and float32, on
random data that lies on the device: as many updates in a call as a run makes, the state donated,
nothing fetched. PyTorch's twin makes the same updates by `torch.compile`, and by `torch.compile`
with each update replayed as one CUDA graph, where PyTorch is installed. They take turns, in random
order, in windows at whose end alone the device is waited for. Factors of float32 products are
rounded to TF32 by all. Operations are three times the forward pass's products, whatever computes
them; the peak is that of a product of matrices, measured here in the same precision.

Then, JAX alone: `NETWORK_PRECISION_forms` holds the default against plain Flax where forms are
taken, and against the default without each of several; and `NETWORK_PRECISION_kernels` tells which
kernels take an update's time.
"""

import collections
import dataclasses
import functools
import gc
import math
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gpu_measure import make_product
from gpu_stage import Check, Stage, Unfinished, run_stage

from jaxenergy.errors import RunError, UsageError
from jaxenergy.meters import Meters
from jaxenergy.units import format_si

Call = Callable[[], None]
Wait = Callable[[], None]

PRECISIONS = ("bfloat16", "float32")
_PEAK_SIZE, _PEAK_SECONDS = 8192, 10.0
# Of measuring a network: windows of three trainings by turns last 0.6 s, six ticks of NVML.
_SECONDS = 20.0
# Importing, both compilers, first updates. On an H100 an MLP's took 38 s, a CNN's 77 s, those of
# ResNet-20 and of a wide ResNet 122 s.
_PREPARING_S = 125.0
# Before measuring: what compiles, chooses or captures at first use (PyTorch a CUDA graph in its
# fourth update) has done so then.
_FIRST_UPDATES = 8
# JAX alone: two to four programs, of which an H200 took up to 99 s for the first; and one program
# with its trace.
_PREPARING_FORMS_S, _KERNELS_S = 160.0, 130.0
_KERNELS_TOLD, _TRACED_CALLS = 12, 3
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


@dataclasses.dataclass(frozen=True)
class Training:
    """A framework's training after its first updates.

    Attributes:
        call: makes as many updates more as a call does.
        wait: waits until the device has done all of them.
        losses: the mean losses of the updates of its first call and of its last before measuring.
        gives: the dtypes that kinds of layers give, by the kind; empty where nothing else than what
            was asked for can be.
        preparing_s: how long it took to get there; of JAX's without compiling, of PyTorch's with
            it, and of the first one in a process with importing PyTorch.
    """

    call: Call
    wait: Wait
    losses: tuple[float, float]
    gives: Mapping[str, str] = dataclasses.field(default_factory=dict)
    preparing_s: float = 0.0


def begin_jax(programs: Any, state: Any, updates: int) -> Training:
    """Makes the first updates, by calls of `updates` in one program; donates the state."""
    import jax

    states, losses = [state], []

    def call() -> Any:
        states[0], metrics = programs.train(states[0], 0, updates)  # in the first epoch's order
        return metrics

    for _ in range(-(-_FIRST_UPDATES // updates)):
        losses.append(float(call().loss))
    return Training(call, lambda: jax.block_until_ready(states[0]), (losses[0], losses[-1]))


def begin_torch(
    programs: Any, variables: Mapping[str, Any], updates: int, mode: str, device: str
) -> Training:
    """Makes the twin's first updates, from the same weights and with the same batches."""
    import numpy as np

    from jaxenergy import torch_twin
    from jaxenergy.torch_twin.process import set_up

    set_up(threads=os.cpu_count() or 1, tf32=True if device == "cuda" else None, device=device)
    plan = programs.plan
    training = torch_twin.build_training(plan.program, variables, mode=mode, device=device)  # type: ignore[arg-type]
    size, examples = plan.config.batch_size, len(plan.dataset.train.labels)
    order = training.to_device(np.asarray(programs.orders(0))[0])
    batches = [order[begin : begin + size] for begin in range(0, examples - size + 1, size)]
    gives = training.layer_dtypes(batches[0])  # now: what is compiled must not see its hooks
    made = [0]

    def update() -> None:
        training.update(batches[made[0] % len(batches)])
        made[0] += 1

    def call() -> None:
        for _ in range(updates):
            update()

    means = []
    for _ in range(-(-_FIRST_UPDATES // updates)):
        losses = []
        for _ in range(updates):
            update()
            losses.append(training.loss())
        means.append(math.fsum(losses) / updates)
    return Training(call, training.fence, (means[0], means[-1]), gives)


def begin_trainings(
    programs: Any, updates: int, modes: Sequence[str], device: str
) -> tuple[dict[str, Training], dict[str, str]]:
    """Each framework's training, after its first updates.

    Args:
        programs: the training, as a run compiles it.
        updates: of a call.
        modes: PyTorch's; none where it is not installed.
        device: `cpu` or `cuda`.

    Returns:
        The trainings by framework, JAX first; and why others failed.
    """
    import jax

    state = programs.init(programs.state_key)
    variables = jax.device_get({"params": state.params, "batch_stats": state.batch_stats})
    trainings = {"jax": _timed(begin_jax, programs, state, updates)}
    failed = {}
    for mode in modes:
        try:
            trainings[f"torch_{mode}"] = _timed(
                begin_torch, programs, variables, updates, mode, device
            )
        except Exception as error:  # whatever PyTorch can't do, JAX is measured all the same
            traceback.print_exc()
            failed[f"torch_{mode}"] = f"{type(error).__name__}: {error}"[:2000]
            if mode == "cuda_graphs":
                _failed_graphs.append(failed[f"torch_{mode}"])
                _leave_stream_of_capture()
    return trainings, failed


def _timed(begin: Callable[..., Training], *given: Any) -> Training:
    begun_s = time.monotonic()
    training = begin(*given)
    return dataclasses.replace(training, preparing_s=time.monotonic() - begun_s)


# PyTorch 2.11 takes a capture that failed for one still under way, and gives no memory back since:
# the next network needs another process.
_failed_graphs: list[str] = []


def _leave_stream_of_capture() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_stream(torch.cuda.default_stream())


def measure_trainings(
    trainings: Mapping[str, Training], meters: Meters, seconds: float
) -> tuple[Mapping[str, Any], dict[str, Mapping[str, Any]]]:
    """Measures trainings by turns, call by call.

    A call takes the state that the one before it left, so that the newest state is done when all
    calls are: it alone is waited for, at the end of a window. Waiting within would let the device
    stand still while the host begins the next call. How far the host runs ahead is bounded by the
    window, and by each framework's queue.

    Returns:
        Each one's measurement, and their ratios to the first, `time` and `energy`.
    """
    from jaxenergy.measuring import compare, measure

    def fence(outputs: Any) -> None:
        del outputs  # states are donated from call to call: what is there now is waited for
        for training in trainings.values():
            training.wait()

    given: dict[str, Any] = {
        "carry": lambda out, args: args,
        "fence": fence,
        "meters": meters,
        "max_seconds": seconds,
    }
    functions = {name: training.call for name, training in trainings.items()}
    if len(functions) == 1:
        ((name, call),) = functions.items()
        return {name: measure(call, **given)}, {}
    compared = compare(functions, **given)
    return compared.measurements, {"time": compared.time_ratios, "energy": compared.energy_ratios}


def build_network_plan(
    name: str, platform: str, precision: str, *, smoke: bool, forms: str = "auto"
) -> Any:
    """The plan of one network's training, of the size that is measured, without evaluations."""
    from zoo import CASES, build_plan

    settings: dict[str, Any] = {"precision": precision, "forms": forms}
    if smoke:
        settings |= {"width": 1 if name == "wide_resnet" else 8, "batch_size": 16}
    elif CASES[name].dataset == CASES["mlp"].dataset:
        settings |= _IMAGES
    return dataclasses.replace(build_plan(name, platform, **settings), eval_batch_sizes={})


def check_network(stage: Stage, name: str, precision: str, seconds: float) -> dict[str, Any]:
    """Measures one network's updates in both frameworks, by turns."""
    import jax
    from zoo import forward_flops

    from jaxenergy.frameworks.summary import why_losses_differ
    from jaxenergy.training.programs import compile_programs, transfer

    if _failed_graphs:
        raise Unfinished("a CUDA graph failed before, which PyTorch cannot leave behind")
    _free_memory()
    smoke, platform = stage.options.smoke, jax.default_backend()
    plan = build_network_plan(name, platform, precision, smoke=smoke)
    begun_s = time.monotonic()
    programs = compile_programs(plan, transfer(plan), platform)
    compile_s = time.monotonic() - begun_s
    # On a CPU, where this is only tried, calls of many updates and torch.compile take too long.
    updates = 1 if smoke else programs.updates_per_call
    modes = ("eager",) if smoke else ("compile", "cuda_graphs")
    device, without = "cuda" if platform == "gpu" else "cpu", why_without_torch()
    trainings, failed = begin_trainings(programs, updates, () if without else modes, device)
    why = {f"torch_{mode}": without for mode in modes} if without else failed
    with stage.rig.open_meters() as meters:
        measurements, ratios = measure_trainings(trainings, meters, seconds)
    flops = 3 * plan.config.batch_size * forward_flops(plan.program.model)
    peak = stage.result(f"peak_{precision}")
    results, says = {}, []
    for framework, found in measurements.items():
        if found.seconds_per_call is None:
            raise RunError(f"{framework}: nothing was measured: {dict(found.why)}")
        flop_per_s = flops / (found.seconds_per_call / updates)
        results[framework] = {
            "measurement": dataclasses.asdict(found),
            "losses": trainings[framework].losses,
            "layers_give": trainings[framework].gives,
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
        says += [
            f"{framework}'s {layer} gives {dtype}, where {precision} was asked for"
            for layer, dtype in trainings[framework].gives.items()
            if not {precision, "float32"}.issuperset(dtype.split("+"))
        ]
    preparing_s = {name: training.preparing_s for name, training in trainings.items()}
    preparing_s["jax"] += compile_s
    says.append(
        "before measuring: "
        + ", ".join(f"{name} {seconds:.0f} s" for name, seconds in preparing_s.items())
    )
    processes = [
        {"framework": name, "first_losses": training.losses} for name, training in trainings.items()
    ]
    differ = why_losses_differ(processes, precision)
    if differ:
        says.append(f"NOT THE SAME TRAINING: {differ}")
    missing = list(failed)
    if not smoke and any(found.per_call_j is None for found in measurements.values()):
        missing.append("joules")
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
        "preparing_s": preparing_s,
        "frameworks": results,
        **{
            f"{what}_over_jax": {
                framework: None if ratio is None else dataclasses.asdict(ratio)
                for framework, ratio in by_framework.items()
            }
            for what, by_framework in ratios.items()
        },
        "losses_differ": differ,
        "why": why,
        "says": says
        + [f"{framework} was not measured: {w.splitlines()[0]}" for framework, w in why.items()],
        **({"failed": f"without {' and '.join(missing)}"} if missing else {}),
    }


def leave_out(plan: Any, form: str) -> Any:
    """The same plan without one of the forms it takes."""
    left = tuple(name for name in plan.forms if name != form)
    model = dataclasses.replace(plan.program.model, forms=left)
    program = dataclasses.replace(plan.program, model=model)
    return dataclasses.replace(plan, program=program, forms=left)


def check_forms(stage: Stage, name: str, precision: str, seconds: float) -> dict[str, Any]:
    """Measures a network's updates with forms, without each of several, and in plain Flax.

    They take turns; so many seconds are for two of them.
    """
    import jax

    from jaxenergy.frameworks.summary import why_losses_differ
    from jaxenergy.training.programs import compile_programs, transfer

    _free_memory()
    smoke, platform = stage.options.smoke, jax.default_backend()
    plan, plain = (
        build_network_plan(name, platform, precision, smoke=smoke, forms=forms)
        for forms in ("auto", "plain")
    )
    if not plan.forms:
        return {"forms": [], "says": ["no form is taken"]}
    plans = {"default": plan, "plain Flax": plain}
    if len(plan.forms) > 1:
        told = plan.forms[:1] if smoke else plan.forms
        plans |= {f"without {form}": leave_out(plan, form) for form in told}
    compiled = {
        label: compile_programs(each, transfer(each), platform) for label, each in plans.items()
    }
    longest = {programs.updates_per_call for programs in compiled.values()}
    updates = longest.pop() if len(longest) == 1 and not smoke else 1
    trainings = {
        label: begin_jax(programs, programs.init(programs.state_key), updates)
        for label, programs in compiled.items()
    }
    with stage.rig.open_meters() as meters:
        measurements, ratios = measure_trainings(trainings, meters, seconds * len(plans) / 2)
    processes = [
        {"framework": label, "first_losses": training.losses}
        for label, training in trainings.items()
    ]
    differ = why_losses_differ(processes, precision)
    says = [f"by default with {', '.join(plan.forms)}"]
    says += [f"NOT THE SAME TRAINING: {differ}"] if differ else []
    for label, found in measurements.items():
        if found.seconds_per_call is None:
            raise RunError(f"{label}: nothing was measured: {dict(found.why)}")
        joules = "J unknown"
        if found.per_call_j is not None:
            joules = format_si(found.per_call_j / updates, "J")
        took = format_si(found.seconds_per_call / updates, "s")
        says.append(f"{label}: {joules} and {took} an update")
    joules_known = all(found.per_call_j is not None for found in measurements.values())
    says += [
        f"{label} takes {ratio} times the default's {what}"
        for what, by_label in ratios.items()
        for label, ratio in by_label.items()
        if ratio is not None
    ]
    return {
        "forms": list(plan.forms),
        "updates_per_call": updates,
        "losses": {label: training.losses for label, training in trainings.items()},
        "losses_differ": differ,
        "measurements": {label: dataclasses.asdict(m) for label, m in measurements.items()},
        **{
            f"{what}_over_default": {
                label: None if ratio is None else dataclasses.asdict(ratio)
                for label, ratio in by_label.items()
            }
            for what, by_label in ratios.items()
        },
        "says": says,
        **({} if smoke or joules_known else {"failed": "without joules"}),
    }


def sum_kernels(
    planes: Iterable[Any], updates: int
) -> tuple[collections.Counter[str], collections.Counter[str]]:
    """Of a trace of so many updates: each kernel's seconds and launches of one, by its name."""
    seconds: collections.Counter[str] = collections.Counter()
    launches: collections.Counter[str] = collections.Counter()
    for plane in planes:
        for line in plane.lines if "GPU" in plane.name else ():
            for event in line.events if "Stream" in line.name else ():
                seconds[event.name] += event.duration_ns / 1e9 / updates
                launches[event.name] += 1 / updates
    return seconds, launches


def check_kernels(stage: Stage, name: str, precision: str) -> dict[str, Any]:
    """Which kernels the time of JAX's update goes to, by its profiler; nothing is metered."""
    import jax

    from jaxenergy.training.programs import compile_programs, transfer

    _free_memory()
    smoke, platform = stage.options.smoke, jax.default_backend()
    plan = build_network_plan(name, platform, precision, smoke=smoke)
    programs = compile_programs(plan, transfer(plan), platform)
    updates = 1 if smoke else programs.updates_per_call
    training = begin_jax(programs, programs.init(programs.state_key), updates)
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(_TRACED_CALLS):
                training.call()
            training.wait()
        (trace,) = Path(folder).rglob("*.xplane.pb")
        planes = jax.profiler.ProfileData.from_file(str(trace)).planes
        seconds, launches = sum_kernels(planes, _TRACED_CALLS * updates)
    if not seconds and not smoke:
        raise RunError("the profiler saw no kernel")
    total = math.fsum(seconds.values())
    kernels = [
        {"name": kernel, "seconds_per_update": s, "launches_per_update": launches[kernel]}
        for kernel, s in seconds.most_common(_KERNELS_TOLD)
    ]
    return {
        "kernel_seconds_per_update": total,
        "launches_per_update": math.fsum(launches.values()),
        "kernels": kernels,
        "says": [f"{format_si(total, 's')} of kernels an update"]
        + [
            f"{s / total:6.1%}, {launches[kernel]:.0f} launches: {kernel[:70]}"
            for kernel, s in seconds.most_common(_KERNELS_TOLD)
        ],
    }


def why_without_torch() -> str | None:
    """Why there is no PyTorch; None where there is."""
    try:
        import jaxenergy.torch_twin  # noqa: F401
    except UsageError as error:
        return str(error)
    return None


def _free_memory() -> None:
    """Gives back what the network before took of the card, which both frameworks share."""
    gc.collect()  # a compiled training and its network refer to each other
    if "torch" in sys.modules:
        import torch

        torch.cuda.empty_cache()


def make_checks(stage: Stage) -> list[Check]:
    """The checks of this stage: for each precision the peak, then each network."""
    from zoo import CASES

    seconds = 4.0 if stage.options.smoke else _SECONDS
    at_most_s, peak_s = seconds + _PREPARING_S, min(seconds, _PEAK_SECONDS)
    checks = []
    for p in PRECISIONS:
        checks.append(
            Check(f"peak_{p}", peak_s + 4, functools.partial(check_peak, stage, p, peak_s))
        )
        checks += [
            Check(f"{n}_{p}", at_most_s, functools.partial(check_network, stage, n, p, seconds))
            for n in CASES
        ]
    # Last the kernels: a profiler is in the process then.
    for p in PRECISIONS:
        for n in CASES:
            run = functools.partial(check_forms, stage, n, p, seconds)
            checks.append(Check(f"{n}_{p}_forms", 2 * seconds + _PREPARING_FORMS_S, run))
    for p in PRECISIONS:
        for n in CASES:
            run = functools.partial(check_kernels, stage, n, p)
            checks.append(Check(f"{n}_{p}_kernels", _KERNELS_S, run))
    return checks


if __name__ == "__main__":
    # Both frameworks take of the card's memory as they need it.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    run_stage("zoo", __doc__, make_checks, computes=True)
