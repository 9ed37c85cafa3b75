"""A timeit for joules: measures what one call of a function costs.

python -m experiments.measure my_module:my_function
python -m experiments.measure jax.numpy:matmul --jit --shapes=1024x1024,1024x1024
python -m experiments.measure my_module:make_step --setup

MODULE:FUNCTION is called without arguments, or with arrays of random numbers of the shapes given
by --shapes. What it computes has to be in what it returns, since that is waited for.

With --setup it is called once, outside of what is measured, and gives what is to be measured: a
function, or (function, arguments), or (function, arguments, carry), where carry makes the next
call's arguments of the last output and arguments, as a function needs that donates them.
"""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

from absl import flags

from experiments.flags import define_flag, define_measuring_flags, define_run_flags, launch
from jaxenergy.arguments import NOT_NEGATIVE, Argument
from jaxenergy.errors import UsageError

SCHEMA = 1
POSITIONAL = "MODULE:FUNCTION"

define_run_flags(["meters", "powercap_root"])
define_measuring_flags(max_seconds=60.0)
_JIT = flags.DEFINE_boolean("jit", False, "Compile the function first.")
_SHAPES = flags.DEFINE_string(
    "shapes", None, "Shapes of the arguments, e.g. 1024x1024,1024; random, from --seed."
)
_DTYPE = define_flag(
    "dtype",
    Argument(str, "float32", choices=("bfloat16", "float16", "float32")),
    "Type of the arguments' numbers.",
)
_SEED = define_flag("seed", Argument(int, 0, NOT_NEGATIVE), "Seed of the random arguments.")
_SETUP = flags.DEFINE_boolean("setup", False, "The function gives what is to be measured.")


def run(spec: str) -> None:
    """Measures and prints.

    Args:
        spec: `MODULE:FUNCTION`.
    """
    shapes = read_shapes(_SHAPES.value)
    if _SETUP.value and shapes:
        raise UsageError("--setup and --shapes both give the arguments.\nAllowed: one of the two.")

    from jaxenergy import runtime

    runtime.prepare()

    from jaxenergy.measuring import measure, read_jax_devices
    from jaxenergy.meters import open_meters
    from jaxenergy.registry import load_attribute

    settings = flags.FLAGS
    with open_meters(
        settings.meters, read_jax_devices(), powercap_root=settings.powercap_root
    ) as meters:
        function = load_attribute(spec, POSITIONAL)
        if not callable(function):
            kind = type(function).__name__
            raise UsageError(f"{POSITIONAL}={spec} is of type {kind}, not a function.")
        args, carry = make_arrays(shapes, _DTYPE.value, _SEED.value), None
        if _SETUP.value:
            _check_takes(function, (), spec)
            function, args, carry = read_setup(function(), spec)
        else:
            _check_takes(function, args, spec)
        for note in meters.notes:
            print(note)
        try:
            measurement = measure(
                function,
                *args,
                carry=carry,
                meters=meters,
                target_relative_ci=settings.target_relative_ci,
                max_seconds=settings.max_seconds,
                jit=_JIT.value,
            )
        except (TypeError, ValueError) as error:
            if not shapes or isinstance(error, UsageError):
                raise  # by code of the user's own, who needs the traceback
            why = str(error).partition("\n")[0]
            raise UsageError(f"{spec} with --shapes={_SHAPES.value} failed: {why}") from error
        notes = meters.notes
    print(measurement)
    if settings.json:
        from jaxenergy.records.files import write_json_atomic

        record = {"schema": SCHEMA, "function": spec, **dataclasses.asdict(measurement)}
        write_json_atomic(settings.json, {**record, "notes": notes})


def _check_takes(function: Callable[..., Any], args: tuple, spec: str) -> None:
    """Refuses a function that cannot be called with so many arguments."""
    try:
        signature = inspect.signature(function)
    except ValueError:  # written in C, and says nothing of itself
        return
    try:
        signature.bind(*args)
    except TypeError as error:
        raise UsageError(
            f"{spec}{signature} cannot be called with {len(args)} arguments: {error}.\n"
            "Allowed: --shapes=32x16,16x8 for arrays of random numbers, or --setup for others."
        ) from error


def read_shapes(text: str | None) -> list[tuple[int, ...]]:
    """Reads `1024x1024,1024` as two shapes."""
    if text is None:
        return []
    try:
        shapes = [tuple(int(size) for size in part.split("x")) for part in text.split(",")]
        if any(size < 1 for shape in shapes for size in shape):
            raise ValueError
    except ValueError:
        raise UsageError(
            f"--shapes={text} is not possible; allowed: sizes of 1 or more, e.g. 1024x1024,1024."
        ) from None
    return shapes


def make_arrays(shapes: list[tuple[int, ...]], dtype: str, seed: int) -> tuple:
    """Arrays of normal random numbers; zeros would take less power than any real data."""
    import jax

    keys = jax.random.split(jax.random.key(seed), len(shapes)) if shapes else ()
    return tuple(
        jax.random.normal(key, shape, dtype) for key, shape in zip(keys, shapes, strict=True)
    )


def read_setup(given: Any, spec: str) -> tuple[Any, tuple, Any]:
    """What a function of --setup gave, as function, arguments and carry."""
    match given:
        case (function, args, carry):
            pass
        case (function, args):
            carry = None
        case function:
            args, carry = (), None
    fits = callable(function) and isinstance(args, tuple | list)
    if not fits or not (carry is None or callable(carry)):
        raise UsageError(
            f"{POSITIONAL}={spec} with --setup gave {given!r:.100}.\n"
            "Allowed: a function, (function, arguments) or (function, arguments, carry)."
        )
    return function, tuple(args), carry


def main() -> None:
    """Entry point of the driver."""
    launch(run, POSITIONAL)


if __name__ == "__main__":
    main()
