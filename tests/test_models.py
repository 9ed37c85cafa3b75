"""The families of networks, held by what is known of them without training."""

import dataclasses
import functools
import math
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxenergy import models
from jaxenergy.activations import ACTIVATIONS, Activation
from jaxenergy.errors import UsageError
from jaxenergy.models.attention import head_count
from jaxenergy.models.layers import (
    drop_path,
    drop_path_rates,
    group_size,
    normalise,
    pool_2x2,
)

CLASSES = 3


@dataclasses.dataclass(frozen=True)
class Case:
    """A small network of a family, and what is known of it.

    Attributes:
        parameters: the number of parameters, worked out by hand from the family's definition.
        activations: how many activations an input passes: that many calls in one application.
    """

    family: str
    parameters: int
    activations: int
    arguments: dict
    input_shape: tuple = (8, 8, 2)

    def build(self, **more):
        arguments = {**self.arguments, **more}
        return models.build(self.family, input_shape=self.input_shape, classes=CLASSES, **arguments)


def count(*layers):
    """Parameters of layers given as (inputs, outputs, has a bias), with window as fourth."""
    return sum(
        window * inputs * outputs + bias * outputs
        for inputs, outputs, bias, window in ((*layer, 1)[:4] for layer in layers)
    )


CASES = {
    "mlp": Case(
        "mlp",
        count((128, 16, 1), (16, 16, 1), (16, 16, 1), (16, CLASSES, 1)),
        3,
        {"depth": 3, "width": 16},
    ),
    "mlp-batch": Case(
        "mlp",
        count((128, 5, 0), (5, 5, 0), (5, CLASSES, 1)) + 2 * 10,
        2,
        {"depth": 2, "width": 5, "norm": "batch"},
    ),
    "cnn": Case(
        "cnn",
        # Four convolutions in stages of 1, 1, 2; batch norms have a scale and a shift.
        count((2, 4, 0, 9), (4, 8, 0, 9), (8, 16, 0, 9), (16, 16, 0, 9), (16, CLASSES, 1))
        + 2 * (4 + 8 + 16 + 16),
        4,
        {"depth": 4, "width": 4},
    ),
    "cnn-none": Case(
        "cnn",
        count((2, 4, 1, 9), (4, 8, 1, 9), (8, CLASSES, 1)),
        2,
        {"depth": 2, "width": 4, "norm": "none"},
    ),
    "resnet": Case(
        "resnet",
        # Stem; 4 -> 4, 4 -> 8 and 8 -> 16 channels, each two convolutions and from the second on
        # a projection; a norm after each convolution.
        count((2, 4, 0, 9))
        + count((4, 4, 0, 9), (4, 4, 0, 9))
        + count((4, 8, 0, 9), (8, 8, 0, 9), (4, 8, 0, 1))
        + count((8, 16, 0, 9), (16, 16, 0, 9), (8, 16, 0, 1))
        + count((16, CLASSES, 1))
        + 2 * (4 + 2 * 4 + 3 * 8 + 3 * 16),
        7,
        {"depth": 8, "width": 4},
    ),
    "resnet-v2": Case(
        "resnet",
        # A norm before each convolution but the stem and the projections, and one at the end.
        count((2, 4, 0, 9))
        + count((4, 4, 0, 9), (4, 4, 0, 9))
        + count((4, 8, 0, 9), (8, 8, 0, 9), (4, 8, 0, 1))
        + count((8, 16, 0, 9), (16, 16, 0, 9), (8, 16, 0, 1))
        + count((16, CLASSES, 1))
        + 2 * ((4 + 4) + (4 + 8) + (8 + 16) + 16),
        7,
        {"depth": 8, "width": 4, "version": "v2"},
    ),
    "resnet-bottleneck": Case(
        "resnet",
        count((2, 2, 0, 9))
        + count((2, 2, 0), (2, 2, 0, 9), (2, 8, 0), (2, 8, 0))
        + count((8, 4, 0), (4, 4, 0, 9), (4, 16, 0), (8, 16, 0))
        + count((16, 8, 0), (8, 8, 0, 9), (8, 32, 0), (16, 32, 0))
        + count((32, CLASSES, 1))
        + 2 * (2 + (2 + 2 + 8 + 8) + (4 + 4 + 16 + 16) + (8 + 8 + 32 + 32)),
        10,
        {"depth": 11, "width": 2, "block": "bottleneck"},
    ),
    "resnet-none": Case(
        "resnet",
        count((2, 4, 1, 9))
        + count((4, 4, 1, 9), (4, 4, 1, 9))
        + count((4, 8, 1, 9), (8, 8, 1, 9), (4, 8, 1, 1))
        + count((8, 16, 1, 9), (16, 16, 1, 9), (8, 16, 1, 1))
        + count((16, CLASSES, 1)),
        7,
        {"depth": 8, "width": 4, "norm": "none"},
    ),
    "wide_resnet": Case(
        "wide_resnet",
        # Only the second and third stage change the shape, at width 1.
        count((2, 16, 0, 9))
        + count((16, 16, 0, 9), (16, 16, 0, 9))
        + count((16, 32, 0, 9), (32, 32, 0, 9), (16, 32, 0, 1))
        + count((32, 64, 0, 9), (64, 64, 0, 9), (32, 64, 0, 1))
        + count((64, CLASSES, 1))
        + 2 * ((16 + 16) + (16 + 32) + (32 + 64) + 64),
        7,
        {"depth": 10, "width": 1},
    ),
    "mobilenet": Case(
        "mobilenet",
        # Blocks 2 -> 4, 4 -> 8, 8 -> 16 and 16 -> 16, each 9 weights a channel and a 1 x 1.
        count((2, 2, 0, 9))
        + 9 * (2 + 4 + 8 + 16)
        + count((2, 4, 0), (4, 8, 0), (8, 16, 0), (16, 16, 0), (16, CLASSES, 1))
        + 2 * (2 + (2 + 4) + (4 + 8) + (8 + 16) + (16 + 16)),
        9,
        {"depth": 4, "width": 2},
    ),
    "convnext": Case(
        "convnext",
        # Stages of 4, 8, 16 channels: norm, what leads there, and a block of 7 x 7 with bias, norm,
        # feed-forward and scale: 49 c + c + 2 c + (4 c^2 + 4 c) + (4 c^2 + c) + c.
        count((2, 4, 1, 4), (4, 8, 1, 4), (8, 16, 1, 4), (16, CLASSES, 1))
        + sum(8 * c * c + 58 * c for c in (4, 8, 16))
        + 2 * (4 + 4 + 8 + 16),
        3,
        {"depth": 3, "width": 4},
    ),
    "vit": Case(
        "vit",
        # 16 patches of 2 x 2 x 2; a block has 12 w^2 + 13 w.
        count((8, 8, 1), (8, CLASSES, 1)) + 16 * 8 + 2 * (12 * 64 + 13 * 8) + 2 * 8,
        2,
        {"depth": 2, "width": 8, "heads": 2},
    ),
    "mixer": Case(
        "mixer",
        count((8, 8, 1), (8, CLASSES, 1))
        + 2 * count((16, 4, 1), (4, 16, 1), (8, 32, 1), (32, 8, 1))
        + 2 * (2 * 2 * 8 + 8),
        4,
        {"depth": 2, "width": 8},
    ),
    "transformer_lm": Case(
        "transformer_lm",
        CLASSES * 8 + 6 * 8 + 2 * (12 * 64 + 13 * 8) + 2 * 8 + count((8, CLASSES, 1)),
        2,
        {"depth": 2, "width": 8, "heads": 2},
        (6,),
    ),
    "lstm": Case(
        "lstm",
        # A layer of w units over n inputs has four gates of n + w + 1 weights a unit.
        CLASSES * 8 + 2 * 4 * 8 * (8 + 8 + 1) + count((8, CLASSES, 1)),
        4,  # in the cell and at the output of each layer
        {"depth": 2, "width": 8},
        (6,),
    ),
}

each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def make_inputs(case, batch):
    """Images, or tokens."""
    rng = np.random.default_rng(0)
    if len(case.input_shape) == 1:
        return rng.integers(0, CLASSES, (batch, *case.input_shape), np.int32)
    return rng.normal(size=(batch, *case.input_shape)).astype(np.float32)


def make_labels(inputs):
    """Any class for each image; for tokens the one before, which takes memory to tell."""
    if inputs.ndim == 2:
        return np.pad(inputs[:, :-1], ((0, 0), (1, 0)))
    return np.arange(len(inputs)) % CLASSES


def settle(variables, seed=1):
    """Variables away from their initial zeros and ones, so that nothing is left out by them."""
    leaves, structure = jax.tree.flatten(variables)
    rng = np.random.default_rng(seed)
    moved = [leaf + 0.1 * np.abs(rng.normal(size=leaf.shape)).astype("f4") for leaf in leaves]
    return jax.tree.unflatten(structure, moved)


# Unoptimised code, since these programs run for milliseconds and compile for seconds.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


class Trained:
    """A case's model with its two compiled programs, made once, since compiling is what costs."""

    def __init__(self, case):
        self.model = case.build()
        self.variables = jit(self.model.init)(jax.random.key(0))
        self.inputs = make_inputs(case, 8)
        self.labels = make_labels(self.inputs)
        self.tx = optax.adam(1e-2)
        self.evaluate = jit(lambda v, x: self.model.apply(v, x, train=False)[0])
        self.update = jit(self._update)

    def _update(self, variables, opt_state):
        def loss(params):
            logits, stats = self.model.apply(
                {**variables, "params": params}, self.inputs, train=True
            )
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, self.labels)
            return losses.mean(), stats

        (value, stats), grads = jax.value_and_grad(loss, has_aux=True)(variables["params"])
        updates, opt_state = self.tx.update(grads, opt_state)
        variables = {**variables, "params": optax.apply_updates(variables["params"], updates)}
        if stats:
            variables["batch_stats"] = stats
        return variables, opt_state, value, grads


@functools.cache
def trained(name):
    return Trained(CASES[name])


COMPILED = tuple(models.MODELS)  # each family once
each_compiled = pytest.mark.parametrize("name", COMPILED)


@each_case
def test_the_number_of_parameters_is_the_closed_form(case):
    variables = jax.eval_shape(case.build().init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == case.parameters


@each_case
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_shapes_and_dtypes(case, precision):
    """Logits and parameters are float32 in either precision; bfloat16 is computed in."""
    model = case.build(precision=precision)
    variables = jax.eval_shape(model.init, jax.random.key(0))
    inputs = make_inputs(case, 5)
    for train in (False, True):
        apply = functools.partial(model.apply, train=train)
        logits, stats = jax.eval_shape(apply, variables, inputs)
        assert (logits.shape, logits.dtype) == ((*make_labels(inputs).shape, CLASSES), jnp.float32)
        assert jax.tree.structure(stats) == jax.tree.structure(variables.get("batch_stats", {}))
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    program = str(jax.make_jaxpr(functools.partial(model.apply, train=True))(variables, inputs))
    assert ("bf16" in program) == (precision == "bfloat16")


@each_case
def test_the_activation_is_called_after_every_layer_and_with_its_argument(case):
    model = case.build()
    calls = []

    def counting(x):
        calls.append(x.shape)
        return x

    counted = model.module.clone(activation=Activation(counting, "none", 1.0))
    model = dataclasses.replace(model, module=counted)
    variables = jax.eval_shape(model.init, jax.random.key(0))
    calls.clear()
    jax.eval_shape(functools.partial(model.apply, train=False), variables, make_inputs(case, 2))
    assert len(calls) == case.activations


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("mlp", {}),
        ("cnn", {"pool": "mean"}),
        ("resnet", {}),
        ("resnet", {"version": "v2"}),
        ("resnet", {"depth": 11, "block": "bottleneck"}),
        ("wide_resnet", {"depth": 10, "width": 1}),
        ("mobilenet", {}),
        ("convnext", {}),
        ("mixer", {}),
    ],
)
def test_with_identity_a_network_without_other_non_linearities_is_affine(family, options):
    """Max-pooling, norms, attention and gates are such; for them the calls are counted above."""
    options = {"width": 4, "norm": "none", "activation": "identity", **options}
    model = models.build(family, input_shape=(8, 8, 2), classes=3, **options)
    variables = settle(jit(model.init)(jax.random.key(0)))
    x, y = np.random.default_rng(0).normal(size=(2, 8, 8, 2)).astype("f4")
    apply = jit(lambda inputs: model.apply(variables, inputs, train=False)[0])
    of_x, of_y, of_mixed = apply(np.stack([x, y, 0.3 * x + 0.7 * y]))
    scale = np.abs(of_x - of_y).max()
    assert scale > 0
    np.testing.assert_allclose(of_mixed, 0.3 * of_x + 0.7 * of_y, atol=1e-4 * scale, rtol=1e-4)


@each_case
def test_dropping_is_random_in_training_and_leaves_no_trace_at_evaluation(case):
    plain = case.build()
    variables = jax.eval_shape(plain.init, jax.random.key(0))
    inputs, key = make_inputs(case, 2), jax.random.key(0)
    for option in {"dropout", "stochastic_depth"} & set(dict(plain.options)):
        model = case.build(**{option: 0.5})
        programs = {
            (which, train): str(
                jax.make_jaxpr(functools.partial(m.apply, train=train))(variables, inputs, key=key)
            )
            for which, m in (("plain", plain), ("dropping", model))
            for train in (False, True)
        }
        assert "random_bits" in programs["dropping", True]
        assert "random_bits" not in programs["plain", True]
        assert programs["dropping", False] == programs["plain", False]


@each_compiled
def test_gradients_reach_every_parameter(name):
    case = trained(name)
    state = case.tx.init(case.variables["params"])
    *_, grads = case.update(settle(case.variables), state)
    for path, grad in jax.tree.leaves_with_path(grads):
        assert np.isfinite(grad).all(), jax.tree_util.keystr(path)
        assert np.any(grad != 0), jax.tree_util.keystr(path)


@each_compiled
def test_a_batch_can_be_learnt_by_heart(name):
    case = trained(name)
    variables, state = case.variables, case.tx.init(case.variables["params"])
    value, updates = math.inf, 0
    while value > 0.1 and updates < 400:
        variables, state, value, _ = case.update(variables, state)
        updates += 1
    assert value < 0.1


@each_compiled
def test_at_evaluation_examples_do_not_see_each_other(name):
    case = trained(name)
    variables = settle(case.variables)
    other = np.array(case.inputs)
    other[[0, 2, 3]] = (other[[0, 2, 3]] + 1) % CLASSES
    before, after = case.evaluate(variables, case.inputs), case.evaluate(variables, other)
    np.testing.assert_array_equal(before[1], after[1])
    assert np.any(before[0] != after[0])


@each_compiled
def test_compiled_equals_eager(name):
    case = trained(name)
    variables = settle(case.variables)
    eager, _ = case.model.apply(variables, case.inputs, train=False)
    np.testing.assert_allclose(case.evaluate(variables, case.inputs), eager, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["transformer_lm", "lstm"])
def test_language_models_see_all_before_and_nothing_after(name):
    """By gradient: of the logits at each position with respect to each token's embedding."""
    case = trained(name)
    variables = settle(case.variables)
    length = case.inputs.shape[1]

    def logits_at(position, shift):
        def shifted(embed, args, kwargs, context):
            result = embed(*args, **kwargs)
            here = isinstance(context.module, nn.Embed) and context.method_name == "__call__"
            return result + shift if here else result

        with nn.intercept_methods(shifted):
            logits, _ = case.model.apply(variables, case.inputs[:1], train=False)
        return logits[0, position].max()

    shift = jnp.zeros((1, length, case.model.width))
    slopes = jit(jax.vmap(jax.grad(logits_at, 1), (0, None)))(jnp.arange(length), shift)
    seen = np.abs(slopes[:, 0]).max(-1) > 0  # [position asked, position looked at]
    np.testing.assert_array_equal(seen, np.tri(length, dtype=bool))


@pytest.mark.parametrize(
    ("kind", "over"),
    [("batch", (0, 1, 2)), ("layer", (3, 4)), ("group", (1, 2, 4)), ("none", None)],
)
def test_norms_normalise_over_what_they_say(kind, over):
    class Normalising(nn.Module):
        @nn.compact
        def __call__(self, x):
            return normalise(x, kind, train=True, dtype=jnp.float32)

    x = 3 + 2 * np.random.default_rng(0).normal(size=(4, 3, 5, 32)).astype("f4")
    got, _ = Normalising().init_with_output(jax.random.key(0), x)
    groups = x.reshape(4, 3, 5, 2, 16)  # channels in groups of 16
    if over is not None:
        groups = (groups - groups.mean(over, keepdims=True)) / groups.std(over, keepdims=True)
    np.testing.assert_allclose(got, groups.reshape(x.shape), atol=1e-4)


@pytest.mark.parametrize("family", models.MODELS)
def test_each_norm_a_family_offers_is_the_one_it_gets(family):
    offered = models.MODELS[family].options.get("norm")
    kinds = {"batch": "BatchNorm", "layer": "LayerNorm", "group": "GroupNorm"}
    for choice in offered.choices if offered else ():
        shape = (6,) if models.MODELS[family].inputs == "tokens" else (8, 8, 2)
        model = models.build(family, input_shape=shape, classes=CLASSES, norm=choice)
        variables = jax.eval_shape(model.init, jax.random.key(0))
        found = re.findall("[A-Z][a-z]+Norm", str(jax.tree.structure(variables["params"])))
        assert set(found) == ({kinds[choice]} if choice in kinds else set())
        assert ("batch_stats" in variables) == (choice == "batch")


def test_batch_statistics_follow_the_batches_in_training_and_stay_at_evaluation():
    model, variables = trained("cnn").model, trained("cnn").variables
    shifted = 3 + make_inputs(CASES["cnn"], 64)
    _, kept = model.apply(variables, shifted, train=False)
    jax.tree.map(np.testing.assert_array_equal, kept, variables["batch_stats"])
    stats, logits = variables["batch_stats"], np.zeros(())
    apply = jit(functools.partial(model.apply, train=True))
    for _ in range(60):  # momentum 0.9: what is left of the start is 0.9^60 = 0.002
        logits, stats = apply({**variables, "batch_stats": stats}, shifted)
    evaluated, _ = model.apply({**variables, "batch_stats": stats}, shifted, train=False)
    np.testing.assert_allclose(evaluated, logits, atol=0.02 * np.abs(logits).max())


@pytest.mark.parametrize(
    ("name", "option"),
    [("mlp", "dropout"), ("resnet", "stochastic_depth")],
)
def test_what_is_dropped_is_told_by_the_key(name, option):
    case = CASES[name]
    model = case.build(**{option: 0.5})
    variables = settle(trained(name).variables)
    inputs = make_inputs(case, 4)
    apply = jit(functools.partial(model.apply, train=True))
    first, _ = apply(variables, inputs, key=jax.random.key(0))
    again, _ = apply(variables, inputs, key=jax.random.key(0))
    other, _ = apply(variables, inputs, key=jax.random.key(1))
    np.testing.assert_array_equal(first, again)
    assert np.any(first != other)


def test_stochastic_depth_drops_whole_branches_and_keeps_the_mean():
    class Dropping(nn.Module):
        @nn.compact
        def __call__(self, x):
            return drop_path(self, x, 0.25, True)

    dropped = Dropping().apply({}, jnp.ones((4000, 3)), rngs={"dropout": jax.random.key(0)})
    np.testing.assert_allclose(np.unique(dropped), [0, 4 / 3], rtol=1e-6)
    np.testing.assert_array_equal(dropped.min(1), dropped.max(1))
    assert dropped.mean() == pytest.approx(1, abs=4 * 0.58 / 4000**0.5)  # four standard errors
    assert drop_path_rates(0.3, 4) == pytest.approx((0, 0.1, 0.2, 0.3))
    assert drop_path_rates(0.3, 1) == (0,)


@pytest.mark.parametrize("name", ["resnet", "wide_resnet"])
def test_residual_branches_begin_as_zero(name):
    """The logits do not hang on what is inside a branch: a deep network begins as a shallow one."""
    case = trained(name)
    params = dict(case.variables["params"])
    for block in [key for key in params if key.startswith("ResidualBlock")]:
        inside = jax.tree.map(lambda leaf: leaf + 1, params[block]["Conv_0"])
        params[block] = {**params[block], "Conv_0": inside}
    moved = {**case.variables, "params": params}
    logits = case.evaluate(case.variables, case.inputs)
    np.testing.assert_array_equal(case.evaluate(moved, case.inputs), logits)


def test_average_pooling_and_max_pooling_of_odd_sizes():
    x = jnp.arange(25.0).reshape(1, 5, 5, 1)
    np.testing.assert_array_equal(pool_2x2(x, "max")[0, :, :, 0], [[6, 8], [16, 18]])
    np.testing.assert_array_equal(pool_2x2(x, "mean")[0, :, :, 0], [[3, 5], [13, 15]])


@pytest.mark.parametrize("name", ["relu", "tanh", "selu"])
def test_weights_are_scaled_for_the_activation_before_them(name):
    model = models.build(
        "mlp", input_shape=(8, 8, 4), classes=2, depth=3, width=256, activation=name
    )
    params = jit(model.init)(jax.random.key(0))["params"]
    variances = [float(jnp.var(params[f"Dense_{layer}"]["kernel"])) * 256 for layer in range(3)]
    gain = ACTIVATIONS[name].gain  # 65,536 weights: the variance is known to within 1 %
    np.testing.assert_allclose(variances, [1, gain, gain], rtol=0.03)


def flops(jaxpr):
    """Two for each multiplication and addition in products and convolutions, padding counted in."""
    total = 0
    for equation in jaxpr.eqns:
        out, name = equation.outvars[0].aval, equation.primitive.name
        if name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            total += 2 * out.size * math.prod(equation.invars[0].aval.shape[a] for a in contracted)
        elif name == "conv_general_dilated":
            kernel = equation.invars[1].aval
            channels = kernel.shape[equation.params["dimension_numbers"].rhs_spec[0]]
            total += 2 * out.size * kernel.size // channels
        inner = [p for p in equation.params.values() if hasattr(p, "eqns") or hasattr(p, "jaxpr")]
        rounds = equation.params["length"] if name == "scan" else 1
        total += rounds * sum(flops(getattr(p, "jaxpr", p)) for p in inner)
    return total


@pytest.mark.parametrize("name", models.PRESETS)
def test_presets_have_the_parameters_and_flops_they_say(name):
    family, _ = models.PRESETS[name]
    text = models.PRESETS.describe(name)
    stated = re.search(r"([\d,]+) parameters, ([\d.]+) MFLOPs forward, for (.*)\.", text)
    assert stated
    parameters, megaflops, size = stated.groups()
    image = {"input_shape": (32, 32, 3), "classes": 10}
    tokens = {"input_shape": (256,), "classes": 65}
    shapes = {"a 32 x 32 x 3 image and 10 classes": image, "256 of 65 tokens": tokens}[size]
    model = models.build(name, **shapes)
    assert model.family == family
    variables = jax.eval_shape(model.init, jax.random.key(0))
    counted = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert f"{counted:,}" == parameters
    dtype = jnp.float32 if shapes is image else jnp.int32
    inputs = jax.ShapeDtypeStruct((1, *model.input_shape), dtype)
    program = jax.make_jaxpr(functools.partial(model.apply, train=False))(variables, inputs)
    assert f"{flops(program.jaxpr) / 1e6:.1f}" == megaflops


def test_a_presets_values_are_defaults():
    shapes = {"input_shape": (32, 32, 3), "classes": 10}
    model = models.build("resnet164", depth=29, norm="group", **shapes)
    assert (model.family, model.depth, model.width) == ("resnet", 29, 16)
    options = {"block": "bottleneck", "version": "v2", "norm": "group", "stochastic_depth": 0.0}
    assert dict(model.options) == options
    assert models.build("lstm", input_shape=(6,), classes=3).activation == "tanh"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"family": "restnet"}, "Did you mean 'resnet'"),
        ({"family": "resnet", "depth": 9}, r"6n\+2 for n = 1, 2, .*Nearest: 8 or 14"),
        ({"family": "resnet", "depth": 2}, "Nearest: 8"),
        ({"family": "resnet", "depth": 8, "block": "bottleneck"}, r"9n\+2 .*Nearest: 11"),
        ({"family": "mlp", "depth": 0}, "at least 1"),
        ({"family": "mlp", "width": 0}, "--width=0 .* at least 1"),
        ({"family": "mlp", "stochastic_depth": 0.1}, "Allowed: dropout, norm"),
        ({"family": "cnn", "dropout": 1.0}, "below 1"),
        ({"family": "cnn", "norm": "bach"}, "Did you mean 'batch'"),
        ({"family": "cnn", "activation": "rellu"}, "Did you mean 'relu'"),
        ({"family": "cnn", "precision": "float8"}, "bfloat16, float32"),
        ({"family": "cnn", "input_shape": (16,)}, "takes images"),
        ({"family": "lstm"}, "takes token sequences"),
        ({"family": "vit", "width": 100, "heads": 8}, "multiple of them. Nearest: 96"),
        ({"family": "vit", "patch_size": 3}, "8 x 8: it must divide both"),
        ({"family": "wide_resnet", "depth": 12}, r"6n\+4 .*Nearest: 10 or 16"),
    ],
)
def test_wrong_values_are_refused(arguments, message):
    with pytest.raises(UsageError, match=message):
        models.build(**{"input_shape": (8, 8, 1), "classes": 10, **arguments})


def test_a_norm_that_would_leave_nothing_is_refused_or_widened():
    narrow = models.build("mlp", input_shape=(8, 8, 1), classes=10, width=1, norm="layer")
    with pytest.raises(UsageError, match="--width must be at least 2"):
        jax.eval_shape(narrow.init, jax.random.key(0))
    assert [group_size(channels) for channels in (64, 24, 20, 7, 6)] == [16, 8, 4, 7, 6]


def test_heads_are_as_many_as_divide_the_width_unless_asked_for():
    assert [head_count(width, None) for width in (16, 64, 100, 96)] == [1, 2, 2, 3]
    assert head_count(100, 4) == 4
