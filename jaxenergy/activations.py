"""The activations one can choose: elementwise functions from R to R, picked by hand.

A list harvested from `jax.nn` would offer `glu` and `one_hot`; this one is short, and every entry
says what an element costs (`cost`) and how to scale the weights after it (`gain`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp

from jaxenergy.registry import Registry

Cost = Literal["none", "comparison", "division", "transcendental"]


@dataclass(frozen=True)
class Activation:
    """An elementwise function and what is known about it.

    Attributes:
        function: maps an array to an array of the same shape and dtype.
        cost: the dearest operation an element needs in the forward pass; multiplications and
            additions are as cheap as a comparison and not told apart from it.
        gain: 1 / E[f(z)^2] for standard normal z, the factor on the variance of the weights after
            it that keeps the size of the pre-activations through depth: 2 for relu (He
            initialisation), 1 for selu and identity (LeCun initialisation).

    References:
        He et al. 2015, "Delving Deep into Rectifiers", arXiv 1502.01852, section 2.2.
        Klambauer et al. 2017, "Self-Normalizing Neural Networks", arXiv 1706.02515.
    """

    function: Callable[[jax.Array], jax.Array]
    cost: Cost
    gain: float

    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the function."""
        return self.function(x)


def _identity(x: jax.Array) -> jax.Array:
    return x


def _squared_relu(x: jax.Array) -> jax.Array:
    return jnp.square(jax.nn.relu(x))


def _gelu(x: jax.Array) -> jax.Array:
    return jax.nn.gelu(x, approximate=False)


def _gelu_tanh(x: jax.Array) -> jax.Array:
    return jax.nn.gelu(x, approximate=True)


ACTIVATIONS: Registry[Activation] = Registry("--activation")

_TABLE: tuple[tuple[str, Callable[[jax.Array], jax.Array], Cost, float, str], ...] = (
    ("identity", _identity, "none", 1.0, "x: a control, the network becomes linear"),
    ("relu", jax.nn.relu, "comparison", 2.0, "max(x, 0)"),
    ("relu6", jax.nn.relu6, "comparison", 2.0, "min(max(x, 0), 6)"),
    ("leaky_relu", jax.nn.leaky_relu, "comparison", 1.9998, "x above 0, x/100 below"),
    ("squared_relu", _squared_relu, "comparison", 0.6667, "max(x, 0)^2"),
    ("hard_tanh", jax.nn.hard_tanh, "comparison", 1.9378, "x cut off at -1 and 1"),
    ("hard_sigmoid", jax.nn.hard_sigmoid, "comparison", 3.6018, "x/6 + 1/2 cut off at 0 and 1"),
    ("hard_silu", jax.nn.hard_silu, "comparison", 3.0160, "x times hard_sigmoid(x)"),
    ("softsign", jax.nn.soft_sign, "division", 5.4641, "x / (1 + |x|)"),
    ("elu", jax.nn.elu, "transcendental", 1.5505, "x above 0, exp(x) - 1 below"),
    ("celu", jax.nn.celu, "transcendental", 1.5505, "elu with a continuous slope (alpha = 1: elu)"),
    ("selu", jax.nn.selu, "transcendental", 1.0, "elu scaled to keep mean 0 and variance 1"),
    (
        "gelu",
        _gelu,
        "transcendental",
        2.3517,
        "x times the normal distribution function, exact (erf)",
    ),
    ("gelu_tanh", _gelu_tanh, "transcendental", 2.3519, "gelu by its tanh approximation"),
    ("silu", jax.nn.silu, "transcendental", 2.8108, "x times sigmoid(x), also called swish"),
    ("mish", jax.nn.mish, "transcendental", 2.2107, "x times tanh(softplus(x))"),
    ("softplus", jax.nn.softplus, "transcendental", 1.0855, "log(1 + exp(x))"),
    ("tanh", jnp.tanh, "transcendental", 2.5362, "hyperbolic tangent"),
    ("sigmoid", jax.nn.sigmoid, "transcendental", 3.4086, "1 / (1 + exp(-x))"),
    ("sine", jnp.sin, "transcendental", 2.3130, "sin(x)"),
)

for _name, _function, _cost, _gain, _description in _TABLE:
    ACTIVATIONS.add(_name, Activation(_function, _cost, _gain), f"{_description} [cost: {_cost}]")
