"""Runs on control tasks: from a config to compiled programs that the training loop calls.

What `plan` and `programs` are for data sets of examples. An iteration of PPO is one call, so every
length of such a run (of the whole, between evaluations, between checkpoints) is rounded up to whole
iterations.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxenergy import models
from jaxenergy.arguments import split_arguments
from jaxenergy.config import RunConfig
from jaxenergy.data import ControlTask
from jaxenergy.errors import UsageError
from jaxenergy.models import MODELS, PRESETS
from jaxenergy.optimizers import OPTIMIZERS
from jaxenergy.training.plan import (
    Timetable,
    build_optimizer,
    check_target,
    count_parameters,
    evaluation_interval,
    source_of,
)
from jaxenergy.training.ppo import (
    ControlState,
    Program,
    Returns,
    make_evaluate,
    make_init,
    make_iteration,
)
from jaxenergy.training.programs import count_cache_events, was_cached
from jaxenergy.training.steps import CallMetrics

_DEFAULT_STEPS = 500_000  # of all environments together: TOTAL_TIMESTEPS of PureJaxRL's ppo.py
_MEASURES = ("return",)


@dataclasses.dataclass(frozen=True)
class ControlPlan(Timetable):
    """What one run on a control task will do.

    Attributes:
        task: the environment and PPO's settings.
        program: the network, the optimizer and the minibatch's size.
    """

    task: ControlTask
    program: Program

    def resolved(self) -> dict[str, Any]:
        """What the config left open, as decided, for `config.json`."""
        program, task = self.program, self.task
        return {
            "depth": program.model.depth,
            "width": program.model.width,
            "activation": program.model.activation,
            "model_args": dict(program.model.options),
            "learning_rate": program.optimizer.learning_rate,
            "optimizer_args": program.optimizer.hyper_parameters,
            "schedule": program.optimizer.settings.schedule,
            **source_of(program.optimizer),
            "updates": self.total_updates,
            "eval_every": self.eval_every,
            "parameters": self.parameters,
            "trained_parameters": self.parameters,
            "forms": [],
            "dataset": {
                "name": task.name,
                "source": task.source,
                "digest": task.digest,
                "minibatches": task.settings.transitions // program.batch_size,
                "updates_per_iteration": program.updates_per_iteration,
                "environment_steps_per_iteration": task.settings.transitions,
            },
        }


def make_control_plan(config: RunConfig, task: ControlTask, platform: str) -> ControlPlan:
    """Resolves a config of a run on a control task.

    Args:
        config: the settings.
        task: the task that it names.
        platform: `cpu` or `gpu`, where it will run; the plan is the same on both.

    Returns:
        The plan.

    Raises:
        UsageError: a setting does not fit the model, the optimizer or the task.
    """
    del platform
    _check_settings(config, task)
    transitions = task.settings.transitions
    per_iteration = task.settings.epochs * (transitions // config.batch_size)

    def whole_iterations(updates: int) -> int:
        return -(-updates // per_iteration) * per_iteration

    total_updates = whole_iterations(
        config.updates or round(_DEFAULT_STEPS / transitions * per_iteration)
    )
    model = models.build(
        config.model,
        depth=config.depth,
        width=config.width,
        activation=config.activation,
        input_shape=(1, 1, task.observations),
        classes=task.actions + 1,
        precision=config.precision,
        **split_arguments(config.model_args, "--model_args"),
    )
    options = dict(model.options)
    if options.get("norm") == "batch" or options.get("dropout"):
        raise UsageError(
            f"--model_args={config.model_args} is not possible with --dataset={config.dataset}: "
            "the policy that acted must be the one that is learned.\n"
            "Allowed: norm=none or layer, dropout=0."
        )
    optimizer = build_optimizer(config, total_updates)
    program = Program(model, optimizer, task, config.batch_size)
    checkpoint_updates, checkpoint_seconds = config.checkpoint_interval()
    params = jax.eval_shape(model.init, jax.random.key(0))["params"]
    return ControlPlan(
        config=config,
        total_updates=total_updates,
        eval_every=min(total_updates, whole_iterations(evaluation_interval(config, total_updates))),
        checkpoint_updates=checkpoint_updates and whole_iterations(checkpoint_updates),
        checkpoint_seconds=checkpoint_seconds,
        parameters=count_parameters(params),
        task=task,
        program=program,
    )


def _check_settings(config: RunConfig, task: ControlTask) -> None:
    """Refuses what has no meaning on a control task, each with what has."""
    on = f"with --dataset={config.dataset.partition(':')[0]}"
    family = PRESETS[config.model][0] if config.model in PRESETS else config.model
    if family in MODELS and not MODELS[family].vectors:
        fitting = [name for name in MODELS if MODELS[name].vectors]
        raise UsageError(
            f"--model={config.model} is not possible {on}, whose observations are "
            f"{task.observations} numbers each.\nAllowed: {', '.join(fitting)}."
        )
    for name, given, allowed in (
        ("epochs", config.epochs, "--updates"),
        ("accumulate", config.accumulate > 1 and config.accumulate, "1"),
        ("augment", config.augment, "false"),
        ("init_from", config.init_from, "none"),
        ("trainable", config.trainable != "all" and config.trainable, "all"),
        ("task_weights", config.task_weights, "none"),
        ("task_sampling", config.task_sampling != "examples" and config.task_sampling, "examples"),
    ):
        if given:
            raise UsageError(f"--{name}={given} is not possible {on}.\nAllowed: {allowed}.")
    transitions = task.settings.transitions
    if config.batch_size == 1:
        nearest = next((n for n in range(2, transitions + 1) if transitions % n == 0), None)
        raise UsageError(
            f"--batch_size=1 is not possible {on}: advantages are taken relative to their "
            "minibatch's mean, so a single one is 0 and teaches the policy nothing.\nAllowed: "
            + (
                "at least 2, with more environments or steps than one."
                if nearest is None
                else f"a divisor of {transitions} from {nearest} on. Nearest: {nearest}."
            )
        )
    if transitions % config.batch_size:
        raise UsageError(
            f"--batch_size={config.batch_size} does not divide the {transitions} transitions of "
            f"an iteration (environments x steps) {on}.\nAllowed: a divisor of {transitions}."
        )
    check_target(config, _MEASURES)
    if config.optimizer in OPTIMIZERS and not _is_fit(config.optimizer):
        refused = sorted(name for name in OPTIMIZERS if not _is_fit(name))
        raise UsageError(
            f"--optimizer={config.optimizer} is not possible {on}: it takes steps by the loss's "
            "value, which tells no progress here, or the gradient of each example.\n"
            f"Allowed: all but {', '.join(refused)}."
        )


def _is_fit(optimizer: str) -> bool:
    """Whether an optimizer of the table needs nothing that PPO's loss cannot give."""
    row = OPTIMIZERS[optimizer]
    return "value" not in row.extra_arguments and not row.per_example_gradients


@dataclasses.dataclass(frozen=True)
class ReturnEvaluation:
    """How much reward the policy collects.

    Attributes:
        mean_return: the mean over episodes of the undiscounted sum of rewards; NaN where the
            network's output is not finite.
    """

    mean_return: float

    @property
    def is_finite(self) -> bool:
        """Whether the network's output was finite."""
        return not math.isnan(self.mean_return)


@dataclasses.dataclass(frozen=True)
class ControlPrograms:
    """The compiled programs of a run on a control task.

    Attributes:
        init: from a PRNG key to a state.
        iteration: one iteration of PPO; donates the state.
        evaluate: split name -> compiled evaluation.
        state_key: the PRNG key that `init` takes, from the config's seed.
        plan: what the programs were compiled for.
        fixed_iterations: forward and backward passes of each update; None where calls tell them.
        facts: for the summary.
    """

    init: Callable[[jax.Array], ControlState]
    iteration: Callable[[ControlState], tuple[ControlState, CallMetrics]]
    evaluate: dict[str, Callable[[ControlState], Returns]]
    state_key: jax.Array
    plan: ControlPlan
    fixed_iterations: int | None
    facts: dict[str, Any]

    def train(
        self, state: ControlState, update: int, updates: int
    ) -> tuple[ControlState, CallMetrics]:
        """Dispatches an iteration; donates the state, which knows its own update."""
        del update, updates
        return self.iteration(state)

    def call_length(self, update: int) -> int:
        """Updates of a call: those of an iteration, always."""
        del update
        return self.plan.program.updates_per_iteration

    def evaluation(
        self, state: ControlState, split: str, stop_requested: Callable[[], bool] = lambda: False
    ) -> ReturnEvaluation | None:
        """The mean return of a split's episodes; waits for the device.

        Args:
            state: the state.
            split: `validation` or `test`.
            stop_requested: asked beforehand.

        Returns:
            The evaluation; None where a stop was asked for.
        """
        if stop_requested():
            return None
        found = self.evaluate[split](state)
        if not bool(found.finite):
            return ReturnEvaluation(math.nan)
        returns = np.asarray(found.returns, np.float64)
        return ReturnEvaluation(float(returns.mean()))

    def warm_up(self) -> None:
        """Runs every program once on a throw-away state: first-call costs end before training."""
        state = self.init(self.state_key)
        for evaluate in self.evaluate.values():
            jax.block_until_ready(evaluate(state))
        jax.block_until_ready(self.iteration(state))


def compile_control(plan: ControlPlan) -> ControlPrograms:
    """Compiles every program of a run on a control task.

    Args:
        plan: what will be run.

    Returns:
        The programs, none of which has run.
    """
    state_key = jax.random.key(plan.config.seed)
    with count_cache_events() as events:
        init = jax.jit(make_init(plan.program)).lower(state_key).compile()
        state = jax.eval_shape(make_init(plan.program), state_key)
        iteration = jax.jit(make_iteration(plan.program), donate_argnums=0).lower(state).compile()
        evaluate = {
            split: jax.jit(make_evaluate(plan.program, split)).lower(state).compile()
            for split in ("validation", "test")
        }
    reason = "an iteration loops over steps and minibatches, and XLA counts a loop's body once"
    return ControlPrograms(
        init=init,
        iteration=iteration,
        evaluate=evaluate,
        state_key=state_key,
        plan=plan,
        fixed_iterations=_fixed_iterations(plan.program),
        facts={
            "flops_per_update": None,
            "bytes_per_update": None,
            "why": {"flops_per_update": reason, "bytes_per_update": reason},
            "updates_per_call": plan.program.updates_per_iteration,
            "cache_hit": was_cached(events),
        },
    )


def _fixed_iterations(program: Program) -> int | None:
    """Passes of each update; None where the optimizer decides anew each time."""
    found: list[int | None] = []

    def look(key: jax.Array) -> None:
        passes = program.optimizer.iterations(make_init(program)(key).opt_state)
        found.append(passes if isinstance(passes, int) else None)

    jax.eval_shape(look, jax.random.key(0))
    return found[0]
