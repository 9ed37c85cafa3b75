"""One network for several tasks: what is learned of each, from which examples, counted how.

The k heads on one trunk are one layer of as many outputs as all tasks have classes, whose columns
are divided among the tasks. So every family of networks takes several tasks as it is.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from jaxenergy.data.dataset import UNLABELLED, Dataset, Task
from jaxenergy.errors import UsageError, unknown_value

SAMPLINGS = ("examples", "tasks", "alternate")


@dataclass(frozen=True)
class Multitask:
    """How several tasks are learned together.

    Attributes:
        tasks: the tasks, in the order of the labels' columns and of the network's outputs.
        factors: of each task's cross-entropies in the loss. Weighted by them, the mean over the
            examples is, in expectation, the weighted mean over the labels that an update sees.
        alternate: whether an update learns one task alone, in turn.
        groups: how many examples each task has, set by set, where batches hold the tasks in equal
            number; empty where they hold all examples alike.
    """

    tasks: tuple[Task, ...]
    factors: tuple[float, ...]
    alternate: bool = False
    groups: tuple[int, ...] = ()

    def split(self, logits: jax.Array) -> list[jax.Array]:
        """The outputs `[..., all classes]` of each task, `[..., classes]`."""
        ends = np.cumsum([task.classes for task in self.tasks])[:-1]
        return jnp.split(logits, ends, axis=-1)

    def cross_entropies(self, logits: jax.Array, labels: jax.Array) -> jax.Array:
        """Each label's cross-entropy, 0 where there is no label.

        Args:
            logits: float32 `[batch, all classes]`.
            labels: int32 `[batch, tasks]`.

        Returns:
            float32 `[batch, tasks]`, in nats.
        """
        columns = [
            optax.softmax_cross_entropy_with_integer_labels(own, jnp.maximum(label, 0))
            for own, label in zip(self.split(logits), labels.T, strict=True)
        ]
        return jnp.where(labels != UNLABELLED, jnp.stack(columns, axis=-1), 0.0)

    def losses(self, logits: jax.Array, labels: jax.Array) -> jax.Array:
        """Each example's part of the loss, float32 `[batch]`; arguments as above."""
        return self.cross_entropies(logits, labels) @ jnp.asarray(self.factors, jnp.float32)

    def predict(self, logits: jax.Array) -> jax.Array:
        """The class predicted for each task, int32 `[..., tasks]`."""
        return jnp.stack([jnp.argmax(own, axis=-1) for own in self.split(logits)], axis=-1)

    def labels_of(self, labels: jax.Array, update: jax.Array) -> jax.Array:
        """The labels `[batch, tasks]` that an update learns: of its own task where they alternate.

        Args:
            labels: all there are.
            update: its number, int32 scalar.
        """
        if not self.alternate:
            return labels
        turn = jnp.arange(len(self.tasks)) == update % len(self.tasks)
        return jnp.where(turn, labels, UNLABELLED)


def build_multitask(dataset: Dataset, weights: str, sampling: str) -> Multitask | None:
    """How a data set's tasks are learned.

    Args:
        dataset: the data set.
        weights: of the tasks, e.g. `1,0.5`; empty for equal ones.
        sampling: `examples` draws all examples alike, and learns all their labels; `tasks` draws
            the tasks in equal number; `alternate` learns one task an update, in turn.

    Returns:
        That; None for a set of one task.

    Raises:
        UsageError: a value is not allowed, or does not fit the data set.
    """
    if sampling not in SAMPLINGS:
        raise unknown_value("--task_sampling", sampling, SAMPLINGS)
    tasks = dataset.tasks
    if not tasks:
        for flag, value in (("weights", weights), ("sampling", sampling)):
            if value and value != SAMPLINGS[0]:
                raise UsageError(
                    f"--task_{flag}={value}: --dataset={dataset.name} has one task.\n"
                    "Allowed: a set of several, e.g. --dataset=digits:tasks=class+parity."
                )
        return None
    weight = _read_weights(weights, tasks)
    labelled = dataset.train.labels != UNLABELLED
    share = labelled.mean(axis=0)
    groups: tuple[int, ...] = ()
    if sampling == "tasks":
        groups = tuple(int(count) for count in labelled.sum(axis=0))
        in_order = np.repeat(np.arange(len(tasks)), groups)
        if len(in_order) != len(labelled) or not labelled[np.arange(len(labelled)), in_order].all():
            raise UsageError(
                f"--task_sampling=tasks: the examples of --dataset={dataset.name} have labels of "
                "several tasks, which are drawn together.\nAllowed: examples, alternate."
            )
        share = np.array(slots_of(groups)) / len(labelled)
    elif sampling == "alternate":
        if not labelled.all():
            raise UsageError(
                f"--task_sampling=alternate: examples of --dataset={dataset.name} lack labels, and "
                "an update might find none of its task.\nAllowed: examples, tasks."
            )
        share = share / len(tasks)
    factors = weight / float(weight @ share)
    return Multitask(tasks, tuple(map(float, factors)), sampling == "alternate", groups)


def _read_weights(text: str, tasks: tuple[Task, ...]) -> np.ndarray:
    """One weight a task, as typed."""
    if not text:
        return np.ones(len(tasks))
    parts = text.split(",")
    try:
        weights = [float(part) for part in parts]
    except ValueError:
        weights = [math.nan]
    fits = all(math.isfinite(weight) and weight >= 0 for weight in weights) and sum(weights) > 0
    if not fits or len(weights) != len(tasks):
        names = ", ".join(task.name for task in tasks)
        raise UsageError(
            f"--task_weights={text} is not possible.\nAllowed: {len(tasks)} numbers of at least 0, "
            f"not all 0, one for each task ({names})."
        )
    return np.array(weights)


def slots_of(groups: tuple[int, ...]) -> list[int]:
    """How many examples of each group an epoch draws: as many of each, to within one."""
    slots, rest = divmod(sum(groups), len(groups))
    return [slots + (group < rest) for group in range(len(groups))]


def balanced_orders(
    key: jax.Array, first_epoch: jax.Array | int, epochs: int, groups: tuple[int, ...]
) -> jax.Array:
    """The orders of consecutive epochs that draw from groups of examples in equal number.

    An epoch has as many examples as there are. Those of a small group come several times, each as
    often as any other of it to within one; of a large one some are left for other epochs.

    Args:
        key: PRNG key of the run's data order.
        first_epoch: the number of the first of them, from 0; may be traced.
        epochs: how many.
        groups: how many examples each group has; they lie group by group.

    Returns:
        int32 `[epochs, examples]`; a row depends on the key and its epoch's number alone.
    """
    starts = np.cumsum([0, *groups[:-1]])

    def order(epoch: jax.Array) -> jax.Array:
        group_key, order_key = jax.random.split(jax.random.fold_in(key, epoch))
        drawn = []
        for group, (size, slots) in enumerate(zip(groups, slots_of(groups), strict=True)):
            keys = jax.random.split(jax.random.fold_in(group_key, group), -(-slots // size))
            rounds = lax.map(lambda one, size=size: jax.random.permutation(one, size), keys)
            drawn.append(rounds.reshape(-1)[:slots] + starts[group])
        return jax.random.permutation(order_key, jnp.concatenate(drawn))

    return lax.map(order, jnp.arange(epochs) + first_epoch).astype(jnp.int32)
