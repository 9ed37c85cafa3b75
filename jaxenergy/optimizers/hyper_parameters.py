"""Optax's hyper-parameters as typed arguments, read from its signatures.

A signature gives names and defaults; what it leaves open (the type behind a default of None, the
range) is in the tables here. A parameter that is in neither is an error of this file, found by a
test over every optimizer, so that a new Optax release cannot slip one in unchecked.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from jaxenergy.arguments import COUNT, FRACTION, NOT_NEGATIVE, POSITIVE, Argument, Interval

DTYPE = Argument(str, None, choices=("float32", "bfloat16", "float16"), optional=True)

# Parameters that a line of text cannot carry, or that `build` fills in itself.
NOT_OFFERED = frozenset(
    {
        "learning_rate",
        "seed",  # deprecated by Optax for `key`
        "max_learning_rate",
        "mask",
        "weight_decay_mask",
        "trust_ratio_mask",
        "weight_dimension_numbers",
        "muon_weight_dimension_numbers",
        "base_optimizer",
        "hessian_diagonal_fn",
        "clip_value_fn",
        "verbose",
        "print_win_rate_every_n_steps",
    }
)

# What the signature leaves open: the default is None, or a dtype, or there is none.
_DECLARED: Mapping[str, Argument] = {
    "momentum": Argument(float, None, FRACTION, optional=True),
    "mu_dtype": DTYPE,
    "accumulator_dtype": DTYPE,
    "state_dtype": DTYPE,
    "dtype_momentum": Argument(str, "float32", choices=DTYPE.choices),
    "weight_decay": Argument(float, None, NOT_NEGATIVE, optional=True),
    "weight_decay_rate": Argument(float, None, NOT_NEGATIVE, optional=True),
    "optimism": Argument(float, None, optional=True),
    "beta3": Argument(float, None, FRACTION, optional=True),
    "init_estim_sq_dist": Argument(float, None, POSITIVE, optional=True),
    "warmup_steps": Argument(int, None, NOT_NEGATIVE, optional=True),
    "adam_learning_rate": Argument(float, None, POSITIVE, optional=True),
    "consistent_rms": Argument(float, None, POSITIVE, optional=True),
    "init_step": Argument(
        (str, float),
        ("heuristic", 1e-6),
        POSITIVE,
        choices=("distance", "heuristic", "learning_rate"),
    ),
    "key": Argument(int, 0, NOT_NEGATIVE),
    "linesearch": Argument(str, "zoom", choices=("zoom", "backtracking", "none")),
    "variant": Argument(str, "sps", choices=("sps", "sps+")),
    "preconditioning": Argument(
        str, "frobenius", choices=("frobenius", "spectral", "aol", "schatten")
    ),
}

# Numbers that may be `none`, which switches what they do off.
_SWITCHES = frozenset({"clipping_threshold", "clip_threshold"})

_INTERVALS: Mapping[str, Interval] = {
    **dict.fromkeys(("b1", "b2", "b3", "adam_b1", "adam_b2", "betas", "decay", "rho"), FRACTION),
    **dict.fromkeys(("beta", "eta_minus", "momentum", "factor", "slow_step_size"), FRACTION),
    **dict.fromkeys(
        ("rtol", "atol", "cooldown", "min_scale", "key", "noise_multiplier"), NOT_NEGATIVE
    ),
    **dict.fromkeys(
        ("eps", "eps_root", "adam_eps_root", "weight_decay", "adam_weight_decay"), NOT_NEGATIVE
    ),
    **dict.fromkeys(
        ("eta", "min_norm", "initial_scale", "initial_accumulator_value"), NOT_NEGATIVE
    ),
    **dict.fromkeys(
        ("update_interval", "memory_size", "rank", "update_proj_gap", "ns_steps"), COUNT
    ),
    **dict.fromkeys(
        ("sync_period", "max_linesearch_steps", "patience", "accumulation_size"), COUNT
    ),
    **dict.fromkeys(("min_dim_size_to_factor", "num_betas"), COUNT),
    **dict.fromkeys(
        ("trust_coefficient", "min_step_size", "max_step_size", "eta_plus", "estim_lr0"), POSITIVE
    ),
    **dict.fromkeys(
        ("estim_lr_coef", "scaling", "scale", "gamma", "s_init", "l2_norm_clip", *_SWITCHES),
        POSITIVE,
    ),
}

# Where a function means something else by a name. Evaluation divides by schedule-free's b1.
_ABOVE_0_BELOW_1 = Interval(low=0.0, high=1.0, closed_low=False)
_INTERVALS_OF: Mapping[str, Mapping[str, Interval]] = {
    "optimistic_adam_v2": {"beta": Interval()},
    "optimistic_gradient_descent": {"beta": Interval()},
    "schedule_free": {"b1": _ABOVE_0_BELOW_1},
    "schedule_free_adamw": {"b1": _ABOVE_0_BELOW_1},
    "schedule_free_sgd": {"b1": _ABOVE_0_BELOW_1},
}


def arguments_of(make: Callable[..., Any]) -> dict[str, Argument]:
    """The hyper-parameters that can be given as text, from an optimizer's signature.

    Args:
        make: a function like `optax.adam`.

    Returns:
        Arguments by name, in the order of the signature.

    Raises:
        TypeError: a parameter's type can be told neither from its default nor from this file.
    """
    arguments = {}
    of_this = _INTERVALS_OF.get(getattr(make, "__name__", ""), {})
    for name, parameter in inspect.signature(make).parameters.items():
        default = parameter.default
        if name in NOT_OFFERED:
            continue
        if isinstance(default, bool | int | float) or name in ("betas", "ns_coeffs"):
            kind = tuple(map(type, default)) if isinstance(default, tuple) else type(default)
            interval = of_this.get(name) or _INTERVALS.get(name, Interval())
            arguments[name] = Argument(kind, default, interval, optional=name in _SWITCHES)
        elif name in _DECLARED:
            arguments[name] = _DECLARED[name]
        else:
            raise TypeError(f"hyper-parameter {name}={default!r} of {make} has no declared type")
    return arguments


def plug_in_arguments(function: Callable[..., Any], given: Iterable[str]) -> dict[str, Argument]:
    """The hyper-parameters of a user's own function: all its parameters but the learning rate.

    Args:
        function: a function (learning_rate, ...).
        given: names the user gave; all are arguments where the function takes any (`**hyper`).

    Returns:
        Arguments by name; where the default does not tell the type, text is read as Python would
        (true, 3, 0.5, none, else a name).
    """
    arguments = {}
    for parameter in inspect.signature(function).parameters.values():
        name, default = parameter.name, parameter.default
        if parameter.kind is parameter.VAR_KEYWORD:
            arguments.update({key: Argument(object) for key in given if key != "learning_rate"})
            continue
        named = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        if named and name != "learning_rate":
            typed = isinstance(default, bool | int | float | str)
            arguments[name] = Argument(type(default) if typed else object, default)
    return arguments
