"""The time of an update on the CPU: this project's own, plain Flax's and PyTorch's, side by side.

    python benchmarks/step_time.py                       every network, in about half an hour
    python benchmarks/step_time.py resnet8 vit           these
    python benchmarks/step_time.py --against=forms cnn   without PyTorch: the default against plain
    python benchmarks/step_time.py cnn --profile         where the time of an update goes

Each contender (the default, plain Flax, PyTorch eager, torch.compile) is a process of its own, with
the same allocator settings, made by the same code (`jaxenergy.runtime`). They take turns in blocks
of updates while the others wait, so that what the machine does meanwhile meets all alike; ratios
are taken within a round and their median is printed with the quartiles of the rounds. PyTorch runs
the same network on the same data from the same weights (`jaxenergy.torch_twin`): channels-last,
with its fused optimizer. The machine should have nothing else to do.

Rows of the table: milliseconds an update (median over rounds), the ratio of the default to the
better PyTorch, floating point operations (3 x the forward pass's products) per second over those
of a 2048^3 product in the same rounds, seconds to compile without and with the persistent cache.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxenergy import runtime
from jaxenergy.errors import unknown_value

BATCH_SIZE = 128
GEMM_SIZE = 2048
_ROUNDS = 9
# After a pause XLA's threads take a second or two to come back to pace: shorter turns tell of that.
_BLOCK_S = 4.0
_CONTENDERS = {
    "all": ("default", "plain", "eager", "compile"),
    "forms": ("default", "plain"),
}


# --- a contender: a process that makes updates when told to ---------------------------------------


def work(contender: str, name: str) -> None:
    """Compiles, then makes as many updates as each line of standard input says, and tells the time.

    Args:
        contender: `default`, `plain`, `eager`, `compile` or `gemm`.
        name: one of `zoo.CASES`.
    """
    runtime.prepare()
    builders = {"default": build_jax, "plain": build_jax, "gemm": build_gemm}
    build = builders.get(contender, build_torch)
    begun_s = time.perf_counter()
    update, facts = build(contender, name)
    # The first updates of torch.compile compile; those of JAX find its programs compiled.
    for _ in range(3):
        update()
    facts.pop("text", None)
    facts["ready_s"] = time.perf_counter() - begun_s
    print(json.dumps(facts), flush=True)
    for line in sys.stdin:
        begun_s = time.perf_counter()
        for _ in range(int(line)):
            update()
        print(json.dumps(time.perf_counter() - begun_s), flush=True)


def build_gemm(contender: str, name: str) -> tuple[Callable[[], None], dict[str, Any]]:
    """A product of square matrices, waited for: what the machine can do."""
    import jax

    left, right = (
        jax.random.normal(jax.random.key(seed), (GEMM_SIZE, GEMM_SIZE)) for seed in (0, 1)
    )
    product = jax.jit(lambda left, right: left @ right)

    def update() -> None:
        jax.block_until_ready(product(left, right))

    return update, {}


def build_jax(contender: str, name: str) -> tuple[Callable[[], None], dict[str, Any]]:
    """The update as `experiments.run` compiles it, of one update a call, fenced each time."""
    import jax
    from zoo import build_plan, forward_flops

    from jaxenergy.training.programs import transfer
    from jaxenergy.training.steps import make_init, make_orders, make_updates

    plan = build_plan(name, "cpu", forms="plain" if contender == "plain" else "auto")
    splits = transfer(plan)
    train = splits["train"]
    state = jax.jit(make_init(plan.program))(jax.random.key(0))
    orders = jax.jit(make_orders(train.labels.shape[0]))(jax.random.key(1), 0)
    lowered = jax.jit(make_updates(plan.program, 1), donate_argnums=0).lower(state, train, orders)
    begun_s = time.perf_counter()
    compiled = lowered.compile()
    compile_s = time.perf_counter() - begun_s
    states = [jax.block_until_ready(state)]

    def update() -> None:
        states[0], metrics = compiled(states[0], train, orders)
        jax.block_until_ready((states[0], metrics))

    facts = {
        "compile_s": compile_s,
        "forms": plan.forms,
        "parameters": plan.parameters,
        "flops": 3 * BATCH_SIZE * forward_flops(plan.program.model),
        "text": compiled.as_text(),
    }
    return update, facts


def build_torch(contender: str, name: str) -> tuple[Callable[[], None], dict[str, Any]]:
    """The twin in PyTorch, on the batches of the same data."""
    import jax
    import numpy as np
    import torch
    from zoo import build_plan

    from jaxenergy import torch_twin

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    plan = build_plan(name, "cpu", forms="plain")
    variables = jax.device_get(jax.jit(plan.program.model.init)(jax.random.key(0)))
    training = torch_twin.build_training(plan.program, variables, mode=contender, device="cpu")  # type: ignore[arg-type]
    examples = len(plan.dataset.train.labels)
    order = np.random.default_rng(0).permutation(examples)
    batches = [training.to_device(batch) for batch in order.reshape(-1, BATCH_SIZE)]
    number = [0]

    def update() -> None:
        training.update(batches[number[0] % len(batches)])
        training.fence()
        number[0] += 1

    return update, {"torch": torch.__version__}


# --- the table ------------------------------------------------------------------------------------


class Contender:
    """A process of `work`, as a context manager.

    Args:
        contender: as `work` takes it.
        name: one of `zoo.CASES`.
        cache: the folder of compiled programs.
    """

    def __init__(self, contender: str, name: str, cache: str):
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]),
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": cache,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
            "TORCHINDUCTOR_CACHE_DIR": os.path.join(cache, "inductor"),
        }
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--work", contender, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.facts = self._read()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a contender ended with status {self._process.wait()}")
        return json.loads(line)

    def seconds(self, count: int) -> float:
        """The time of one of `count` updates in a row."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{count}\n")
        self._process.stdin.flush()
        return self._read() / count

    def __enter__(self) -> "Contender":
        return self

    def __exit__(self, *exception: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def compare(name: str, contenders: Sequence[str], rounds: int) -> dict[str, Any]:
    """Times the contenders by turns; seconds by contender and round, and what they said."""
    with tempfile.TemporaryDirectory() as cache:
        # A process that has compiled is slower by some per cent than one that found the program in
        # the cache, whatever the program: those that are timed all find theirs.
        cold = {}
        for c in ("default", "plain"):
            with Contender(c, name, cache) as first:
                cold[c] = first.facts["compile_s"]
        order = (*contenders, "gemm")
        running = {c: Contender(c, name, cache) for c in order}
        try:
            counts = {
                c: max(1, round(_BLOCK_S / min(process.seconds(1), process.seconds(1))))
                for c, process in running.items()
            }
            times: dict[str, list[float]] = {c: [] for c in order}
            for turn in range(rounds):
                for c in order if turn % 2 == 0 else reversed(order):
                    times[c].append(running[c].seconds(counts[c]))
            facts = {c: process.facts for c, process in running.items()}
        finally:
            for process in running.values():
                process.__exit__()
        facts["default"] |= {
            "compile_s": cold["default"],
            "cached_compile_s": facts["default"]["compile_s"],
        }
    return {"times": times, "facts": facts}


def summarise(name: str, found: Mapping[str, Any]) -> str:
    """A row of the table."""
    times, facts = found["times"], found["facts"]
    median_ms = {c: 1e3 * statistics.median(ts) for c, ts in times.items()}
    default = facts["default"]
    shown = [name, *(f"{median_ms[c]:.4g}" for c in times if c != "gemm")]
    against = [c for c in ("eager", "compile") if c in times]
    if against:
        best = min(against, key=median_ms.__getitem__)
        shown.append(_ratio(times["default"], times[best]))
    shown.append(_ratio(times["default"], times["plain"]))
    share = [
        default["flops"] / step / (2 * GEMM_SIZE**3 / product)
        for step, product in zip(times["default"], times["gemm"], strict=True)
    ]
    flop_per_s = default["flops"] / statistics.median(times["default"])
    shown += [
        f"{flop_per_s / 1e9:.0f}",
        f"{100 * statistics.median(share):.0f} %",
        f"{default['compile_s']:.1f}, {default['cached_compile_s']:.1f}",
        ", ".join(default["forms"]) or "none",
    ]
    return "| " + " | ".join(shown) + " |"


def _ratio(above: Sequence[float], below: Sequence[float]) -> str:
    """The median over rounds, with the quartiles."""
    ratios = [a / b for a, b in zip(above, below, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def header(contenders: Sequence[str]) -> str:
    """The table's first two lines."""
    names = ["network", *(f"{c}, ms" for c in contenders)]
    if "eager" in contenders:
        names.append("default / better PyTorch")
    names += ["default / plain", "GFLOP/s", "of GEMM", "compile s: cold, cached", "forms taken"]
    return "| " + " | ".join(names) + " |\n| --- " + "| ---: " * (len(names) - 2) + "| --- |"


# --- where the time goes --------------------------------------------------------------------------


def profile(name: str, contender: str, updates: int = 5, rows: int = 25) -> None:
    """Prints what XLA's profiler says of an update: milliseconds by operation.

    Convolutions run in the background of their thread, so their own lines are too short: what the
    update takes longer than the sum of the others is theirs.
    """
    import collections
    import re

    import jax

    update, facts = build_jax(contender, name)
    text = facts["text"]
    operations = {}
    for line in text.splitlines():
        found = re.match(r"\s*(?:ROOT )?%?([\w.\-]+) = (\S+?)(?:\{|\s)", line)
        if found:
            where = re.search(r'op_name="(?:jit\(\w+\)/)?([^"]*)"', line)
            operations[found[1]] = found[2], where[1] if where else ""
    for _ in range(3):
        update()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            begun_s = time.perf_counter()  # starting and ending a trace takes its time too
            for _ in range(updates):
                update()
            took_ms = 1e3 * (time.perf_counter() - begun_s) / updates
        (file,) = Path(folder).rglob("*.xplane.pb")
        trace = jax.profiler.ProfileData.from_file(str(file))
        spent_ms: collections.Counter[str] = collections.Counter()
        for plane in trace.planes:
            for timeline in plane.lines:
                for event in timeline.events:
                    if event.name in operations:
                        spent_ms[event.name] += event.duration_ns / 1e6 / updates
    by_kind: collections.Counter[str] = collections.Counter()
    for operation, spent in spent_ms.items():
        by_kind[re.sub(r"[.\d]+$", "", operation)] += spent
    print(f"{name}, {contender}: {took_ms:.1f} ms an update, {sum(spent_ms.values()):.1f} told")
    for kind, spent in by_kind.most_common(10):
        print(f"{spent:9.2f} ms  {kind}")
    for operation, spent in spent_ms.most_common(rows):
        shape, where = operations[operation]
        print(f"{spent:9.2f} ms  {operation:36s} {shape:22s} {where[-70:]}")


def main() -> None:
    """Prints the table, a row as soon as it is known."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("networks", nargs="*", help="default: all")
    parser.add_argument("--against", choices=_CONTENDERS, default="all")
    parser.add_argument("--rounds", type=int, default=_ROUNDS)
    parser.add_argument("--json", type=Path, help="every time, to this file")
    parser.add_argument("--profile", choices=("default", "plain"), nargs="?", const="default")
    parser.add_argument("--work", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        work(*given.work)
        return
    runtime.prepare()
    from zoo import CASES

    for name in given.networks:
        if name not in CASES:
            sys.exit(f"error: {unknown_value('NETWORK', name, CASES)}")
    contenders = _CONTENDERS[given.against]
    if not given.profile:
        print(header(contenders))
    everything = {}
    for name in given.networks or CASES:
        if given.profile:
            profile(name, given.profile)
            continue
        everything[name] = compare(name, contenders, given.rounds)
        print(summarise(name, everything[name]), flush=True)
        if given.json:
            given.json.write_text(json.dumps(everything, indent=1) + "\n")


if __name__ == "__main__":
    main()
