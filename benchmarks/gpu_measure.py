"""Joules of single kernels on a GPU, by `jaxenergy.measure`: products, convolutions, a copy.

    benchmarks/gpu.sh measure

Operations and bytes are counted from the shapes, so that joules per operation can be compared
between cards. All on random numbers, since power depends on them. `dispatch` is a call that does
next to nothing.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

from gpu_stage import Check, Stage, run_stage

from jaxenergy.errors import RunError
from jaxenergy.units import format_si


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A function to measure.

    Attributes:
        fn: the jitted function.
        args: its arguments.
        flops: floating-point operations of a call.
        moved_bytes: the least that a call must move through the card's memory.
    """

    fn: Callable[..., Any]
    args: tuple[Any, ...]
    flops: int
    moved_bytes: int


def _normal(shape: tuple[int, ...], dtype: str, seed: int = 0):
    import jax

    return jax.random.normal(jax.random.key(seed), shape, dtype)


def make_product(size: int, dtype: str, precision: str = "default") -> Kernel:
    """A product of square matrices."""
    import jax
    import jax.numpy as jnp

    left, right = _normal((size, size), dtype), _normal((size, size), dtype, seed=1)
    fn = jax.jit(functools.partial(jnp.matmul, precision=precision))
    return Kernel(fn, (left, right), 2 * size**3, 3 * left.nbytes)


def make_convolution(examples: int, side: int, channels: int, dtype: str) -> Kernel:
    """A 3x3 convolution of NHWC images that keeps their shape, as in a residual block."""
    import jax

    images = _normal((examples, side, side, channels), dtype)
    kernel = _normal((3, 3, channels, channels), dtype, seed=1)

    def convolve(images, kernel):
        return jax.lax.conv_general_dilated(
            images, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    # At the border fewer of the nine taps lie inside: (3 s - 2)^2 in all of s^2 pixels.
    taps = (3 * side - 2) ** 2
    return Kernel(
        jax.jit(convolve),
        (images, kernel),
        2 * examples * taps * channels**2,
        2 * images.nbytes + kernel.nbytes,
    )


def make_copy(count: int) -> Kernel:
    """Adds one to float32 numbers: bound by memory."""
    import jax

    numbers = _normal((count,), "float32")
    return Kernel(jax.jit(lambda x: x + 1), (numbers,), count, 2 * numbers.nbytes)


def check_kernel(stage: Stage, make: Callable[[], Kernel], seconds: float) -> dict[str, Any]:
    """Measures one kernel."""
    from jaxenergy.measuring import measure

    kernel = make()
    with stage.rig.open_meters() as meters:
        found = measure(
            kernel.fn,
            *kernel.args,
            meters=meters,
            target_relative_ci=0.002,
            max_seconds=seconds,
        )
        conditions = meters.read_conditions()[stage.rig.domain]
    seconds_per_call = found.seconds_per_call
    if seconds_per_call is None or found.per_call_j is None:
        raise RunError(f"nothing was measured: {dict(found.why)}")
    return {
        "measurement": dataclasses.asdict(found),
        "flops": kernel.flops,
        "moved_bytes": kernel.moved_bytes,
        "flop_per_s": kernel.flops / seconds_per_call,
        "bytes_per_s": kernel.moved_bytes / seconds_per_call,
        "j_per_flop": found.per_call_j / kernel.flops,
        "j_per_byte": found.per_call_j / kernel.moved_bytes,
        "conditions": conditions,
        "says": [
            *str(found).splitlines(),
            f"{format_si(kernel.flops / seconds_per_call, 'FLOP/s')}, "
            f"{format_si(kernel.moved_bytes / seconds_per_call, 'B/s')}, "
            f"{1e12 * found.per_call_j / kernel.flops:.4g} pJ/FLOP",
        ],
    }


def make_checks(stage: Stage) -> list[Check]:
    """The checks of this stage: one per kernel."""
    smoke = stage.options.smoke
    size, count, seconds = (128, 2**16, 1.5) if smoke else (8192, 2**28, 30.0)
    images = (2, 14, 32) if smoke else (256, 56, 256)
    kernels: dict[str, Callable[[], Kernel]] = {
        "product_bfloat16": lambda: make_product(size, "bfloat16"),
        "product_float32": lambda: make_product(size, "float32"),
        "product_float32_highest": lambda: make_product(size, "float32", "highest"),
        "convolution_bfloat16": lambda: make_convolution(*images, "bfloat16"),
        "convolution_float32": lambda: make_convolution(*images, "float32"),
        "copy_float32": lambda: make_copy(count),
        "dispatch": lambda: make_copy(1),
    }
    return [
        Check(name, seconds + 4, functools.partial(check_kernel, stage, make, seconds))
        for name, make in kernels.items()
    ]


if __name__ == "__main__":
    run_stage("measure", __doc__, make_checks, computes=True)
