"""The networks that the benchmarks of speed go through, and what their products cost.

One case for each family at its default size (two more residual networks), at batch 128: what
`benchmarks/step_time.py` times on a CPU and `benchmarks/gpu.sh zoo` measures on a GPU.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxenergy import data
from jaxenergy.config import RunConfig
from jaxenergy.models import Model
from jaxenergy.training.plan import Plan, make_plan

_IMAGES = "synthetic:32x32x3,examples=2048"
_TOKENS = "synthetic:256,classes=65,examples=2048"


@dataclasses.dataclass(frozen=True)
class Case:
    """A network with its data.

    Attributes:
        model: a family or a preset.
        dataset: random images or tokens.
    """

    model: str
    dataset: str = _IMAGES


CASES = {
    "mlp": Case("mlp"),
    "cnn": Case("cnn"),
    "resnet8": Case("resnet8"),
    "resnet20": Case("resnet20"),
    "wide_resnet": Case("wide_resnet"),
    "mobilenet": Case("mobilenet"),
    "convnext": Case("convnext"),
    "vit": Case("vit"),
    "mixer": Case("mixer"),
    "transformer_lm": Case("transformer_lm", _TOKENS),
    "lstm": Case("lstm", _TOKENS),
}


def build_plan(name: str, platform: str, **settings: Any) -> Plan:
    """The plan of a training of a case with SGD and momentum, as `experiments.run` makes it.

    Args:
        name: one of `CASES`.
        platform: `cpu` or `gpu`.
        **settings: further settings of `RunConfig`.
    """
    case = CASES[name]
    config = RunConfig(
        **{
            "model": case.model,
            "dataset": case.dataset,
            "optimizer": "sgd",
            "optimizer_args": "momentum=0.9",
            "learning_rate": 0.001,
            "updates": 1_000_000,
            **settings,
        }
    )
    return make_plan(config, data.load(config.dataset), platform)


def forward_flops(model: Model) -> int:
    """Floating point operations of one example's forward pass, in products and convolutions alone.

    Two for a multiplication with its addition; places where a window reaches over the border are
    counted in. Three times as many are an update's by the usual count, whatever form computes it.
    """
    variables = jax.eval_shape(model.init, jax.random.key(0))
    dtype = jnp.float32 if len(model.input_shape) == 3 else jnp.int32
    inputs = jax.ShapeDtypeStruct((1, *model.input_shape), dtype)
    plain = dataclasses.replace(model, forms=())
    program = jax.make_jaxpr(functools.partial(plain.apply, train=False))(variables, inputs)
    return _flops(program.jaxpr)


def _flops(jaxpr: Any) -> int:
    total = 0
    for equation in jaxpr.eqns:
        out, name = equation.outvars[0].aval, equation.primitive.name
        if name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            total += 2 * out.size * math.prod(equation.invars[0].aval.shape[a] for a in contracted)
        elif name == "conv_general_dilated":
            kernel = equation.invars[1].aval
            features = kernel.shape[equation.params["dimension_numbers"].rhs_spec[0]]
            total += 2 * out.size * kernel.size // features
        inner = [p for p in equation.params.values() if hasattr(p, "eqns") or hasattr(p, "jaxpr")]
        rounds = equation.params["length"] if name == "scan" else 1
        total += rounds * sum(_flops(getattr(p, "jaxpr", p)) for p in inner)
    return total
