"""Optimizers by name: any of Optax's, or a user's own, with checked hyper-parameters.

`build` settles everything that a run's record must say (learning rate, every hyper-parameter) and
gives an Optax transformation. Weight decay and clipping mean the same for all of them.
"""

import dataclasses
import functools
import inspect
import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxenergy.arguments import Argument, read_arguments, split_arguments
from jaxenergy.errors import UsageError
from jaxenergy.optimizers.hyper_parameters import arguments_of, plug_in_arguments
from jaxenergy.optimizers.schedules import SCHEDULES, build_schedule
from jaxenergy.optimizers.table import OPTIMIZERS, Row, line_search_iterations, searches
from jaxenergy.registry import load_attribute, read_source

__all__ = [
    "OPTIMIZERS",
    "SCHEDULES",
    "Optimizer",
    "Settings",
    "build",
    "parse_args",
    "read_plug_in_source",
]

PyTree = Any

_MASKS = frozenset({"mask", "weight_decay_mask"})  # what Optax calls which parameters decay


@dataclasses.dataclass(frozen=True)
class Settings:
    """What means the same for every optimizer; an optimizer that wraps another passes it on.

    Attributes:
        learning_rate: as asked for; None for the optimizer's default.
        schedule: one of `SCHEDULES` with its arguments; None for the optimizer's default.
        total_updates: updates of the run, which the schedule spans.
        weight_decay: as asked for; None for the optimizer's default.
        clip_norm: bound on the global norm of the gradient; None for no bound.
        seed: default of the `key` from which an optimizer draws noise.
    """

    learning_rate: float | None
    schedule: str | None
    total_updates: int
    weight_decay: float | None
    clip_norm: float | None
    seed: int


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """An optimizer with everything settled.

    Attributes:
        name: its name, or `module:function`.
        description: one line for people.
        learning_rate: the peak learning rate; None for one that has none.
        hyper_parameters: every hyper-parameter as resolved, as JSON takes them.
        tx: the Optax transformation: clipping, decay where it is coupled, the optimizer.
        row: what the table says of it.
        settings: what it was asked for beyond its hyper-parameters, the schedule resolved.
        source: the file of a plug-in, as `read_plug_in_source` gives it; None for Optax's own.
    """

    name: str
    description: str
    learning_rate: float | None
    hyper_parameters: Mapping[str, Any]
    tx: optax.GradientTransformationExtraArgs
    row: Row
    settings: Settings
    source: Mapping[str, str] | None

    @property
    def per_example_gradients(self) -> bool:
        """Whether `update` takes a gradient for each example, with a leading axis [batch]."""
        return self.row.per_example_gradients

    @property
    def evaluates_loss(self) -> bool:
        """Whether an update evaluates the loss, or its derivatives, beyond the gradients given."""
        functions = {"value_fn", "grad_fn", "obj_fn"}.intersection(self.row.extra_arguments)
        return bool(functions) and self.iterations_per_update != 1.0

    @property
    def differentiates_gradients(self) -> bool:
        """Whether an update may differentiate a gradient: for the Hessian, or in a plug-in."""
        return "obj_fn" in self.row.extra_arguments or ":" in self.name

    @property
    def iterations_per_update(self) -> float | None:
        """Forward and backward passes an update takes on average; None where it varies."""
        return self.row.mean_iterations(self.hyper_parameters)

    def iterations(self, opt_state: PyTree) -> Any:
        """Forward and backward passes of the update that led to a state.

        Args:
            opt_state: the state after the update.

        Returns:
            The number, int or int32 scalar; that for the gradient itself is included.
        """
        return self.row.iterations(opt_state, self.hyper_parameters)

    def update(
        self,
        grads: PyTree,
        opt_state: PyTree,
        params: PyTree,
        *,
        value: jax.Array,
        value_fn: Callable[[PyTree], jax.Array],
    ) -> tuple[PyTree, PyTree]:
        """Moves the parameters once.

        Args:
            grads: the gradients of the batch's mean loss, like `params`; with a leading axis
                [batch] where `per_example_gradients`.
            opt_state: the state.
            params: the parameters.
            value: the batch's mean loss, scalar.
            value_fn: that loss as a pure function of the parameters, the same batch and PRNG key
                inside; not called, so free of cost, unless the optimizer needs it.

        Returns:
            The new parameters and state.
        """
        known = {
            "value": value,
            "grad": grads,
            "value_fn": value_fn,
            "grad_fn": lambda params, step: jax.grad(value_fn)(params),
            "obj_fn": value_fn,
        }
        extra = {key: known[key] for key in self.row.extra_arguments}
        updates, opt_state = self.tx.update(grads, opt_state, params, **extra)
        return optax.apply_updates(params, updates), opt_state

    def evaluation_params(self, params: PyTree, opt_state: PyTree) -> PyTree:
        """The parameters to evaluate: averages or slow ones where the optimizer keeps such."""
        return self.row.evaluation_params(params, opt_state)


def parse_args(text: str) -> dict[str, str]:
    """Splits `--optimizer_args`, e.g. `momentum=0.9,nesterov=true`, into texts by name."""
    return split_arguments(text, "--optimizer_args")


def read_plug_in_source(
    name: str, args: Mapping[str, object] | None = None
) -> dict[str, str] | None:
    """The file of the user's own code in an optimizer, which a name alone does not tell.

    Args:
        name: the optimizer's name, or `module:function`.
        args: its hyper-parameters, of which `base` may be a `module:function`.

    Returns:
        `file` and `digest`, as `registry.read_source` gives them; None for Optax's optimizers,
        whose versions are recorded, and where the module has no file.
    """
    spec = name if ":" in name else str((args or {}).get("base", ""))
    if ":" not in spec or spec.partition(":")[0].partition(".")[0] == optax.__name__:
        return None
    return read_source(spec)


def build(
    name: str,
    args: Mapping[str, object] | None = None,
    *,
    total_updates: int,
    learning_rate: float | None = None,
    schedule: str | None = None,
    weight_decay: float | None = None,
    clip_norm: float | None = None,
    seed: int = 0,
) -> Optimizer:
    """Builds an optimizer by name.

    Args:
        name: one of `OPTIMIZERS`, or `module:function` for a function (learning_rate, **hyper) that
            gives an Optax transformation.
        args: hyper-parameters by name, as text or typed.
        total_updates: updates of the run, which the schedule spans.
        learning_rate: the peak learning rate; None for the optimizer's default.
        schedule: one of `SCHEDULES`, with arguments as `name:arg=value,...`; None for the
            optimizer's default, which is cosine, and constant for those that take none.
        weight_decay: decay of parameters of two or more dimensions, as the optimizer has it
            (decoupled, as a hyper-parameter of its own); added to the gradient where it has none
            (L2). None for the optimizer's default. Refused where the optimizer's own decays all
            parameters: that is an argument of the optimizer alone. A plug-in's own `weight_decay`
            means what the plug-in makes of it; a `mask`, where it has one, is filled in.
        clip_norm: bound on the global norm of the gradient, before anything else.
        seed: default of the `key` of optimizers that draw noise.

    Returns:
        The optimizer.

    Raises:
        UsageError: an unknown name or argument, or a value that is not allowed.
    """
    _check_range("--learning_rate", learning_rate, minimum_included=False)
    _check_range("--weight_decay", weight_decay, minimum_included=True)
    _check_range("--clip_norm", clip_norm, minimum_included=False)
    return _build(
        name,
        dict(args or {}),
        Settings(learning_rate, schedule, total_updates, weight_decay, clip_norm, seed),
    )


def _build(name: str, args: dict[str, object], settings: Settings) -> Optimizer:
    """Builds an optimizer and the one it wraps."""
    is_plug_in = ":" in name
    row = _plug_in(name) if is_plug_in else OPTIMIZERS[name]
    arguments = plug_in_arguments(row.make, args) if is_plug_in else arguments_of(row.make)
    if "key" in arguments and not is_plug_in:
        arguments["key"] = dataclasses.replace(arguments["key"], default=settings.seed)
    if "learning_rate" in args:
        raise UsageError(
            "--optimizer_args: learning_rate is not given here; use --learning_rate="
            f"{args['learning_rate']}."
        )
    settings = dataclasses.replace(settings, schedule=settings.schedule or row.schedule)
    factor, _ = build_schedule(settings.schedule or "", settings.total_updates)
    if factor is not None and row.schedule_goes == "nowhere":
        raise UsageError(
            f"--schedule={settings.schedule} is not possible with --optimizer={name}, which has"
            " none; allowed: constant."
        )

    base = None
    if row.base is not None:
        base, args = _split_base(name, row, args, settings)
        learning_rate = base.learning_rate
    else:
        given = settings.learning_rate
        learning_rate = row.learning_rate if given is None else float(given)
        if learning_rate is None and is_plug_in:
            raise UsageError(
                f"--optimizer={name} has no default learning rate: give --learning_rate."
            )

    before: list[optax.GradientTransformation] = []
    if base is None:
        before = _before(name, row, arguments, args, settings)
    if base is not None:
        arguments = {**arguments, "base": Argument(str, base.name)}
    resolved = read_arguments({**row.defaults, **args}, arguments, "--optimizer_args")
    if not is_plug_in and resolved.get("nesterov") and resolved.get("momentum", 1.0) in (None, 0.0):
        raise UsageError(
            f"--optimizer_args=nesterov=true does nothing with --optimizer={name} without momentum."
            "\nAllowed: momentum=0.9,nesterov=true, or neither."
        )
    masked = not is_plug_in or settings.weight_decay is not None
    transformation = _make(name, row, learning_rate, factor, resolved, base, masked)
    if is_plug_in and searches(_try_plug_in(name, transformation)):
        row = dataclasses.replace(row, mean_iterations=lambda hyper_parameters: None)
    if factor is not None and row.schedule_goes == "after":
        transformation = optax.chain(transformation, optax.scale_by_schedule(factor))
    if before:
        transformation = optax.chain(*before, transformation)
    if base is not None:
        of_base = {f"base.{key}": value for key, value in base.hyper_parameters.items()}
        resolved = {**resolved, **of_base}
    return Optimizer(
        name=name,
        description="a user's own optimizer" if is_plug_in else OPTIMIZERS.describe(name),
        learning_rate=learning_rate,
        hyper_parameters=resolved,
        tx=_with_plain_state(transformation),
        row=row,
        settings=settings,
        source=base.source if base is not None else read_plug_in_source(name),
    )


def _split_base(
    name: str, row: Row, args: dict[str, object], settings: Settings
) -> tuple[Optimizer, dict[str, object]]:
    """Builds the optimizer that another wraps, from `base=NAME` and its arguments `base.x=...`.

    Returns:
        It, and the arguments that are left for the one around it.
    """
    inner = {
        key.removeprefix("base."): value for key, value in args.items() if key.startswith("base.")
    }
    own = {key: value for key, value in args.items() if not key.startswith("base.")}
    if settings.learning_rate is None and row.learning_rate is not None:
        settings = dataclasses.replace(settings, learning_rate=row.learning_rate)
    base_name = str(args.get("base", row.base))
    if base_name in OPTIMIZERS and not OPTIMIZERS[base_name].is_plain:
        raise UsageError(
            f"--optimizer_args: base={base_name} is not possible for --optimizer={name}: the base"
            " is an optimizer that needs gradients and parameters only, e.g. sgd, adam."
        )
    return _build(base_name, inner, settings), own


def _before(
    name: str,
    row: Row,
    arguments: Mapping[str, Argument],
    args: dict[str, object],
    settings: Settings,
) -> list[optax.GradientTransformation]:
    """What changes the gradient before the optimizer sees it: clipping, decay it has not itself.

    Decay that it has itself is put among its arguments.
    """
    before = []
    own_decay = next((n for n in ("weight_decay", "weight_decay_rate") if n in arguments), None)
    if settings.clip_norm is not None:
        before.append(optax.clip_by_global_norm(settings.clip_norm))
    if settings.weight_decay is not None and own_decay is not None:
        masked = _MASKS.intersection(inspect.signature(row.make).parameters)
        if ":" not in name and not masked:  # of a user's function nobody knows
            raise UsageError(
                f"--weight_decay is not possible with --optimizer={name}, whose own decay takes"
                f" biases and norms' scales along: give --optimizer_args={own_decay}="
                f"{settings.weight_decay:g} for that."
            )
        if own_decay in args:
            raise UsageError(
                f"weight decay is given twice: --weight_decay={settings.weight_decay:g} and"
                f" --optimizer_args={own_decay}={args[own_decay]}. Give one of them."
            )
        args[own_decay] = settings.weight_decay
    elif settings.weight_decay:
        before.append(optax.add_decayed_weights(settings.weight_decay, _is_matrix))
    if before and not row.takes_changed_gradients:
        raise UsageError(
            f"--weight_decay and --clip_norm are not possible with --optimizer={name}, which takes"
            " gradients only as they are."
        )
    return before


def _make(
    name: str,
    row: Row,
    learning_rate: float | None,
    factor: optax.Schedule | None,
    hyper_parameters: Mapping[str, Any],
    base: Optimizer | None,
    masked: bool,
) -> optax.GradientTransformation:
    """Calls the optimizer's function; `masked`: its decay spares vectors unless it is told what."""
    arguments = dict(hyper_parameters)
    parameters = inspect.signature(row.make).parameters
    for mask in _MASKS.intersection(parameters):
        if masked and arguments.get(mask) is None:
            arguments[mask] = _is_matrix
    if base is not None:
        del arguments["base"]
        arguments["base_optimizer"] = base.tx

    def scheduled(rate: float | None) -> Any:
        if rate is None or factor is None or row.schedule_goes != "inside":
            return rate
        return functools.partial(_scheduled_rate, rate, factor)

    if "adam_learning_rate" in arguments:
        arguments["adam_learning_rate"] = scheduled(arguments["adam_learning_rate"])
    with warnings.catch_warnings():
        # Optax deprecates some of its own names; the table's descriptions say which.
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            return row.make(**{row.rate_name: scheduled(learning_rate)}, **arguments)
        except Exception as error:  # Optax's own refusals, and whatever a user's function does
            raise UsageError(
                f"--optimizer={name} cannot be made: {type(error).__name__}: {error}"
            ) from error


def _with_plain_state(
    transformation: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """The same with a state that one program serves from the start, and that Orbax stores.

    Some of Optax's states begin with weakly typed numbers, for which jit compiles a second time.
    Some hold typed PRNG keys, or (GaLore's, for vectors) empty arrays, which Orbax refuses: they
    are kept as plain numbers and a single zero.
    """
    inner_update = optax.with_extra_args_support(transformation).update

    def is_key(leaf: Any) -> bool:
        return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)

    def plain(leaf: jax.Array) -> jax.Array:
        if is_key(leaf):
            return jax.random.key_data(leaf)
        if leaf.size == 0:
            return jnp.zeros((), leaf.dtype)
        return jax.lax.convert_element_type(leaf, leaf.dtype)

    def original(kind: jax.ShapeDtypeStruct, leaf: jax.Array) -> jax.Array:
        if is_key(kind):
            return jax.random.wrap_key_data(leaf)
        return jnp.zeros(kind.shape, kind.dtype) if kind.size == 0 else leaf

    def init(params: PyTree) -> PyTree:
        return jax.tree.map(plain, transformation.init(params))

    def update(updates: PyTree, state: PyTree, params: PyTree = None, **extra: Any) -> Any:
        kinds = jax.eval_shape(transformation.init, params)
        state = jax.tree.map(original, kinds, state)
        updates, state = inner_update(updates, state, params, **extra)
        return updates, jax.tree.map(plain, state)

    return optax.GradientTransformationExtraArgs(init, update)


def _scheduled_rate(peak: float, factor: optax.Schedule, count: jax.Array) -> jax.Array:
    return peak * factor(count)


def _is_matrix(params: PyTree) -> PyTree:
    """Which parameters decay: those of two or more dimensions; no biases, no norms' scales."""
    return jax.tree.map(lambda param: param.ndim >= 2, params)


def _check_range(flag: str, value: float | None, *, minimum_included: bool) -> None:
    if value is None:
        return
    if not math.isfinite(value) or value < 0 or (value == 0 and not minimum_included):
        bound = "at least 0" if minimum_included else "above 0"
        raise UsageError(f"{flag}={value} is not possible; allowed: a number {bound}.")


def _plug_in(spec: str) -> Row:
    """The row of a user's own function."""
    function = load_attribute(spec, "--optimizer")
    if not callable(function):
        raise UsageError(f"--optimizer={spec} is {function!r}, not a function.")
    parameter = inspect.signature(function).parameters.get("learning_rate")
    default = (
        None if parameter is None or parameter.default is parameter.empty else parameter.default
    )
    if not isinstance(default, int | float | None):
        raise UsageError(
            f"--optimizer={spec} has the default learning rate {default!r}, no number."
        )
    # What a line search takes; a transformation that needs none of it is not given it.
    extra_arguments = ("value", "grad", "value_fn")
    return Row(
        function,
        default,
        schedule_goes="after",
        extra_arguments=extra_arguments,
        iterations=line_search_iterations,
    )


def _try_plug_in(name: str, optimizer: Any) -> PyTree:
    """Refuses what a user's function gave unless it can update a matrix and a vector.

    Returns:
        The state, as shapes.
    """
    if not isinstance(optimizer, optax.GradientTransformation):
        raise UsageError(
            f"--optimizer={name} gave {optimizer!r:.80}; it must give an"
            " optax.GradientTransformation."
        )
    params = {"kernel": jnp.ones((3, 2)), "bias": jnp.ones((2,))}

    def update(params: PyTree, state: PyTree) -> Any:
        tx = optax.with_extra_args_support(optimizer)
        return tx.update(params, state, params, value=0.0, grad=params, value_fn=optax.tree.sum)

    try:
        state = jax.eval_shape(optimizer.init, params)
        updates, new_state = jax.eval_shape(update, params, state)
        jax.eval_shape(optax.apply_updates, params, updates)
    except Exception as error:  # a user's function may fail in any way; the user is told how
        raise UsageError(
            f"--optimizer={name} fails in an update: {type(error).__name__}: {error}"
        ) from error
    if jax.tree.structure(new_state) != jax.tree.structure(state):
        raise UsageError(f"--optimizer={name}: an update changes the structure of the state.")
    return state
