"""Laws of the compiled step: a scan of k is k updates, micro-batches add up, epochs join."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxenergy import data, models, optimizers
from jaxenergy.training.steps import (
    DeviceSplit,
    Program,
    epoch_of,
    fixed_iterations,
    make_evaluate,
    make_init,
    make_state_of,
    make_updates,
)


@pytest.fixture(scope="module")
def program():
    dataset = data.load("digits")
    return Program(
        model=models.build(
            "mlp",
            depth=2,
            width=16,
            activation="tanh",
            input_shape=dataset.train.inputs.shape[1:],
            classes=dataset.classes,
        ),
        optimizer=optimizers.build("sgd", {}, learning_rate=0.1, total_updates=100),
        dataset=dataset,
        batch_size=24,
    )


@pytest.fixture(scope="module")
def split(program):
    train = program.dataset.train
    return DeviceSplit(jnp.asarray(train.inputs[:60]), jnp.asarray(train.labels[:60]))


ORDERS = jnp.stack([jnp.arange(60), jnp.arange(59, -1, -1)]).astype(jnp.int32)


def new_state(program):
    return jax.jit(make_init(program))(jax.random.key(0))


def assert_close(left, right):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6),
        left._replace(key=0),
        right._replace(key=0),
    )


def test_one_call_of_three_updates_is_three_calls_of_one(program, split):
    single = jax.jit(make_updates(program, 1))
    state, losses = new_state(program), []
    for _ in range(3):  # the third batch begins in the first epoch and ends in the second
        orders = ORDERS if int(state.update) * 24 < 60 else ORDERS[::-1]
        state, metrics = single(state, split, orders)
        losses.append(metrics.loss)
    together, metrics = jax.jit(make_updates(program, 3))(new_state(program), split, ORDERS)
    assert_close(state, together)
    np.testing.assert_allclose(np.mean(losses), metrics.loss, rtol=1e-5)
    assert int(together.update) == 3
    assert int(together.position) == 72 - 60


def test_micro_batches_add_up_to_the_batch(program, split):
    whole, metrics = jax.jit(make_updates(program, 1))(new_state(program), split, ORDERS)
    for unroll in (False, True):
        parts = dataclasses.replace(program, accumulate=4, unroll_accumulation=unroll)
        in_parts, metrics_in_parts = jax.jit(make_updates(parts, 1))(
            new_state(program), split, ORDERS
        )
        assert_close(whole, in_parts)
        np.testing.assert_allclose(metrics.loss, metrics_in_parts.loss, rtol=1e-5)


def test_a_batch_that_straddles_epochs_takes_the_rest_from_the_next_order(program, split):
    """The gradient at position 48 is that of examples 48..59 of one order and 0..11 of the next."""
    late = new_state(program)._replace(position=jnp.int32(48))
    straddling, _ = jax.jit(make_updates(program, 1))(late, split, ORDERS)
    expected = np.concatenate([np.arange(48, 60), np.arange(59, 47, -1)])
    by_hand = DeviceSplit(split.inputs[expected], split.labels[expected])
    in_order = jnp.stack([jnp.arange(24), jnp.arange(24)])
    directly, _ = jax.jit(make_updates(program, 1))(new_state(program), by_hand, in_order)
    assert_close(straddling._replace(position=0), directly._replace(position=0))
    assert int(straddling.position) == 12


# Those that keep copies of the parameters, and one that keeps other things.
@pytest.mark.parametrize("optimizer", ["adam", "lookahead", "schedule_free_sgd"])
def test_given_variables_make_the_state_of_a_run_that_drew_them(program, split, optimizer):
    built = optimizers.build(optimizer, {}, learning_rate=0.1, total_updates=100)
    program = dataclasses.replace(program, optimizer=built)
    state_key, _ = jax.random.split(jax.random.key(7))
    drawn = jax.jit(make_init(program))(state_key)
    state_of = jax.jit(make_state_of(program, 7), donate_argnums=0)
    given = state_of({"params": jax.tree.map(jnp.array, drawn.params)})
    assert given.key == drawn.key
    jax.tree.map(np.testing.assert_array_equal, given._replace(key=0), drawn._replace(key=0))
    # No buffer is there twice, which an update could not be given.
    update = jax.jit(make_updates(program, 1), donate_argnums=0)
    assert_close(update(given, split, ORDERS)[0], update(drawn, split, ORDERS)[0])


def test_epochs_follow_each_other_without_a_gap():
    examples, batch_size = 60, 24
    epochs = [epoch_of(update, batch_size, examples) for update in range(10)]
    assert epochs == [0, 0, 0, 1, 1, 2, 2, 2, 3, 3]


@pytest.mark.parametrize("batch_size", [7, 20, 60])
def test_evaluation_counts_each_example_once(program, split, batch_size):
    state = new_state(program)
    evaluate = jax.jit(make_evaluate(program, batch_size))
    counted = [evaluate(state, split, jnp.int32(s)) for s in range(0, 60, batch_size)]
    at_once = jax.jit(make_evaluate(program, 60))(state, split, jnp.int32(0))
    assert sum(int(batch.correct) for batch in counted) == int(at_once.correct)
    assert sum(float(batch.loss) for batch in counted) == pytest.approx(float(at_once.loss))


def test_the_state_can_be_donated(program, split):
    updates = jax.jit(make_updates(program, 1), donate_argnums=0)
    state = new_state(program)
    kept = state.params
    new, _ = updates(state, split, ORDERS)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(kept))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(new))


def test_augmentation_draws_anew_with_each_update(program, split):
    augmented = dataclasses.replace(program, augment=True)
    update = jax.jit(make_updates(augmented, 1))
    first, metrics = update(new_state(program), split, ORDERS)
    again, metrics_again = update(new_state(program), split, ORDERS)
    _, other_metrics = update(new_state(program)._replace(update=jnp.int32(1)), split, ORDERS)
    assert float(metrics.loss) == float(metrics_again.loss) != float(other_metrics.loss)
    assert_close(first, again)


# What each of these needs beyond gradients, and the iterations of its first two updates.
BEYOND_GRADIENTS = {
    "sgd": [1, 1],
    "sam": [2, 2],
    "sophia": [3, 1],
    "polyak_sgd": [1, 1],
    "dpsgd": [1, 1],
    "schedule_free_adamw": [1, 1],
}


@pytest.mark.parametrize("name", BEYOND_GRADIENTS)
def test_an_optimizer_gets_what_it_needs_and_its_iterations_are_told(name, program, split):
    other = dataclasses.replace(program, optimizer=optimizers.build(name, total_updates=10))
    update = jax.jit(make_updates(other, 1))
    state, told = new_state(other), []
    before = state.params
    for _ in range(2):
        state, metrics = update(state, split, ORDERS)
        passes = fixed_iterations(other)
        told.append(int(metrics.iterations) if passes is None else passes)
        assert np.isfinite(metrics.loss)
    assert told == BEYOND_GRADIENTS[name]
    moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), before, state.params)
    assert all(jax.tree.leaves(moved))


def test_the_averaged_parameters_are_evaluated_where_the_optimizer_keeps_such(program, split):
    averaging = dataclasses.replace(
        program, optimizer=optimizers.build("lookahead", total_updates=10)
    )
    state = new_state(averaging)
    state, _ = jax.jit(make_updates(averaging, 3))(state, split, ORDERS)  # not yet synchronised
    slow = jax.jit(make_evaluate(averaging, 60))(state, split, jnp.int32(0))
    initial = jax.jit(make_evaluate(program, 60))(new_state(program), split, jnp.int32(0))
    fast = jax.jit(make_evaluate(program, 60))(state, split, jnp.int32(0))
    assert int(slow.correct) == int(initial.correct) != int(fast.correct)
