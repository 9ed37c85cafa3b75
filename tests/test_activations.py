"""The table of activations: each is what it says, costs what it says, and scales as it says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import Literal

from jaxenergy.activations import ACTIVATIONS
from jaxenergy.errors import UsageError

NAMES = tuple(ACTIVATIONS)
TRANSCENDENTAL = {"exp", "exp2", "expm1", "log", "log1p", "tanh", "erf", "erfc", "logistic", "sin"}


def primitives(jaxpr) -> set[str]:
    """Names of all primitives; a division counts as one only if the divisor is computed."""
    names = set()
    for equation in jaxpr.eqns:
        inner = [p for p in equation.params.values() if hasattr(p, "eqns") or hasattr(p, "jaxpr")]
        for sub in inner:
            names |= primitives(getattr(sub, "jaxpr", sub))
        name = equation.primitive.name
        if name == "div" and isinstance(equation.invars[1], Literal):
            name = "mul"
        if not inner:
            names.add(name)
    return names


def test_every_activation_has_a_line_for_the_list():
    assert set(NAMES) >= {
        *("relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "gelu_tanh", "silu"),
        *("mish", "softplus", "softsign", "tanh", "hard_tanh", "sigmoid", "hard_sigmoid"),
        *("hard_silu", "squared_relu", "identity", "sine"),
    }
    for name in NAMES:
        assert 0 < len(ACTIVATIONS.describe(name)) <= 100


@pytest.mark.parametrize("name", NAMES)
def test_the_cost_class_is_what_the_program_does(name):
    jaxpr = jax.make_jaxpr(ACTIVATIONS[name].function)(jnp.ones((3,)))
    used = primitives(jaxpr.jaxpr)
    if used & TRANSCENDENTAL:
        cost = "transcendental"
    elif "div" in used:
        cost = "division"
    else:
        cost = "comparison" if used else "none"
    assert cost == ACTIVATIONS[name].cost
    assert f"[cost: {cost}]" in ACTIVATIONS.describe(name)


@pytest.mark.parametrize("name", NAMES)
def test_the_gain_keeps_the_second_moment(name):
    """By a Riemann sum over the normal density, whose error is far below the tolerance."""
    z = np.linspace(-12, 12, 200_001)
    density = np.exp(-z * z / 2) / np.sqrt(2 * np.pi) * (z[1] - z[0])
    values = np.asarray(ACTIVATIONS[name](z.astype(np.float32)), np.float64)
    assert ACTIVATIONS[name].gain * np.sum(density * values**2) == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_shape_and_dtype_are_kept(name, dtype):
    x = jax.ShapeDtypeStruct((2, 3), dtype)
    y = jax.eval_shape(ACTIVATIONS[name].function, x)
    assert (y.shape, y.dtype) == (x.shape, x.dtype)


@pytest.mark.parametrize("name", NAMES)
def test_values_and_slopes_are_finite_far_out_and_at_zero(name):
    x = jnp.array([-1e4, -90.0, -1.0, 0.0, 1.0, 90.0, 1e4])
    values, slopes = jax.jit(jax.vmap(jax.value_and_grad(ACTIVATIONS[name].function)))(x)
    assert np.isfinite(values).all()
    assert np.isfinite(slopes).all()


def test_values_by_hand():
    """At 1 and -1, from the definitions; the ones that differ by a constant are told apart."""
    table = {
        "gelu": (0.8413447, -0.1586553),
        "gelu_tanh": (0.8411920, -0.1588080),
        "leaky_relu": (1.0, -0.01),
        "selu": (1.0507010, -1.1113307),
        "squared_relu": (1.0, 0.0),
        "hard_sigmoid": (2 / 3, 1 / 3),
        "hard_silu": (2 / 3, -1 / 3),
        "mish": (0.8650984, -0.3034015),
        "softsign": (0.5, -0.5),
        "sine": (0.8414710, -0.8414710),
    }
    for name, values in table.items():
        got = ACTIVATIONS[name](jnp.array([1.0, -1.0]))
        np.testing.assert_allclose(got, values, rtol=1e-5, err_msg=name)


def test_an_unknown_one_is_refused_with_the_nearest():
    with pytest.raises(UsageError, match="Did you mean 'relu'"):
        ACTIVATIONS["rellu"]
