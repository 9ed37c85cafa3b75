"""Forms compute what plain Flax computes, to rounding, and are taken where they are said to be."""

import dataclasses
import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxenergy import data, models
from jaxenergy.activations import ACTIVATIONS
from jaxenergy.config import RunConfig
from jaxenergy.models import forms
from jaxenergy.models.attention import _attend
from jaxenergy.models.layers import conv, dense
from jaxenergy.models.lstm import LSTMLayer
from jaxenergy.training.plan import make_plan


def values_and_gradients(function, *arrays):
    """The value and, for a random cotangent, the gradient to each array."""

    def both(*arrays):
        value, backward = jax.vjp(function, *arrays)
        cotangent = np.random.default_rng(9).normal(size=value.shape).astype("f4")
        return value, *backward(jnp.asarray(cotangent, value.dtype))

    return jax.jit(both)(*arrays)


def assert_equal(form, plain, *arrays):
    """In float32 as near to plain float64 as plain float32 is, up to a small factor."""
    for dtype, tolerance in ((jnp.float32, 2e-6), (jnp.float64, 1e-13)):
        with jax.enable_x64(dtype == jnp.float64):
            given = [jnp.asarray(array, dtype) for array in arrays]
            found = values_and_gradients(form, *given)
            wanted = values_and_gradients(plain, *given)
            for got, want in zip(found, wanted, strict=True):
                assert got.dtype == want.dtype == dtype
                scale = float(np.abs(want).max())
                # A gradient to a kernel sums over all positions: its rounding grows with the root.
                np.testing.assert_allclose(got, want, atol=20 * tolerance * scale, rtol=0)


def assert_curvature_is_equal(form, plain, *arrays):
    """A gradient's derivative along the arrays, as estimates of the Hessian take it."""

    def curvature(function):
        gradient = jax.grad(lambda arrays: jnp.sum(function(*arrays) ** 2))
        return jax.jit(lambda at: jax.jvp(gradient, (at,), (at,))[1])(given)

    given = tuple(jnp.asarray(array, jnp.float32) for array in arrays)
    for got, want in zip(curvature(form), curvature(plain), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5 * np.abs(want).max())


def draw(*shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape) for shape in shapes]


def convolution(groups=1, stride=1):
    return lambda x, kernel: jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def depthwise(stride, examples=4):
    return lambda x, kernel: forms.depthwise(x, kernel, stride, examples)


# form, its function, size, stride, channels in and out, side
CONVOLUTIONS = [
    ("depthwise", depthwise, 3, 1, 6, 6, 8),
    ("depthwise", depthwise, 3, 2, 6, 6, 8),
    ("depthwise", depthwise, 3, 2, 6, 6, 7),
    ("depthwise", depthwise, 7, 1, 5, 5, 4),
    (
        "patches",
        lambda stride: functools.partial(forms.patch_product, stride=stride),
        1,
        1,
        6,
        4,
        8,
    ),
    (
        "patches",
        lambda stride: functools.partial(forms.patch_product, stride=stride),
        1,
        2,
        6,
        4,
        8,
    ),
    (
        "patches",
        lambda stride: functools.partial(forms.patch_product, stride=stride),
        2,
        2,
        3,
        4,
        8,
    ),
    ("strided", lambda stride: forms.strided, 3, 2, 6, 4, 8),
]


@pytest.mark.parametrize(
    ("name", "make", "size", "stride", "channels", "features", "side"),
    CONVOLUTIONS,
    ids=[f"{case[0]}-{case[2]}-{case[3]}-{case[6]}" for case in CONVOLUTIONS],
)
def test_a_convolution_and_its_gradients_are_the_plain_ones(
    name, make, size, stride, channels, features, side
):
    groups = channels if name == "depthwise" else 1
    shapes = (4, side, side, channels), (size, size, channels // groups, features)
    assert_equal(make(stride), convolution(groups, stride), *draw(*shapes))
    assert_curvature_is_equal(make(stride), convolution(groups, stride), *draw(*shapes))
    # And it is the one that a layer of that shape takes.
    layer = conv(features, size, jnp.float32, strides=stride, groups=groups)
    x = jnp.zeros(shapes[0])
    variables = jax.eval_shape(layer.init, jax.random.key(0), x)
    with forms.choose([name]) as taken:
        jax.eval_shape(layer.apply, variables, x)
    assert taken == {name}


@pytest.mark.parametrize(("size", "stride", "side"), [(3, 1, 8), (3, 2, 7), (7, 1, 4)])
def test_a_depthwise_gradient_by_blocks_of_examples_is_the_plain_one(size, stride, side):
    shapes = (6, side, side, 5), (size, size, 1, 5)
    by_blocks, plain = depthwise(stride, examples=2), convolution(5, stride)
    assert_equal(by_blocks, plain, *draw(*shapes))
    assert_curvature_is_equal(by_blocks, plain, *draw(*shapes))


@pytest.mark.parametrize(
    ("shape", "size", "stride", "examples"),
    [
        ((128, 32, 32, 64), 3, 1, 2),
        ((128, 32, 32, 64), 3, 2, 8),
        ((128, 16, 16, 32), 7, 1, 4),
        ((100, 16, 16, 32), 7, 1, 5),
        ((4, 128, 128, 64), 3, 1, 1),  # an image alone is more than a block
        ((127, 16, 16, 32), 7, 1, 127),  # no divisor but one, which is too few for a block
        ((64, 8, 8, 16), 3, 1, 64),  # all of it is less than a block
        ((1, 32, 32, 64), 3, 1, 1),
    ],
)
def test_a_block_is_of_as_many_examples_as_a_cache_holds(shape, size, stride, examples):
    groups = shape[-1]
    layer = conv(groups, size, jnp.float32, strides=stride, groups=groups)
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    variables = jax.eval_shape(layer.init, jax.random.key(0), x)

    def gradient(variables, x):
        return jax.grad(lambda variables: layer.apply(variables, x).sum())(variables)

    def traced(*names):  # a function of its own, since JAX keeps what it traced of another
        with forms.choose(names) as taken:
            return str(jax.make_jaxpr(lambda *given: gradient(*given))(variables, x)), taken

    program, taken = traced("depthwise", "depthwise_blocks")
    blocks = shape[0] // examples
    assert taken == {"depthwise"} | ({"depthwise_blocks"} if blocks > 1 else set())
    assert (f"length={blocks}" in program) == (blocks > 1)
    assert "length=" not in traced("depthwise")[0]


@pytest.mark.parametrize("examples", [8, 2])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_depthwise_convolution_in_bfloat16_is_rounded_as_the_plain_one(stride, examples):
    """Its sums, over taps and over positions, are in float32."""
    arrays = draw((8, 32, 32, 5), (7, 7, 1, 5))
    (cotangent,) = draw((8, 32 // stride, 32 // stride, 5), seed=1)

    def results(function, dtype):
        with jax.enable_x64(dtype == jnp.float64):
            x, kernel, given = (
                jnp.asarray(jnp.asarray(a, jnp.bfloat16), dtype) for a in (*arrays, cotangent + 0.3)
            )
            value, backward = jax.vjp(function, x, kernel)
            return [np.asarray(array, "f8") for array in (value, *backward(given))]

    exact = results(convolution(5, stride), jnp.float64)
    found = results(depthwise(stride, examples), jnp.bfloat16)
    for got, want in zip(found, exact, strict=True):
        assert np.linalg.norm(got - want) < 2**-8 * np.linalg.norm(want)


def test_other_convolutions_stay_plain():
    for size, stride, groups, side in ((3, 2, 1, 7), (3, 1, 1, 6), (5, 1, 1, 8), (3, 1, 4, 8)):
        layer = conv(8, size, jnp.float32, strides=stride, groups=groups)
        x = jnp.zeros((2, side, side, 8))
        variables = jax.eval_shape(layer.init, jax.random.key(0), x)
        with forms.choose(forms.FORMS) as taken:
            jax.eval_shape(layer.apply, variables, x)
        assert taken == set(), (size, stride, groups, side)


def test_causal_attention_and_its_gradients_are_the_plain_ones():
    query, key, value = draw(*[(4, 192, 2, 8)] * 3)

    def plain(query, key, value):
        scores = jnp.einsum("btnh,bsnh->bnts", query, key) * query.shape[-1] ** -0.5
        scores = jnp.where(jnp.tri(scores.shape[-1], dtype=bool), scores, -jnp.inf)
        return jnp.einsum("bnts,bsnh->btnh", jax.nn.softmax(scores), value)

    assert_equal(forms.causal_attention, plain, query, 3 * key, value)
    arrays = [jnp.asarray(array, jnp.float32) for array in (query, key, value)]
    for causal, rows, taken_by in (
        (True, 4, {"causal_attention"}),
        (False, 4, set()),
        (True, 3, set()),
    ):
        with forms.choose(forms.FORMS) as taken:
            jax.eval_shape(functools.partial(_attend, causal=causal), *(a[:rows] for a in arrays))
        assert taken == taken_by


@pytest.mark.parametrize("form", ["deferred_products", "recurrence"])
def test_a_recurrent_layer_and_its_gradients_are_the_plain_ones(form):
    layer = LSTMLayer(width=5, activation=ACTIVATIONS["tanh"], dtype=jnp.float32)
    (x,) = draw((64, 7, 4))
    variables = layer.init(jax.random.key(0), jnp.asarray(x, jnp.float32))
    shapes = jax.tree.map(jnp.shape, variables)
    flat, build = jax.tree.flatten(variables)

    def apply(x, *leaves):
        return layer.clone(dtype=x.dtype).apply(build.unflatten(leaves), x)

    def formed(x, *leaves):
        with forms.choose([form]) as taken:
            found = apply(x, *leaves)
        assert taken == {form}
        return found

    assert_equal(formed, apply, x, *map(np.asarray, flat))
    assert_curvature_is_equal(formed, apply, x, *map(np.asarray, flat))
    with forms.choose([form]):
        assert jax.tree.map(jnp.shape, layer.init(jax.random.key(0), jnp.asarray(x))) == shapes


def test_a_recurrent_layer_is_plain_where_no_form_suits():
    layer = LSTMLayer(width=5, activation=ACTIVATIONS["tanh"], dtype=jnp.float32)
    narrow = layer.clone(dtype=jnp.bfloat16)
    variables = layer.init(jax.random.key(0), jnp.zeros((1, 7, 4)))
    for platform, of, examples in (("cpu", narrow, 64), ("cpu", layer, 63), ("gpu", narrow, 1)):
        with forms.choose(forms.forms_of(platform)) as taken:
            jax.eval_shape(of.apply, variables, jnp.zeros((examples, 7, 4), of.dtype))
        assert taken - {"materialised"} == set()


def test_gates_are_looked_up_where_a_batch_has_more_positions_than_there_are_tokens():
    model = models.build("lstm", input_shape=(5,), classes=45, width=4)
    formed = dataclasses.replace(model, forms=("looked_up_gates",))
    assert formed.forms_taken(9) == ()
    assert formed.forms_taken(10) == ("looked_up_gates",)
    few = models.build("lstm", input_shape=(5,), classes=2, width=4)
    few = dataclasses.replace(few, forms=("looked_up_gates",))
    assert few.forms_taken(7) == ()
    assert few.forms_taken(8) == ("looked_up_gates",)
    narrow = models.build("lstm", input_shape=(5,), classes=45, width=4, precision="bfloat16")
    assert dataclasses.replace(narrow, forms=("looked_up_gates",)).forms_taken(10) == ()


@pytest.mark.parametrize("form", [forms.materialised, forms.gradient_materialised])
def test_what_is_materialised_is_itself_and_so_is_its_gradient(form):
    (x,) = draw((8, 64, 64))

    def applied(x, names=("materialised",)):
        with forms.choose(names) as taken:
            found = form(jnp.tanh(x)).transpose(2, 0, 1) * 2
        assert taken == set(names)
        return found

    plain = functools.partial(applied, names=())
    assert_equal(applied, plain, x)
    x = jnp.asarray(x, jnp.float32)
    np.testing.assert_array_equal(jax.vmap(applied)(x[None]), jax.vmap(plain)(x[None]))
    assert_curvature_is_equal(applied, plain, x)
    with forms.choose(forms.FORMS) as taken:
        form(x[:1])
    assert taken == set()


def test_xla_computes_once_what_is_materialised():
    """A call in the compiled program gives what is convolved, another the result's gradient."""
    layer = conv(16, 3, jnp.float32)
    x = jnp.zeros((32, 16, 16, 16))
    variables = layer.init(jax.random.key(0), x)

    def loss(variables, x):
        return layer.apply(variables, jnp.tanh(x)).sum()

    for names, calls in (["materialised"], 2), ([], 0):
        with forms.choose(names) as taken:
            text = jax.jit(jax.grad(loss)).lower(variables, x).compile().as_text()
        assert len(re.findall(r" call\(.*inlineable=\"false\"", text)) == calls
        assert taken == set(names)
    layer = dense(16, jnp.float32)
    with forms.choose(forms.FORMS) as taken:
        jax.eval_shape(lambda: layer.init_with_output(jax.random.key(0), jnp.zeros((2048, 4))))
    assert taken == {"materialised"}


# What a GPU of this machine could not be asked for stays out: `tests/test_gpu.py` has it.
OF_GPUS: dict[str, tuple[dict[str, Any], set[str]]] = {
    "convnext": ({"depth": 1, "width": 8}, {"depthwise_small"}),
    "lstm": ({"depth": 1, "width": 8}, {"deferred_products"}),
    "transformer_lm": ({"depth": 1, "width": 16}, set()),
}


@pytest.mark.parametrize(
    ("family", "is_formed"),
    [(family, False) for family in OF_GPUS]
    + [(family, True) for family, (_, taken) in OF_GPUS.items() if taken],
)
def test_no_gradient_is_lost_to_bfloat16(family, is_formed):
    """Each is within 3 % of float64's: none is a sum of thousands of numbers in bfloat16."""
    arguments, taken = OF_GPUS[family]
    # An LSTM's recurrent weights meet each position: their gradient is a sum over the length.
    shape = {"convnext": (8, 8, 3), "lstm": (256,), "transformer_lm": (64,)}[family]
    model = models.build(family, input_shape=shape, classes=5, precision="bfloat16", **arguments)
    if is_formed:
        model = dataclasses.replace(model, forms=tuple(forms.TRAINING_FORMS))
    assert set(model.forms_taken(128)) == (taken if is_formed else set())
    rng, examples = np.random.default_rng(0), 32 if family == "lstm" else 128
    x = rng.normal(size=(examples, *shape))
    if family != "convnext":
        x = rng.integers(0, 5, x.shape)
    labels = rng.choice(5, x.shape[:1] if family == "convnext" else x.shape, p=[0.6, *[0.1] * 4])
    params = jax.tree.map(np.asarray, jax.jit(model.init)(jax.random.key(0))["params"])

    def gradients(dtype):
        with jax.enable_x64(dtype == "float64"):
            of = dataclasses.replace(model, module=model.module.clone(dtype=jnp.dtype(dtype)))
            wide = jnp.float64 if dtype == "float64" else jnp.float32

            def loss(params):
                given = jnp.asarray(x, wide if family == "convnext" else jnp.int32)
                logits, _ = of.apply({"params": params}, given, train=True)
                chances = jax.nn.log_softmax(logits)
                return -jnp.take_along_axis(chances, jnp.asarray(labels)[..., None], -1).mean()

            found = jax.jit(jax.grad(loss))(
                jax.tree.map(lambda leaf: jnp.asarray(leaf, wide), params)
            )
            return jax.tree.map(lambda leaf: np.asarray(leaf, "f8"), found)

    exact, found = gradients("float64"), gradients("bfloat16")
    for (path, want), got in zip(
        jax.tree_util.tree_leaves_with_path(exact), jax.tree.leaves(found), strict=True
    ):
        assert np.linalg.norm(got - want) < 0.03 * np.linalg.norm(want), path


def test_predictions_take_no_form_that_was_measured_in_training_alone():
    model = models.build(
        "convnext", input_shape=(8, 8, 3), classes=5, depth=1, width=4, precision="bfloat16"
    )
    formed = dataclasses.replace(model, forms=forms.forms_of("gpu"))
    variables = jax.eval_shape(model.init, jax.random.key(0))
    x = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)

    def program(model, train):
        return str(jax.make_jaxpr(functools.partial(model.apply, train=train))(variables, x))

    assert program(formed, train=False) == program(model, train=False)
    assert program(formed, train=True) != program(model, train=True)


FAMILIES: dict[str, tuple[dict[str, Any], set[str]]] = {
    "cnn": ({"depth": 3, "width": 4}, {"materialised"}),
    "resnet": ({"depth": 8, "width": 4}, {"materialised", "patches", "strided"}),
    "mobilenet": ({"depth": 4, "width": 4}, {"depthwise", "materialised", "patches"}),
    "convnext": ({"depth": 1, "width": 4}, {"depthwise", "materialised", "patches"}),
    "lstm": ({"depth": 2, "width": 4}, {"looked_up_gates", "materialised", "recurrence"}),
}


@pytest.mark.parametrize(
    "family",
    # Together the others take each form too; these take the longest to compile.
    [
        pytest.param(name, marks=pytest.mark.slow if name in ("mobilenet", "resnet") else ())
        for name in FAMILIES
    ],
)
def test_a_network_with_forms_has_the_gradients_of_the_plain_one(family, monkeypatch):
    monkeypatch.setattr(forms, "_MATERIALISED", 1)  # as if the arrays were those of a real network
    arguments, taken = FAMILIES[family]
    reads_tokens = family == "lstm"
    input_shape, examples = ((9,), 64) if reads_tokens else ((16, 16, 3), 4)
    plain = models.build(family, input_shape=input_shape, classes=3, **arguments)
    formed = dataclasses.replace(plain, forms=forms.forms_of("cpu"))
    assert set(formed.forms_taken(examples)) == taken
    assert plain.forms_taken(examples) == ()
    variables = jax.jit(plain.init)(jax.random.key(0))
    assert jax.tree.structure(variables) == jax.tree.structure(
        jax.eval_shape(formed.init, jax.random.key(0))
    )
    if reads_tokens:
        x = jax.random.randint(jax.random.key(1), (examples, *input_shape), 0, 3)
    else:
        x = jnp.asarray(*draw((examples, *input_shape)), jnp.float32)
    assert jax.tree.structure(
        jax.eval_shape(functools.partial(formed.apply, train=True), variables, x)
    ) == jax.tree.structure(
        jax.eval_shape(functools.partial(plain.apply, train=True), variables, x)
    )

    def gradients(model, dtype):
        model = dataclasses.replace(model, module=model.module.clone(dtype=jnp.dtype(dtype)))

        def loss(params, variables, x):
            logits, stats = model.apply({**variables, "params": params}, x, train=True)
            return jnp.sum(jnp.sin(3 * logits)), stats

        # Not with xla_backend_optimization_level=0, as other tests have it: what is optimised is
        # what runs, and without it jaxlib 0.10.2 gets gradients of max-pooling wrong.
        given = variables["params"], variables, x
        with jax.enable_x64(dtype == "float64"):
            given = jax.tree.map(
                lambda leaf: jnp.asarray(leaf, dtype if leaf.dtype == jnp.float32 else None), given
            )
            found = jax.jit(jax.grad(loss, has_aux=True))(*given)
        return list(map(np.asarray, jax.tree.leaves(found)))

    exact = gradients(plain, "float64")
    assert {leaf.dtype for leaf in exact} == {np.dtype("float64")}

    def distance(found):
        """The root mean square over all numbers, each over the largest of its array."""
        errors = [
            (got - want).ravel() / (np.abs(want).max() + 1e-6)
            for got, want in zip(found, exact, strict=True)
        ]
        return np.sqrt(np.mean(np.square(np.concatenate(errors))))

    # The same function, and in float32 as near to it as plain Flax is, whose own rounding grows
    # through the layers, most where a norm divides by a small deviation.
    assert distance(gradients(formed, "float64")) < 1e-10
    assert distance(gradients(formed, "float32")) < 3 * distance(gradients(plain, "float32"))


def test_the_plan_says_which_forms_are_taken_and_plain_takes_none():
    dataset = data.load("synthetic:16x16x3,examples=40")
    config = RunConfig(model="convnext", depth=3, width=4, batch_size=20, updates=1)
    taken = {
        (platform, choice): make_plan(
            dataclasses.replace(config, forms=choice), dataset, platform
        ).resolved()["forms"]
        for platform in ("cpu", "gpu")
        for choice in ("auto", "plain")
    }
    assert taken["cpu", "auto"] == ["depthwise", "patches"]
    assert taken["cpu", "plain"] == taken["gpu", "plain"] == []
    assert taken["gpu", "auto"] == []  # in float32; in bfloat16:
    config = dataclasses.replace(config, precision="bfloat16")
    assert make_plan(config, dataset, "gpu").resolved()["forms"] == ["depthwise_small"]


@pytest.mark.parametrize(
    ("settings", "length", "taken"),
    [
        ({}, 256, True),
        ({}, 254, False),
        ({}, 257, False),
        ({}, 258, True),
        ({"precision": "float32"}, 256, False),
        ({"optimizer": "dpsgd"}, 256, False),
        ({"optimizer": "sophia"}, 256, False),
        ({"optimizer": "optax:sgd", "learning_rate": 0.1}, 256, False),
        ({"width": 12, "model_args": "heads=1"}, 256, False),
    ],
    ids=[
        "taken",
        "short",
        "odd",
        "longer",
        "float32",
        "by-example",
        "second-derivatives",
        "plug-in",
        "odd-heads",
    ],
)
def test_cudnns_attention_is_taken_where_it_gains_and_can_be_differentiated(
    monkeypatch, settings, length, taken
):
    dataset = data.load(f"synthetic:{length},classes=5,examples=40")
    config = RunConfig(
        **{"model": "transformer_lm", "depth": 1, "width": 16, "batch_size": 4, "updates": 1}
        | {"precision": "bfloat16"}
        | settings
    )
    assert "flash_attention" not in make_plan(config, dataset, "gpu").forms  # no such GPU
    monkeypatch.setattr(forms, "_has_hopper", lambda: True)
    asked = []

    def attend(query, key, value):  # cuDNN is asked while a network is traced
        asked.append(query.shape)
        return jax.nn.dot_product_attention(query, key, value, is_causal=True)

    monkeypatch.setattr(forms, "flash_attention", attend)
    assert ("flash_attention" in make_plan(config, dataset, "gpu").forms) == taken
    assert asked == ([(4, length, 1, 16)] if taken else [])


@pytest.mark.parametrize(
    ("settings", "taken"),
    [
        ({}, True),
        ({"precision": "bfloat16", "depth": 2}, True),
        ({"optimizer": "sophia"}, True),
        ({"accumulate": 8}, True),
        ({"accumulate": 16}, False),
        ({"optimizer": "dpsgd"}, False),
        ({"forms": "plain"}, False),
    ],
)
def test_products_are_deferred_in_training_on_a_gpu_where_a_layer_meets_several_examples(
    settings, taken
):
    dataset = data.load("stdlib:length=8")
    config = RunConfig(model="lstm", width=4, batch_size=16, updates=1, **settings)
    assert make_plan(config, dataset, "gpu").forms == (("deferred_products",) if taken else ())
    assert "deferred_products" not in make_plan(config, dataset, "cpu").forms


@pytest.mark.parametrize(
    ("settings", "taken"),
    [({}, True), ({"accumulate": 4}, False), ({"optimizer": "dpsgd"}, False)],
    ids=["batch", "micro-batches", "by-example"],
)
def test_the_plan_counts_the_examples_that_a_layer_meets_at_once(settings, taken):
    dataset = data.load("stdlib:length=128")
    config = RunConfig(model="lstm", width=4, batch_size=16, updates=1, **settings)
    assert ("looked_up_gates" in make_plan(config, dataset, "cpu").forms) == taken
