"""The pure functions that are compiled and metered: make a state, update it, evaluate it.

Nothing here knows joules, files or flags. An update is one function of the train state and of data
that already lies on the device; the driver compiles it once, donates the state, and calls it.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxenergy.data import Dataset, pipeline
from jaxenergy.data.multitask import Multitask, balanced_orders
from jaxenergy.models import Model
from jaxenergy.optimizers import Optimizer

PyTree = Any


class TrainState(NamedTuple):
    """All that an update changes; donated to each update, and what a checkpoint holds.

    Attributes:
        params: the model's parameters.
        batch_stats: running statistics of batch normalisation; empty where there is none.
        opt_state: the optimizer's state.
        key: PRNG key of augmentation and dropout; each update folds its own number in.
        update: updates made, int32 scalar.
        position: where in the epoch's order the next batch begins, int32 scalar.
    """

    params: PyTree
    batch_stats: PyTree
    opt_state: PyTree
    key: jax.Array
    update: jax.Array
    position: jax.Array


class DeviceSplit(NamedTuple):
    """A split on the device: uint8 [n, h, w, c] and int32 [n], or for tokens both [n, length].

    Where there are several tasks, labels are int32 [n, tasks].
    """

    inputs: jax.Array
    labels: jax.Array


@dataclasses.dataclass(frozen=True)
class Program:
    """What is trained, by what, on batches of which size: all that shapes the compiled step.

    Attributes:
        model: the network.
        optimizer: the optimizer.
        dataset: the data set; only its scaling and augmentation constants enter the program.
        batch_size: examples per update.
        accumulate: micro-batches per update.
        augment: whether batches are randomly cropped and flipped.
        unroll_accumulation: whether micro-batches are unrolled rather than looped over, since a
            convolution inside a rolled loop is slow on the CPU.
        frozen: top-level entries of the parameters that stay as they are: no gradient is computed
            for them, and the optimizer keeps no state of them. Batch norms among them normalise by
            the batch's statistics all the same and go on averaging these for the evaluation.
        multitask: how several tasks are learned; None where there is one.
    """

    model: Model
    optimizer: Optimizer
    dataset: Dataset
    batch_size: int
    accumulate: int = 1
    augment: bool = False
    unroll_accumulation: bool = False
    frozen: frozenset[str] = frozenset()
    multitask: Multitask | None = None

    def trained(self, params: dict[str, PyTree]) -> dict[str, PyTree]:
        """The part of the parameters that an update changes."""
        return {name: entry for name, entry in params.items() if name not in self.frozen}

    def evaluation_params(self, state: "TrainState") -> dict[str, PyTree]:
        """The parameters to evaluate: averages or slow ones where the optimizer keeps such."""
        trained = self.optimizer.evaluation_params(self.trained(state.params), state.opt_state)
        return {**state.params, **trained}


def make_init(program: Program) -> Callable[..., TrainState]:
    """Makes the function from a seed's key to a fresh train state.

    To be called under one jit: made eagerly, some optimizers' states alias the parameters, and
    donating both then fails. Its second argument, if there is one, has `params` and `batch_stats`
    that take the place of fresh ones, by top-level entry.
    """

    def init(key: jax.Array, initial: Mapping[str, PyTree] | None = None) -> TrainState:
        params_key, step_key = jax.random.split(key)
        fresh, initial = program.model.init(params_key), initial or {}
        variables = {
            collection: {**fresh.get(collection, {}), **initial.get(collection, {})}
            for collection in ("params", "batch_stats")
        }
        return _state_of(program, variables, step_key)

    return init


def make_state_of(program: Program, seed: int) -> Callable[[Mapping[str, PyTree]], TrainState]:
    """Makes the function from all of a network's variables to the state that a seed's run has then.

    To be called under one jit, like `make_init`; its argument is to be donated.
    """

    def state_of(variables: Mapping[str, PyTree]) -> TrainState:
        state_key, _ = jax.random.split(jax.random.key(seed))
        return _state_of(program, variables, jax.random.split(state_key)[1])

    return state_of


def _state_of(program: Program, variables: Mapping[str, PyTree], step_key: jax.Array) -> TrainState:
    """The state before the first update."""
    return TrainState(
        params=variables["params"],
        batch_stats=variables.get("batch_stats", {}),
        opt_state=program.optimizer.tx.init(program.trained(variables["params"])),
        key=step_key,
        update=jnp.zeros((), jnp.int32),
        position=jnp.zeros((), jnp.int32),
    )


def make_orders(
    examples: int, multitask: Multitask | None = None
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Makes the function from a PRNG key and an epoch to the orders of it and of the next.

    The orders are int32 [2, examples], which follow from the key and the epoch alone: permutations,
    or with `multitask.groups` draws from all tasks in equal number.
    """
    if multitask is not None and multitask.groups:
        groups = multitask.groups
        return lambda key, epoch: balanced_orders(key, epoch, 2, groups)
    return lambda key, epoch: pipeline.epoch_orders(key, epoch, 2, examples)


class CallMetrics(NamedTuple):
    """What a compiled call tells of its updates.

    Attributes:
        loss: the mean of their losses, float32 scalar.
        iterations: forward and backward passes over a micro-batch in all, int32 scalar; None where
            each update makes the same number (`fixed_iterations`).
    """

    loss: jax.Array
    iterations: jax.Array | None


def fixed_iterations(program: Program) -> int | None:
    """Iterations of each update; None where the optimizer decides anew each time."""
    found: list[int | None] = []

    def look(key: jax.Array) -> None:
        passes = program.optimizer.iterations(make_init(program)(key).opt_state)
        found.append(passes * program.accumulate if isinstance(passes, int) else None)

    jax.eval_shape(look, jax.random.key(0))
    return found[0]


def make_updates(
    program: Program, updates: int
) -> Callable[[TrainState, DeviceSplit, jax.Array], tuple[TrainState, CallMetrics]]:
    """Makes the function that does a fixed number of updates in one compiled call.

    Args:
        program: what is trained.
        updates: updates per call; more than one become a scan.

    Returns:
        A function of the state, the training split and the orders of this epoch and the next
        (from `make_orders`) that gives the new state and what is told of its updates. A batch may
        begin in one epoch and end in the next.
    """
    update = _make_update(program)

    def call(
        state: TrainState, split: DeviceSplit, orders: jax.Array
    ) -> tuple[TrainState, CallMetrics]:
        examples = split.labels.shape[0]
        if updates == 1:
            state, metrics = update(state, split, orders)
        else:
            state, each = jax.lax.scan(
                lambda state, _: update(state, split, orders), state, length=updates
            )
            iterations = None if each.iterations is None else jnp.sum(each.iterations)
            metrics = CallMetrics(jnp.mean(each.loss), iterations)
        # The caller chooses the orders of the next call by the same rule: see `epoch_of`.
        return state._replace(position=state.position % examples), metrics

    return call


def epoch_of(update: int, batch_size: int, examples: int) -> int:
    """The epoch in which an update's first example lies."""
    return update * batch_size // examples


def _make_update(program: Program) -> Callable:
    """Makes one update: draw a batch, accumulate gradients, let the optimizer move the parameters.

    Within a call `position` runs on past the epoch's end, where the next epoch's order continues.
    """
    take_batch = make_take_batch(program)
    gradients = make_gradients(program)
    optimize = make_optimize(program)

    def update(state, split, orders):
        batch = take_batch(state, split, orders)
        (loss, batch_stats), grads = gradients(state.params, state.batch_stats, batch)
        params, opt_state = optimize(state, batch, loss, grads)
        new_state = TrainState(
            params=params,
            batch_stats=batch_stats,
            opt_state=opt_state,
            key=state.key,
            update=state.update + 1,
            position=state.position + program.batch_size,
        )
        passes = program.optimizer.iterations(opt_state)
        iterations = None if isinstance(passes, int) else passes * program.accumulate
        return new_state, CallMetrics(loss, iterations)

    return update


# The parts of an update, from which it is put together above, and which `training.shares` compiles
# and measures one by one.


class Batch(NamedTuple):
    """What one update computes on.

    Attributes:
        inputs: uint8 [batch, h, w, c] or [batch, length], as stored.
        labels: int32 [batch], [batch, tasks] or [batch, length].
        key: PRNG key of what is random in the update.
    """

    inputs: jax.Array
    labels: jax.Array
    key: jax.Array


def make_take_batch(program: Program) -> Callable[[TrainState, DeviceSplit, jax.Array], Batch]:
    """Makes the function that draws a state's next batch from a split, by the orders of epochs."""

    def take_batch(state: TrainState, split: DeviceSplit, orders: jax.Array) -> Batch:
        inputs, labels = pipeline.take_batch(
            split.inputs, split.labels, orders, state.position, program.batch_size
        )
        if program.multitask is not None:
            labels = program.multitask.labels_of(labels, state.update)
        return Batch(inputs, labels, jax.random.fold_in(state.key, state.update))

    return take_batch


def make_prepare(program: Program) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Makes the function from stored inputs and a PRNG key to what the model sees.

    That is uint8 to float32 [batch, h, w, c]: augmented, where the program says so, and scaled; or
    to int32 [batch, length], for tokens.
    """
    dataset = program.dataset

    def prepare(inputs: jax.Array, key: jax.Array) -> jax.Array:
        if program.augment:
            inputs = pipeline.augment(key, inputs, padding=dataset.padding, flip=dataset.flips)
        return _scaled(inputs, dataset)

    return prepare


def _scaled(inputs: jax.Array, dataset: Dataset) -> jax.Array:
    """Stored inputs as the model takes them."""
    if dataset.tokens_per_example is not None:
        return inputs.astype(jnp.int32)
    return pipeline.normalise(inputs, dataset.mean, dataset.std)


def make_forward(
    program: Program,
) -> Callable[[PyTree, PyTree, Batch], tuple[jax.Array, PyTree]]:
    """Makes the function from params, batch statistics and a batch to its mean loss.

    The statistics as they are after the batch come second.
    """
    prepared_loss = _make_prepared_loss(program)

    def without_gradients(*args):
        return prepared_loss(*args), ()

    over_batch = _make_over_micro_batches(program, without_gradients)
    return lambda params, batch_stats, batch: over_batch(params, batch_stats, batch)[0]


def make_gradients(
    program: Program,
) -> Callable[[PyTree, PyTree, Batch], tuple[tuple[jax.Array, PyTree], PyTree]]:
    """Makes the function from params, batch statistics and a batch to its loss and gradients.

    They come as `jax.value_and_grad(..., has_aux=True)` gives them: the mean loss and the
    statistics as they are after the batch, and the mean gradients; or each example's gradients,
    with a leading axis [batch], for an optimizer that takes those. There are gradients of what is
    trained only.
    """
    prepared_loss = _make_prepared_loss(program)

    def differentiated(params, *rest):
        def loss_of_trained(trained):
            return prepared_loss({**params, **trained}, *rest)

        return jax.value_and_grad(loss_of_trained, has_aux=True)(program.trained(params))

    if program.optimizer.per_example_gradients:
        return _make_over_examples(differentiated)
    return _make_over_micro_batches(program, differentiated)


def make_optimize(
    program: Program,
) -> Callable[[TrainState, Batch, jax.Array, PyTree], tuple[PyTree, PyTree]]:
    """Makes the function from a state, its batch, loss and gradients to new params and opt_state.

    The batch is looked at by optimizers that evaluate its loss again (line searches, SAM) alone;
    batch statistics stay as they were then.
    """
    forward = make_forward(program)

    def optimize(
        state: TrainState, batch: Batch, loss: jax.Array, grads: PyTree
    ) -> tuple[PyTree, PyTree]:
        def loss_of(trained: PyTree) -> jax.Array:
            return forward({**state.params, **trained}, state.batch_stats, batch)[0]

        trained, opt_state = program.optimizer.update(
            grads, state.opt_state, program.trained(state.params), value=loss, value_fn=loss_of
        )
        return {**state.params, **trained}, opt_state

    return optimize


def _make_prepared_loss(program: Program) -> Callable:
    """Makes the loss of params on a micro-batch, from stored inputs on: what one iteration does."""
    prepare = make_prepare(program)

    def loss_fn(params, batch_stats, inputs, labels, key):
        augment_key, dropout_key = jax.random.split(key)
        logits, batch_stats = program.model.apply(
            _variables(params, batch_stats),
            prepare(inputs, augment_key),
            train=True,
            key=dropout_key,
        )
        if program.multitask is not None:
            losses = program.multitask.losses(logits, labels)
        else:
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return jnp.mean(losses), batch_stats

    return loss_fn


def _make_over_micro_batches(program: Program, iteration: Callable) -> Callable:
    """Makes of an iteration on a micro-batch the same on a batch: means, statistics in sequence.

    Args:
        program: says how many micro-batches a batch has.
        iteration: from params, batch statistics, inputs, labels and key to
            ((loss, batch statistics), gradients).

    Returns:
        A function of params, batch statistics and a `Batch` to the same.
    """
    count = program.accumulate
    if count == 1:
        return lambda params, batch_stats, batch: iteration(params, batch_stats, *batch)

    def over_batch(params, batch_stats, batch):
        def add(carry, micro_batch):
            sums, batch_stats = carry
            (loss, batch_stats), grads = iteration(params, batch_stats, *micro_batch)
            return (jax.tree.map(jnp.add, sums, (loss, grads)), batch_stats), None

        micro_batches = (
            batch.inputs.reshape(count, -1, *batch.inputs.shape[1:]),
            batch.labels.reshape(count, -1, *batch.labels.shape[1:]),
            jax.random.split(batch.key, count),
        )
        first = jax.tree.map(lambda micro: micro[0], micro_batches)
        (loss, _), grads = jax.eval_shape(iteration, params, batch_stats, *first)
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), (loss, grads))
        (sums, batch_stats), _ = jax.lax.scan(
            add,
            (zeros, batch_stats),
            micro_batches,
            unroll=count if program.unroll_accumulation else 1,
        )
        loss, grads = jax.tree.map(lambda leaf: leaf / count, sums)
        return (loss, batch_stats), grads

    return over_batch


def _make_over_examples(iteration: Callable) -> Callable:
    """Makes of an iteration on a batch one that keeps the gradients of the examples apart."""

    def over_examples(params, batch_stats, batch):
        def one(inputs, label, key):
            return iteration(params, batch_stats, inputs[None], label[None], key)

        keys = jax.random.split(batch.key, batch.labels.shape[0])
        (losses, _), grads = jax.vmap(one)(batch.inputs, batch.labels, keys)
        return (jnp.mean(losses), batch_stats), grads

    return over_examples


class EvaluationCounts(NamedTuple):
    """What the evaluation of a batch counts.

    Attributes:
        correct: predictions that are right, int32 scalar; -1 where the network's output is not
            finite, since parameters can be spoilt by the very last update, after the last loss.
        loss: the sum of the losses of all predictions, float32 scalar.

    Where there are several tasks, both are of shape [tasks].
    """

    correct: jax.Array
    loss: jax.Array


def make_evaluate(
    program: Program, batch_size: int
) -> Callable[[TrainState, DeviceSplit, jax.Array], EvaluationCounts]:
    """Makes the function that counts correct predictions on one batch of a split.

    Args:
        program: what is trained.
        batch_size: examples per call. A call that reaches past the split's end is shifted back,
            and what it would count twice is left out, so that one shape serves every batch.

    Returns:
        A function of the state, the split and the batch's first index (int32 scalar) that gives
        the counts. An image is one prediction a task, a sequence as many as it has tokens.
    """

    def evaluate(state: TrainState, split: DeviceSplit, start: jax.Array) -> EvaluationCounts:
        examples = split.labels.shape[0]
        first = jnp.minimum(start, examples - batch_size)
        inputs = jax.lax.dynamic_slice_in_dim(split.inputs, first, batch_size)
        labels = jax.lax.dynamic_slice_in_dim(split.labels, first, batch_size)
        logits, _ = program.model.apply(
            _variables(program.evaluation_params(state), state.batch_stats),
            _scaled(inputs, program.dataset),
            train=False,
        )
        logits = logits.astype(jnp.float32)
        is_new = first + jnp.arange(batch_size) >= start
        is_new = is_new.reshape(-1, *(1,) * (labels.ndim - 1))
        if program.multitask is not None:
            axis, losses = 0, program.multitask.cross_entropies(logits, labels)
            predicted = program.multitask.predict(logits)
        else:
            axis, losses = (
                None,
                optax.softmax_cross_entropy_with_integer_labels(logits, labels),
            )
            predicted = jnp.argmax(logits, axis=-1)
        correct = jnp.sum((predicted == labels) & is_new, axis=axis)
        return EvaluationCounts(
            correct=jnp.where(jnp.all(jnp.isfinite(logits)), correct, -1),
            loss=jnp.sum(jnp.where(is_new, losses, 0.0), axis=axis),
        )

    return evaluate


def _variables(params: PyTree, batch_stats: PyTree) -> dict[str, PyTree]:
    """A model's variables; a model without batch normalisation has no statistics at all."""
    return {"params": params, "batch_stats": batch_stats} if batch_stats else {"params": params}
