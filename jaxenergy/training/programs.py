"""Compiles what a run calls, all of it before the first update."""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import monitoring

from jaxenergy.data.dataset import UNLABELLED
from jaxenergy.flops import count_bytes, count_flops, count_flops_as_written
from jaxenergy.models.forms import UNCOUNTED_FORMS
from jaxenergy.training.plan import Plan, updates_per_call
from jaxenergy.training.steps import (
    CallMetrics,
    DeviceSplit,
    EvaluationCounts,
    TrainState,
    epoch_of,
    fixed_iterations,
    make_evaluate,
    make_init,
    make_orders,
    make_updates,
)

_CACHE_EVENTS = {
    "/jax/compilation_cache/cache_hits": "hits",
    "/jax/compilation_cache/cache_misses": "misses",
}


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """How well the labels of a split are predicted.

    Attributes:
        accuracy: the share of predictions that are right, 0 to 1; NaN where the network's output is
            not finite.
        loss: the mean cross-entropy of a prediction, in nats; NaN likewise.
        by_task: the same of each task by name, where there are several; accuracy and loss are their
            means then. Empty where the output is not finite.
    """

    accuracy: float
    loss: float
    by_task: Mapping[str, "Evaluation"] = dataclasses.field(default_factory=dict)

    @property
    def is_finite(self) -> bool:
        """Whether the network's output was finite."""
        return not math.isnan(self.accuracy)

    @property
    def bits(self) -> float:
        """The loss in bits: of a text in characters, bits per character."""
        return self.loss / math.log(2)


@dataclasses.dataclass
class Programs:
    """The compiled programs of a run and the data they run on.

    Attributes:
        init: from a PRNG key to a train state.
        updates: number of updates -> compiled call of that many; always has 1.
        evaluate: split name -> compiled evaluation of one batch.
        splits: split name -> its arrays on the device.
        updates_per_call: the longest call.
        fixed_iterations: iterations of each update; None where calls tell them.
        facts: for the summary: flops and bytes of the one-update program, cache hit.
        order: from `order_key` and an epoch's number to the data orders of it and the next.
        state_key: the PRNG key that `init` takes, from the config's seed.
        order_key: the PRNG key of the data order, likewise.
        plan: what the programs were compiled for.
    """

    init: Callable[[jax.Array], TrainState]
    updates: dict[int, Callable]
    evaluate: dict[str, Callable]
    splits: dict[str, DeviceSplit]
    order: Callable[[jax.Array, Any], jax.Array]
    state_key: jax.Array
    order_key: jax.Array
    plan: Plan
    updates_per_call: int
    fixed_iterations: int | None
    facts: dict[str, Any]
    _orders: tuple[int, jax.Array] | None = None

    def orders(self, update: int) -> jax.Array:
        """The data orders of the epoch an update begins in and of the next, int32 [2, n]."""
        examples = self.splits["train"].labels.shape[0]
        epoch = epoch_of(update, self.plan.config.batch_size, examples)
        if self._orders is None or self._orders[0] != epoch:
            self._orders = (epoch, self.order(self.order_key, np.int32(epoch)))
        return self._orders[1]

    def train(self, state: TrainState, update: int, updates: int) -> tuple[TrainState, CallMetrics]:
        """Dispatches a call of so many updates that begins after `update`; donates the state."""
        return self.updates[updates](state, self.splits["train"], self.orders(update))

    def call_length(self, update: int) -> int:
        """Updates of the call that begins at `update`; a function of the config alone."""
        left = self.plan.next_boundary(update) - update
        return self.updates_per_call if left >= self.updates_per_call else 1

    def warm_up(self) -> None:
        """Runs every program once on a throw-away state: first-call costs end before training.

        No update of the run is made here: the state is dropped.
        """
        state = self.init(self.state_key)
        for split, evaluate in self.evaluate.items():
            jax.block_until_ready(evaluate(state, self.splits[split], np.int32(0)))
        for updates in self.updates:
            state, metrics = self.train(state, 0, updates)
            jax.block_until_ready((state, metrics))

    def evaluation(
        self, state: TrainState, split: str, stop_requested: Callable[[], bool] = lambda: False
    ) -> Evaluation | None:
        """How well a split's labels are predicted; waits for the device.

        Args:
            state: the train state.
            split: `validation` or `test`.
            stop_requested: asked between batches.

        Returns:
            The evaluation; None where a stop was asked for before the end.
        """
        size = self.plan.eval_batch_sizes[split]
        arrays = self.splits[split]
        examples = arrays.labels.shape[0]
        batches: list[EvaluationCounts] = []
        for start in range(0, examples, size):
            if stop_requested():
                return None
            batches.append(self.evaluate[split](state, arrays, np.int32(start)))
            if len(batches) > 1:
                jax.block_until_ready(batches[-2])  # one batch ahead, so that a stop is heard
        if min(int(np.min(batch.correct)) for batch in batches) < 0:
            return Evaluation(math.nan, math.nan)
        if self.plan.dataset.tasks:
            return self._evaluation_of_tasks(batches, split)
        correct = [int(batch.correct) for batch in batches]
        predictions = arrays.labels.size
        loss = math.fsum(float(batch.loss) for batch in batches) / predictions
        return Evaluation(sum(correct) / predictions, loss)

    def _evaluation_of_tasks(self, batches: Sequence[EvaluationCounts], split: str) -> Evaluation:
        """Each task by the examples that have a label of it, and the mean of the tasks."""
        dataset = self.plan.dataset
        labels = getattr(dataset, split).labels
        by_task = {}
        for column, task in enumerate(dataset.tasks):
            count = int(np.sum(labels[:, column] != UNLABELLED))
            correct = sum(int(batch.correct[column]) for batch in batches)
            loss = math.fsum(float(batch.loss[column]) for batch in batches)
            by_task[task.name] = Evaluation(correct / count, loss / count)
        accuracy, loss = (
            math.fsum(values) / len(by_task)
            for values in zip(*((one.accuracy, one.loss) for one in by_task.values()), strict=True)
        )
        return Evaluation(accuracy, loss, by_task)


def transfer(plan: Plan) -> dict[str, DeviceSplit]:
    """Puts all splits on the device, uint8 as they are, and waits until they are there."""
    return jax.block_until_ready(
        {
            name: DeviceSplit(jnp.asarray(split.inputs), jnp.asarray(split.labels))
            for name, split in (
                ("train", plan.dataset.train),
                ("validation", plan.dataset.validation),
                ("test", plan.dataset.test),
            )
        }
    )


def compile_programs(plan: Plan, splits: dict[str, DeviceSplit], platform: str) -> Programs:
    """Compiles every program of a run.

    Args:
        plan: what will be run.
        splits: the data on the device, from `transfer`.
        platform: `cpu` or `gpu`.

    Returns:
        The programs, none of which has run.
    """
    state_key, order_key = jax.random.split(jax.random.key(plan.config.seed))
    examples = splits["train"].labels.shape[0]
    with count_cache_events() as events:
        initial = None if plan.initial is None else jax.device_put(plan.initial.variables)
        compiled_init = jax.jit(make_init(plan.program)).lower(order_key, initial).compile()
        make_order = make_orders(examples, plan.program.multitask)
        order = jax.jit(make_order).lower(order_key, np.int32(0)).compile()
        state = jax.eval_shape(make_init(plan.program), order_key)
        orders = jax.ShapeDtypeStruct((2, examples), jnp.int32)
        arguments = (state, splits["train"], orders)
        lowered = jax.jit(make_updates(plan.program, 1), donate_argnums=0).lower(*arguments)
        updates = {1: lowered.compile()}
        cost = _cost_of_update(plan, updates[1], arguments)
        longest = updates_per_call(plan, cost["flops_per_update"], platform)
        if longest > 1:
            updates[longest] = (
                jax.jit(make_updates(plan.program, longest), donate_argnums=0)
                .lower(*arguments)
                .compile()
            )
        evaluate = {
            name: jax.jit(make_evaluate(plan.program, size))
            .lower(state, splits[name], np.int32(0))
            .compile()
            for name, size in plan.eval_batch_sizes.items()
        }
    return Programs(
        init=lambda key: compiled_init(key, initial),
        updates=updates,
        evaluate=evaluate,
        splits=splits,
        order=order,
        state_key=state_key,
        order_key=order_key,
        plan=plan,
        updates_per_call=longest,
        fixed_iterations=fixed_iterations(plan.program),
        facts={
            **cost,
            "updates_per_call": longest,
            "cache_hit": was_cached(events),
        },
    )


@contextlib.contextmanager
def count_cache_events() -> Iterator[dict[str, int]]:
    """Counts the programs that are found in the cache of compiled ones, and those that are not."""
    events = {"hits": 0, "misses": 0}

    def count_event(event: str, **kwargs: Any) -> None:
        if event in _CACHE_EVENTS:
            events[_CACHE_EVENTS[event]] += 1

    monitoring.register_event_listener(count_event)
    try:
        yield events
    finally:
        monitoring.unregister_event_listener(count_event)


def was_cached(events: Mapping[str, int]) -> bool:
    """Whether all programs were found in the cache."""
    return events["hits"] > 0 and events["misses"] == 0


def _cost_of_update(plan: Plan, compiled: Any, arguments: tuple) -> dict[str, Any]:
    """Floating point operations and bytes of the one-update program, by XLA's own count.

    XLA counts a loop's body once. So micro-batches are unrolled for counting, operations are those
    of plain Flax where a form (`models.forms`) has a loop or calls cuDNN, and where a loop remains
    (over time in a recurrent network, in a line search) or the optimizer does what XLA does not
    count, the count is None, with a reason.
    """
    program = plan.program
    uncounted = UNCOUNTED_FORMS.intersection(plan.forms)
    reason = program.optimizer.row.uncounted and f"the optimizer: {program.optimizer.row.uncounted}"
    if program.model.recurrent or fixed_iterations(program) is None:
        what = "time" if program.model.recurrent else "trials of the optimizer"
        reason = f"the program loops over {what}, and XLA counts a loop's body once"
    if reason:
        return {
            "flops_per_update": None,
            "bytes_per_update": None,
            "why": {"flops_per_update": reason, "bytes_per_update": reason},
        }
    if not uncounted and (program.accumulate == 1 or program.unroll_accumulation):
        flops = count_flops(make_updates(program, 1), arguments, compiled)
        moved, no_bytes = count_bytes(compiled), "XLA does not count what cuBLAS and cuDNN move"
    else:
        plain = dataclasses.replace(program.model, forms=()) if uncounted else program.model
        unrolled = dataclasses.replace(program, unroll_accumulation=True, model=plain)
        flops, moved = count_flops_as_written(make_updates(unrolled, 1), arguments), None
        no_bytes = (
            "XLA does not count what cuDNN moves"
            if "flash_attention" in uncounted
            else "the program loops over micro-batches, or inside attention or depthwise "
            "convolutions, and XLA counts a loop's body once"
        )
    why = {
        "flops_per_update": "the CPU's XLA, which counts what a GPU's does not, is left out of JAX",
        "bytes_per_update": no_bytes,
    }
    counts = {"flops_per_update": flops, "bytes_per_update": moved}
    unknown = {name: why[name] for name, count in counts.items() if count is None}
    return {**counts, **({"why": unknown} if unknown else {})}
