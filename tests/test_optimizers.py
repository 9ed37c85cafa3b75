"""Optimizers: one table drives all tests. Each moves as Optax's own does, and descends."""

import inspect
import json
import sys
import textwrap
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from optax import contrib

from jaxenergy import data, models, optimizers
from jaxenergy.data.pipeline import normalise
from jaxenergy.errors import UsageError
from jaxenergy.optimizers.cost import UpdateCost, update_cost
from jaxenergy.optimizers.hyper_parameters import NOT_OFFERED, arguments_of

NAMES = tuple(optimizers.OPTIMIZERS)

TARGETS = {"kernel": jnp.linspace(-1.0, 2.0, 12).reshape(4, 3), "bias": jnp.array([1.0, -1.0, 0.5])}


def make_params():
    """Fresh each time, since tests give them away."""
    return {"kernel": jnp.full((4, 3), 0.5, jnp.float32), "bias": jnp.full((3,), 0.1, jnp.float32)}


def quadratic(params):
    squares = jax.tree.map(lambda p, t: jnp.sum((p - t) ** 2), params, TARGETS)
    return 0.5 * (squares["kernel"] + squares["bias"])


def is_matrix(params):
    return jax.tree.map(lambda param: param.ndim >= 2, params)


EXAMPLES = jnp.linspace(0.5, 1.5, 64)  # weights of single examples; their mean is one


def gradients(per_example, params):
    """The quadratic's gradient, or those of single examples with a leading axis."""
    if not per_example:
        return jax.grad(quadratic)(params)
    return jax.vmap(lambda weight: jax.grad(lambda p: weight * quadratic(p))(params))(EXAMPLES)


# How Optax is called directly so that it means the same: by name, the optimizer for a learning
# rate, where that is not `optax.NAME(learning_rate)`.
DIRECT = {
    "acprop": lambda rate: contrib.acprop(rate, eps=1e-4),
    "adamaxw": lambda rate: optax.adamaxw(rate, mask=is_matrix),
    "adamw": lambda rate: optax.adamw(rate, mask=is_matrix),
    "dpsgd": lambda rate: contrib.dpsgd(rate, l2_norm_clip=1.0, noise_multiplier=1.0, seed=0),
    "galore": lambda rate: contrib.galore(rate, scale=0.25),
    "lbfgs": lambda rate: optax.lbfgs(rate),
    "lion": lambda rate: optax.lion(rate, mask=is_matrix),
    "lookahead": lambda rate: optax.lookahead(optax.sgd(rate), 5, 0.5),
    "mechanize": lambda rate: contrib.mechanize(optax.sgd(rate)),
    "muon": lambda rate: contrib.muon(rate, adam_learning_rate=1e-3),
    "nadamw": lambda rate: optax.nadamw(rate, mask=is_matrix),
    "noisy_sgd": lambda rate: optax.noisy_sgd(rate, key=0),
    "reduce_on_plateau": lambda rate: optax.chain(
        optax.sgd(rate), contrib.reduce_on_plateau(0.5, 5, accumulation_size=20)
    ),
    "sam": lambda rate: contrib.sam(
        optax.sgd(rate), optax.chain(contrib.normalize(), optax.sgd(0.05)), opaque_mode=True
    ),
    "schedule_free": lambda rate: contrib.schedule_free(optax.sgd(rate), rate),
    "sophia": lambda rate: contrib.sophia(rate, weight_decay_mask=is_matrix),
}

# What a direct call of `update` needs beyond gradients, state and parameters.
EXTRA = {
    "lbfgs": lambda value, grads: {"value": value, "grad": grads, "value_fn": quadratic},
    "momo": lambda value, grads: {"value": value},
    "momo_adam": lambda value, grads: {"value": value},
    "polyak_sgd": lambda value, grads: {"value": value},
    "reduce_on_plateau": lambda value, grads: {"value": value},
    "sam": lambda value, grads: {"grad_fn": lambda params, step: jax.grad(quadratic)(params)},
    "sophia": lambda value, grads: {"obj_fn": quadratic},
}


class Ours:
    def __init__(self, name):
        self.optimizer = optimizers.build(name, total_updates=100, schedule="constant")

    def init(self):
        return make_params(), self.optimizer.tx.init(make_params())

    def update(self, carry):
        params, state = carry
        grads = gradients(self.optimizer.per_example_gradients, params)
        return self.optimizer.update(
            grads, state, params, value=quadratic(params), value_fn=quadratic
        )


class Theirs:
    def __init__(self, name, learning_rate):
        self.name = name
        make = DIRECT.get(name) or getattr(optax, name, None) or getattr(contrib, name)
        self.tx = make(learning_rate)

    def init(self):
        params = make_params()
        if self.name == "lookahead":
            params = optax.LookaheadParams.init_synced(params)
        # L-BFGS's state begins weakly typed, and would be traced again; keys stay as they are.
        return params, jax.tree.map(
            lambda x: x if x.dtype == jax.random.key(0).dtype else jnp.asarray(x, x.dtype),
            self.tx.init(params),
        )

    def update(self, carry):
        params, state = carry
        point = params.fast if self.name == "lookahead" else params
        grads = gradients(self.name == "dpsgd", point)
        extra = EXTRA[self.name](quadratic(point), grads) if self.name in EXTRA else {}
        updates, state = self.tx.update(grads, state, params, **extra)
        return optax.apply_updates(params, updates), state


def copy_of(carry):
    """In buffers of its own, since Optax lets some states share theirs with the parameters."""
    return jax.tree.map(jnp.copy, carry)


@pytest.mark.filterwarnings("ignore:`optimistic_adam` is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings('ignore:"seed" is deprecated:DeprecationWarning')
@pytest.mark.parametrize("name", NAMES)
def test_moves_as_optax_does_descends_and_can_be_donated(name):
    """Five updates equal Optax's; then on to 100, all with donated state and one trace."""
    ours = Ours(name)
    theirs = Theirs(name, ours.optimizer.learning_rate)
    traces = []

    @partial(jax.jit, donate_argnums=0)
    def update(carries):
        traces.append(name)
        return ours.update(carries[0]), theirs.update(carries[1])

    carries = jax.jit(lambda: copy_of((ours.init(), theirs.init())))()
    before = quadratic(carries[0][0])
    for _ in range(5):
        given_away = carries
        carries = update(carries)
        (params, state), (expected, _) = carries
        assert given_away[0][0]["kernel"].is_deleted()
        if name == "lookahead":
            evaluated = ours.optimizer.evaluation_params(params, state)
            jax.tree.map(np.testing.assert_array_equal, evaluated, expected.slow)
            expected = expected.fast
        jax.tree.map(np.testing.assert_array_equal, params, expected)
    for _ in range(95):
        carries = update(carries)
    params, state = carries[0]
    assert quadratic(params) < 0.98 * before
    assert quadratic(ours.optimizer.evaluation_params(params, state)) < 0.98 * before
    assert len(traces) == 1


LEFT_OUT = {
    "differentially_private_aggregate": "the first part of dpsgd",
    "hutchinson_estimator_diag_hessian": "a part of sophia",
    "normalize": "a part of sam, no optimizer",
    "schedule_free_eval_params": "a function of a state",
    "split_real_and_imaginary": "for complex parameters",
}


def test_every_optimizer_of_the_installed_optax_is_there():
    """What takes a learning rate or is an optimizer of `optax.contrib`, or why it is left out."""

    def public_functions(module):
        names = [n for n in dir(module) if n.islower() and not n.startswith(("_", "scale_by_"))]
        return {name for name in names if callable(getattr(module, name))}

    aliases = {
        name
        for name in public_functions(optax)
        if "learning_rate" in next(iter(inspect.signature(getattr(optax, name)).parameters), "")
    }
    assert aliases >= {
        name
        for name in public_functions(optax)
        if getattr(optax, name).__module__ == optax.adam.__module__
    }
    contributed = public_functions(contrib)
    others = {n for n in dir(contrib) if not n.startswith(("_", "scale_by_"))} - contributed
    assert all(inspect.isclass(getattr(contrib, name)) for name in others)  # states and shapes
    assert {"adam", "lbfgs", "nadam", "polyak_sgd"} <= aliases
    assert aliases | contributed | {"lookahead"} == {*NAMES, *LEFT_OUT}


# Whose own decay Optax gives no mask.
DECAY_ALL = {
    *("dadapt_adamw", "madgrad", "momo", "momo_adam", "novograd", "prodigy"),
    *("schedule_free_adamw", "schedule_free_sgd"),
}


@pytest.mark.parametrize("name", NAMES)
def test_takes_a_schedule_decay_and_clipping_together_or_refuses_them(name):
    row = optimizers.OPTIMIZERS[name]
    build = partial(optimizers.build, name, total_updates=10)
    changes: dict[str, Any] = {"weight_decay": 0.1, "clip_norm": 1.0}
    if name in DECAY_ALL:
        with pytest.raises(UsageError, match=r"--optimizer_args=weight_decay=0\.1 for"):
            build(weight_decay=changes.pop("weight_decay"))
        assert build({"weight_decay": "0.1"}).hyper_parameters["weight_decay"] == 0.1
    if row.schedule_goes == "nowhere":
        with pytest.raises(UsageError, match="allowed: constant"):
            build(schedule="cosine")
        schedule = None
    else:
        schedule = "cosine"
    if not row.takes_changed_gradients:
        for change in changes.items():
            with pytest.raises(UsageError, match="only as they are"):
                build(**dict([change]))
        changes = {}
    optimizer = build(schedule=schedule, **changes)
    params = jax.eval_shape(make_params)
    state = jax.eval_shape(optimizer.tx.init, params)
    grads = jax.eval_shape(partial(gradients, optimizer.per_example_gradients), params)
    update = partial(optimizer.update, value_fn=quadratic)
    moved, new_state = jax.eval_shape(
        lambda *args: update(*args, value=jnp.zeros(())), grads, state, params
    )
    shapes = partial(jax.tree.map, lambda leaf: (leaf.shape, leaf.dtype))
    assert shapes(moved) == shapes(params)
    assert shapes(new_state) == shapes(state)


@pytest.mark.parametrize("name", NAMES)
def test_every_hyper_parameter_is_typed_and_can_be_given(name):
    row = optimizers.OPTIMIZERS[name]
    arguments = arguments_of(row.make)
    texts = {}
    for key, argument in arguments.items():
        default = row.defaults.get(key, argument.default)
        texts[key] = "/".join(map(str, default)) if isinstance(default, tuple) else str(default)
    json.dumps(optimizers.build(name, total_updates=10).hyper_parameters)
    built = optimizers.build(name, texts, total_updates=10)
    assert built.hyper_parameters == optimizers.build(name, total_updates=10).hyper_parameters
    assert not NOT_OFFERED & set(arguments)
    with pytest.raises(UsageError) as refused:
        optimizers.build(name, {"no_such_parameter": "1"}, total_updates=10)
    if row.base is None:  # else it is looked for in both
        assert all(key in str(refused.value) for key in arguments)
    for key in arguments:
        with pytest.raises(UsageError, match=rf"(?si){key}=\?\? is .*allowed: "):
            optimizers.build(name, {key: "??"}, total_updates=10)


def run(optimizer, updates, grads=None):
    """Parameters after some updates, with the quadratic's gradients or constant ones."""
    params = make_params()
    state = optimizer.tx.init(params)

    def update(carry, _):
        params, state = carry
        g = jax.grad(quadratic)(params) if grads is None else grads
        updates, state = optimizer.tx.update(g, state, params)
        return (optax.apply_updates(params, updates), state), params

    return jax.jit(lambda carry: jax.lax.scan(update, carry, length=updates))((params, state))[1]


ONES = {"kernel": jnp.ones((4, 3)), "bias": jnp.ones((3,))}


def rates(schedule, updates=100, name="sgd"):
    """The learning rates a schedule gives, read off from SGD's moves under a gradient of one."""
    optimizer = optimizers.build(name, total_updates=updates, learning_rate=1.0, schedule=schedule)
    bias = np.asarray(run(optimizer, updates + 1, ONES)["bias"][:, 0], np.float64)
    return bias[:-1] - bias[1:]


@pytest.mark.parametrize(
    ("schedule", "points"),
    [
        ("constant", {0: 1, 50: 1, 99: 1}),
        ("cosine", {0: 1, 50: 0.5, 99: 0.000247}),
        ("cosine:end=0.1", {0: 1, 50: 0.55}),
        ("linear", {0: 1, 25: 0.75, 99: 0.01}),
        ("exponential:end=0.01", {0: 1, 50: 0.1}),
        ("step", {0: 1, 49: 1, 51: 0.1, 74: 0.1, 76: 0.01}),
        ("step:first=0.1,second=0.2,factor=0.5", {5: 1, 15: 0.5, 25: 0.25}),
        ("warmup_constant:warmup=0.1", {0: 0.1, 5: 0.55, 10: 1, 99: 1}),
        ("warmup_cosine:warmup=0.1", {0: 0.1, 5: 0.55, 10: 1, 55: 0.5, 99: 0.000305}),
        ("one_cycle", {0: 0.04, 30: 1, 99: 0.0005}),
        ("inverse_sqrt:warmup=0.1", {0: 0.1, 10: 1, 40: 0.5}),
    ],
)
def test_schedules_pass_through_their_points(schedule, points):
    got = rates(schedule)
    for update, rate in points.items():
        assert got[update] == pytest.approx(rate, abs=2e-4), update


@pytest.mark.parametrize("schedule", tuple(optimizers.SCHEDULES))
@pytest.mark.parametrize("updates", [1, 2, 7])
def test_schedules_are_between_zero_and_one_however_short_the_run(schedule, updates):
    got = rates(schedule, updates)
    assert got.shape == (updates,)
    assert (got >= -1e-6).all()
    assert (got <= 1 + 1e-6).all()


def test_a_schedule_reaches_optimizers_whose_rate_must_be_a_number():
    sm3 = rates("linear", name="sm3") / rates("constant", name="sm3")
    np.testing.assert_allclose(sm3, 1 - np.arange(100) / 100, atol=1e-3)


def test_weight_decay_is_the_optimizers_own_or_an_l2_term_and_leaves_vectors_alone():
    zeros = jax.tree.map(jnp.zeros_like, ONES)
    decay = {"weight_decay": 0.1, "learning_rate": 0.5, "schedule": "constant"}
    for name in ("adamw", "sgd"):  # without a gradient both multiply by 1 - 0.5 * 0.1
        moved = run(optimizers.build(name, total_updates=2, **decay), 2, zeros)
        np.testing.assert_allclose(moved["kernel"][1], 0.5 * 0.95, rtol=1e-6)
        np.testing.assert_array_equal(moved["bias"][1], moved["bias"][0])
    # Coupled decay goes through Adam's normalisation: a step of the whole learning rate.
    moved = run(optimizers.build("adam", total_updates=2, **decay), 2, zeros)
    np.testing.assert_allclose(moved["kernel"][1], 0.5 - 0.5, atol=1e-5)
    assert optimizers.build("adamw", total_updates=1).hyper_parameters["weight_decay"] == 1e-4
    assert (
        optimizers.build("adamw", total_updates=1, weight_decay=0.0).hyper_parameters[
            "weight_decay"
        ]
        == 0
    )
    with pytest.raises(UsageError, match="given twice"):
        optimizers.build("adamw", {"weight_decay": "0.1"}, total_updates=1, weight_decay=0.2)


def test_muon_moves_matrices_and_kernels_by_orthogonal_steps():
    """Singular values lie about one, where the gradient's are spread."""
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = {"matrix": (16, 8), "kernel": (3, 3, 4, 8), "bias": (8,)}
    grads = {n: jax.random.normal(k, s) for k, (n, s) in zip(keys, shapes.items(), strict=True)}
    tx = optimizers.build("muon", total_updates=1, learning_rate=1.0, schedule="constant").tx
    params = jax.tree.map(jnp.zeros_like, grads)
    updates, _ = tx.update(grads, tx.init(params), params)
    for name in ("matrix", "kernel"):
        values = np.linalg.svd(updates[name].reshape(-1, 8), compute_uv=False)
        assert (values > 0.6).all(), name
        assert (values < 1.3).all(), name
    steps = np.abs(updates["bias"])  # Adam's first one is as long for all
    np.testing.assert_allclose(steps, steps[0], rtol=1e-5)


@pytest.mark.parametrize("name", ["dpsgd", "noisy_sgd", "sophia"])
def test_noise_comes_from_the_seed_unless_a_key_is_given(name):
    def keys(*args, **settings):
        optimizer = optimizers.build(name, *args, total_updates=1, **settings)
        state = optimizer.tx.init(make_params())
        # PRNG keys are the state's unsigned numbers.
        drawn = [leaf for leaf in jax.tree.leaves(state) if leaf.dtype == jnp.uint32]
        return optimizer.hyper_parameters["key"], np.concatenate(drawn).tolist()

    assert keys(seed=3)[0] == 3
    assert keys(seed=3) != keys()
    assert keys({"key": "3"}) == keys({"key": "3"}, seed=4) == keys(seed=3)


def test_decay_by_flag_spares_the_vectors_of_a_plug_in_with_a_mask():
    zeros = jax.tree.map(jnp.zeros_like, ONES)
    settings: dict[str, Any] = {
        "total_updates": 2,
        "learning_rate": 0.5,
        "schedule": "constant",
    }
    decays: list[tuple[dict[str, Any], bool]] = [
        ({"weight_decay": 0.1}, True),
        ({"args": {"weight_decay": "0.1"}}, False),  # Optax's own meaning
    ]
    for settings_of_decay, spared in decays:
        moved = run(optimizers.build("optax:adamw", **settings, **settings_of_decay), 2, zeros)
        np.testing.assert_allclose(moved["kernel"][1], 0.5 * 0.95, rtol=1e-6)
        assert (moved["bias"][1] == moved["bias"][0]).all() == spared


def test_clipping_bounds_the_global_norm():
    clipped = optimizers.build(
        "sgd", total_updates=1, learning_rate=1.0, schedule="constant", clip_norm=0.3
    )
    moved = run(clipped, 2, ONES)
    step = jax.tree.map(lambda p: p[1] - p[0], moved)
    assert optax.tree.norm(step) == pytest.approx(0.3, rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "sdg"}, "Did you mean 'sgd'"),
        ({"name": "my_optimizers"}, "my_module:function"),
        ({"name": "sgd", "args": {"nesterov": "true"}}, "does nothing"),
        ({"name": "dpsgd", "args": {"nesterov": "true", "momentum": "0"}}, "does nothing"),
        ({"name": "sgd", "args": {"momentum": "1.5"}}, "at least 0 and below 1"),
        ({"name": "sgd", "args": {"momentun": "0.9"}}, "Did you mean 'momentum'"),
        ({"name": "sgd", "args": {"learning_rate": "0.1"}}, "--learning_rate=0.1"),
        ({"name": "sgd", "learning_rate": 0.0}, "above 0"),
        ({"name": "sgd", "learning_rate": float("nan")}, "above 0"),
        ({"name": "sgd", "weight_decay": -1.0}, "at least 0"),
        ({"name": "sgd", "clip_norm": 0.0}, "above 0"),
        ({"name": "sgd", "schedule": "cosin"}, "Did you mean 'cosine'"),
        ({"name": "sgd", "schedule": "cosine:stop=1"}, "Allowed: end"),
        ({"name": "sgd", "schedule": "cosine:end=2"}, "at least 0 and at most 1"),
        ({"name": "adam", "args": {"mu_dtype": "int8"}}, "bfloat16"),
        ({"name": "muon", "args": {"beta": "1.5"}}, "at least 0 and below 1"),
        ({"name": "schedule_free", "args": {"b1": "0"}}, "above 0 and below 1"),
        ({"name": "dog", "args": {"init_step": "heuristics/1"}}, "Did you mean 'heuristic'"),
        ({"name": "dog", "args": {"init_step": "1"}}, "heuristic, learning_rate / a number above"),
        ({"name": "sam", "args": {"base_optimizer": "adam"}}, "argument=base_optimizer is unknown"),
        ({"name": "sam", "args": {"bases": "adam"}}, "argument=bases is unknown"),
        ({"name": "optax:sdg"}, "Did you mean 'optax:sgd'"),
        ({"name": "optax:sgd"}, "give --learning_rate"),
        ({"name": "optax:__version__"}, "not a function"),
    ],
)
def test_wrong_values_are_refused(arguments, message):
    with pytest.raises(UsageError, match=message):
        optimizers.build(total_updates=10, **arguments)


def test_states_come_back_from_a_checkpoint_as_they_were(tmp_path):
    """All in one checkpoint, after two updates, bit for bit."""

    def two_updates():
        ours = [Ours(name) for name in NAMES]
        return {o.optimizer.name: o.update(o.update(o.init()))[1] for o in ours}

    states = jax.jit(two_updates, compiler_options={"xla_backend_optimization_level": 0})()
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "states", states)
        checkpointer.wait_until_finished()
        like = jax.tree.map(ocp.utils.to_shape_dtype_struct, states)
        restored = checkpointer.restore(tmp_path / "states", like)
    assert jax.tree.structure(restored) == jax.tree.structure(states)
    jax.tree.map(np.testing.assert_array_equal, restored, states)


def test_the_cost_of_an_update_is_what_the_formulas_need():
    """SGD reads gradient and parameter and writes one; Adam keeps two moments."""
    params = {"kernel": jax.ShapeDtypeStruct((100, 100), jnp.float32)}
    costs = {
        name: update_cost(optimizers.build(name, total_updates=1, schedule="constant"), params)
        for name in ("sgd", "adam", "sam", "dpsgd")
    }
    assert costs["sgd"] == UpdateCost(0, flops=2e4, bytes_accessed=3 * 4e4)
    assert costs["adam"].state_bytes == 2 * 4e4 + 4  # and a count
    assert (costs["adam"].bytes_accessed or 0) >= (3 + 2 * 2) * 4e4
    assert costs["sam"].flops is None
    assert costs["sam"].why == "an update evaluates the loss again"
    assert costs["dpsgd"].flops is None
    for name, args in (("lbfgs", {"linesearch": "none"}), ("galore", {})):
        cost = update_cost(optimizers.build(name, args, total_updates=1), params)
        assert cost.flops is None
        assert "XLA" in str(cost.why)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_trains_the_digits_with_its_default_learning_rate(name):
    dataset = data.load("digits")
    model = models.build("mlp", input_shape=(8, 8, 1), classes=10)
    optimizer = optimizers.build(name, total_updates=300)

    def losses(params, inputs, labels):
        scaled = normalise(inputs, dataset.mean, dataset.std)
        logits, _ = model.apply({"params": params}, scaled, train=True)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels)

    def update(carry, key):
        params, state = carry
        chosen = jax.random.randint(key, (128,), 0, len(dataset.train.labels))
        inputs = jnp.asarray(dataset.train.inputs)[chosen]
        labels = jnp.asarray(dataset.train.labels)[chosen]

        def mean_loss(params):
            return losses(params, inputs, labels).mean()

        value, grads = jax.value_and_grad(mean_loss)(params)
        if optimizer.per_example_gradients:
            of_one = jax.grad(lambda params, x, y: losses(params, x[None], y[None])[0])
            grads = jax.vmap(of_one, (None, 0, 0))(params, inputs, labels)
        return optimizer.update(grads, state, params, value=value, value_fn=mean_loss), value

    @jax.jit
    def train(key):
        params = model.init(key)["params"]
        carry = (params, optimizer.tx.init(params))
        params, state = jax.lax.scan(update, carry, jax.random.split(key, 300))[0]
        test = dataset.test
        scaled = normalise(test.inputs, dataset.mean, dataset.std)
        best = optimizer.evaluation_params(params, state)
        logits, _ = model.apply({"params": best}, scaled, train=False)
        return jnp.mean(jnp.argmax(logits, -1) == test.labels)

    assert train(jax.random.key(0)) > 0.9


def test_iterations_are_what_an_update_evaluates():
    """Counted by the calls of the loss in eager updates, one for each gradient or trial."""
    calls = []

    def counted(params):
        jax.debug.callback(lambda: calls.append(1))
        return quadratic(params)

    expected = {"sgd": [1, 1], "sam": [2, 2], "lookahead": [1, 1], "sophia": [3, 1]}
    for name, iterations in expected.items():
        optimizer = optimizers.build(
            name, {"update_interval": "2"} if name == "sophia" else {}, total_updates=10
        )
        params, state = make_params(), optimizer.tx.init(make_params())
        told = []
        for _ in iterations:
            value, grads = jax.value_and_grad(quadratic)(params)
            params, state = optimizer.update(grads, state, params, value=value, value_fn=counted)
            told.append(int(optimizer.iterations(state)))
        assert told == iterations
        assert optimizer.iterations_per_update == np.mean(iterations)


@pytest.mark.parametrize("linesearch", ["zoom", "backtracking", "plug-in"])
def test_a_line_search_tells_how_often_it_evaluated_the_loss(linesearch, plug_in):
    calls = []

    def counted(params):
        jax.debug.callback(lambda: calls.append(1))
        return quadratic(params)

    if linesearch == "plug-in":
        optimizer = optimizers.build(f"{plug_in}:searching", total_updates=3, schedule="constant")
    else:
        optimizer = optimizers.build("lbfgs", {"linesearch": linesearch}, total_updates=3)
    assert optimizer.iterations_per_update is None
    params, state = make_params(), optimizer.tx.init(make_params())
    update = jax.jit(partial(optimizer.update, value_fn=counted))
    for _ in range(3):
        value, grads = jax.value_and_grad(quadratic)(params)
        calls.clear()
        params, state = update(grads, state, params, value=value)
        jax.effects_barrier()
        assert optimizer.iterations(state) == 1 + len(calls)
    assert quadratic(params) < (1e-6 if linesearch != "plug-in" else quadratic(make_params()))


def test_lbfgs_without_a_line_search_is_optaxs_and_evaluates_once():
    ours = optimizers.build("lbfgs", {"linesearch": "none"}, total_updates=5, learning_rate=0.1)
    assert ours.iterations_per_update == 1
    assert not ours.evaluates_loss
    optaxs = optax.lbfgs(0.1, linesearch=None)
    params, state = make_params(), ours.tx.init(make_params())
    direct, direct_state = make_params(), optaxs.init(make_params())
    for _ in range(5):
        value, grads = jax.value_and_grad(quadratic)(params)
        params, state = ours.update(grads, state, params, value=value, value_fn=quadratic)
        assert ours.iterations(state) == 1
        updates, direct_state = optaxs.update(jax.grad(quadratic)(direct), direct_state, direct)
        direct = optax.apply_updates(direct, updates)
    jax.tree.map(np.testing.assert_array_equal, params, direct)


def test_an_optimizer_around_another_takes_the_others_arguments():
    built = optimizers.build(
        "sam",
        {"base": "adamw", "base.b1": "0.8", "rho": "0.1"},
        total_updates=10,
        weight_decay=0.01,
        clip_norm=1.0,
    )
    assert built.learning_rate == 1e-3
    assert built.hyper_parameters["base"] == "adamw"
    assert built.hyper_parameters["base.b1"] == 0.8
    assert built.hyper_parameters["base.weight_decay"] == 0.01
    assert built.hyper_parameters["rho"] == 0.1
    for args, message in (
        ({"base": "adan2"}, "Did you mean 'adan'"),
        ({"base": "lbfgs"}, "needs gradients and parameters only"),
        ({"base": "lookahead"}, "needs gradients and parameters only"),
        ({"base.nesterof": "true"}, "Did you mean 'nesterov'"),
        ({"rho": "-1"}, "at least 0"),
    ):
        with pytest.raises(UsageError, match=message):
            optimizers.build("sam", args, total_updates=10)


PLUG_IN = """
    import jax
    import optax

    def halving(learning_rate=0.5, power: int = 1, every=None):
        return optax.chain(optax.scale(-(learning_rate**power)), optax.identity())

    def not_a_transformation(learning_rate=0.1):
        return lambda grads: grads

    def wrong_shapes(learning_rate=0.1):
        return optax.stateless(lambda grads, params: {"other": grads})

    def raises(learning_rate=0.1):
        raise RuntimeError("no luck")

    def anything(learning_rate=0.1, **hyper):
        return optax.sgd(learning_rate, **hyper)

    def searching(learning_rate=8.0):
        search = optax.scale_by_backtracking_linesearch(max_backtracking_steps=9)
        return optax.chain(optax.sgd(learning_rate), search)
"""


@pytest.fixture
def plug_in(tmp_path, monkeypatch):
    (tmp_path / "users_module.py").write_text(textwrap.dedent(PLUG_IN))
    monkeypatch.syspath_prepend(tmp_path)
    yield "users_module"
    sys.modules.pop("users_module", None)


def test_a_users_own_optimizer(plug_in):
    built = optimizers.build(
        f"{plug_in}:halving", {"power": "2", "every": "3"}, total_updates=1, schedule="constant"
    )
    assert built.learning_rate == 0.5
    assert built.hyper_parameters == {"power": 2, "every": 3}
    moved = run(built, 2, ONES)
    np.testing.assert_allclose(moved["kernel"][1] - moved["kernel"][0], -0.25)
    with pytest.raises(UsageError, match="whole number"):
        optimizers.build(f"{plug_in}:halving", {"power": "2.5"}, total_updates=1)
    with pytest.raises(UsageError, match="Did you mean 'power'"):
        optimizers.build(f"{plug_in}:halving", {"powr": "2"}, total_updates=1)


def test_which_code_a_users_optimizer_is_is_told_also_where_another_wraps_it(plug_in):
    def source(name, args=None):
        return optimizers.build(name, args, total_updates=1, learning_rate=0.1).source

    own = source(f"{plug_in}:halving")
    assert own is not None
    assert own["file"] == f"{plug_in}.py"
    assert source("lookahead", {"base": f"{plug_in}:halving"}) == own
    assert source("lookahead") is source("sgd") is source("optax:sgd") is None


def test_a_users_function_that_takes_any_argument_is_given_any(plug_in):
    built = optimizers.build(
        f"{plug_in}:anything", {"momentum": "0.9", "nesterov": "true"}, total_updates=1
    )
    assert built.hyper_parameters == {"momentum": 0.9, "nesterov": True}


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("not_a_transformation", "must give an optax.GradientTransformation"),
        ("wrong_shapes", "fails in an update"),
        ("raises", "RuntimeError: no luck"),
    ],
)
def test_a_users_optimizer_that_cannot_work_is_refused_before_the_run(plug_in, function, message):
    with pytest.raises(UsageError, match=message):
        optimizers.build(f"{plug_in}:{function}", total_updates=1)
