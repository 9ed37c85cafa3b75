"""From a config to what will be run: every name resolved, every number decided, nothing started.

A plan is a function of the config and of the data alone, never of a timing, so that the same config
computes the same numbers on the same machine. Whatever is wrong with a config is found here, before
anything is written.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax

from jaxenergy import models, optimizers
from jaxenergy.arguments import split_arguments
from jaxenergy.config import RunConfig
from jaxenergy.data import Dataset
from jaxenergy.data.multitask import build_multitask
from jaxenergy.errors import UsageError
from jaxenergy.models.forms import ONCE_DIFFERENTIABLE, forms_of
from jaxenergy.training.initial import Initial, check_trainable, frozen_entries
from jaxenergy.training.steps import Program, make_init

_DEFAULT_EPOCHS = 40.0
_EVALUATIONS = 20
_EVALUATION_BATCH_SIZE = 512
# What an evaluation tells of a text that a run can aim at.
_OF_TEXT = ("accuracy", "bits_per_character")

# Work per compiled call that makes the call's own cost (some 0.1 ms) small beside it, in floating
# point operations: about 10 ms on a CPU of 200 GFLOP/s and on a GPU of 20 TFLOP/s.
_CALL_FLOPS = {"cpu": 2e9, "gpu": 2e11}
_MAX_UPDATES_PER_CALL = 64


@dataclasses.dataclass(frozen=True)
class Timetable:
    """When a run stands still, and for what.

    Attributes:
        config: where it came from.
        total_updates: updates of a whole run.
        eval_every: updates between evaluations.
        checkpoint_updates: updates between checkpoints, None where seconds or nothing decide.
        checkpoint_seconds: seconds between checkpoints, None where updates or nothing decide.
        parameters: the number of the network's parameters.
    """

    config: RunConfig
    total_updates: int
    eval_every: int
    checkpoint_updates: int | None
    checkpoint_seconds: float | None
    parameters: int

    @property
    def tokens_per_example(self) -> int | None:
        """The length of a sequence of tokens; None where an example is something else."""
        return None

    def evaluates_at(self, update: int) -> bool:
        """Whether there is an evaluation after so many updates."""
        return update % self.eval_every == 0 or update == self.total_updates

    def next_boundary(self, update: int) -> int:
        """The update at which the loop must next stand still: evaluation, checkpoint or end."""
        boundaries = [self.total_updates]
        for every in (self.eval_every, self.checkpoint_updates):
            if every is not None:
                boundaries.append((update // every + 1) * every)
        return min(boundaries)


@dataclasses.dataclass(frozen=True)
class Plan(Timetable):
    """What one run will do.

    Attributes:
        dataset: the data, in host memory.
        program: the model, the optimizer and the batch's make-up.
        eval_batch_sizes: examples per evaluation call, for each split that is evaluated.
        trained_parameters: how many of the network's parameters an update changes.
        initial: what to begin with instead of fresh parameters; None for those.
        forms: forms other than plain Flax that the network's layers take in training.
    """

    dataset: Dataset
    program: Program
    eval_batch_sizes: dict[str, int]
    trained_parameters: int
    initial: Initial | None
    forms: tuple[str, ...]

    @property
    def tokens_per_example(self) -> int | None:
        """The length of a sequence of tokens; None where an example is something else."""
        return self.dataset.tokens_per_example

    def resolved(self) -> dict[str, Any]:
        """What the config left open, as decided, for `config.json`."""
        return {
            "depth": self.program.model.depth,
            "width": self.program.model.width,
            "activation": self.program.model.activation,
            "model_args": dict(self.program.model.options),
            "learning_rate": self.program.optimizer.learning_rate,
            "optimizer_args": self.program.optimizer.hyper_parameters,
            "schedule": self.program.optimizer.settings.schedule,
            **source_of(self.program.optimizer),
            "updates": self.total_updates,
            "eval_every": self.eval_every,
            "parameters": self.parameters,
            "trained_parameters": self.trained_parameters,
            **({"init_from": dict(self.initial.facts)} if self.initial else {}),
            "forms": list(self.forms),
            **(
                {"tasks": {task.name: task.classes for task in self.dataset.tasks}}
                if self.dataset.tasks
                else {}
            ),
            "dataset": {
                "source": self.dataset.source,
                "digest": self.dataset.digest,
                "examples": {
                    split: len(getattr(self.dataset, split).labels)
                    for split in ("train", "validation", "test")
                },
            },
        }


def make_plan(
    config: RunConfig,
    dataset: Dataset,
    platform: str,
    read_initial: Callable[[models.Model], Initial] | None = None,
) -> Plan:
    """Resolves a config.

    Args:
        config: the settings.
        dataset: the loaded data set that the config names.
        platform: `cpu` or `gpu`, where it will run.
        read_initial: gives what the network is to begin with; None for fresh parameters.

    Returns:
        The plan.

    Raises:
        UsageError: a setting does not fit the model, the optimizer or the data.
    """
    examples = len(dataset.train.labels)
    if config.batch_size > examples:
        raise UsageError(
            f"--batch_size={config.batch_size} is more than the training set holds.\n"
            f"Allowed with --dataset={config.dataset}: 1 to {examples}."
        )
    if config.updates is not None:
        total_updates = config.updates
    else:
        epochs = _DEFAULT_EPOCHS if config.epochs is None else config.epochs
        total_updates = max(1, round(epochs * examples / config.batch_size))
    check_trainable(config.trainable)
    multitask = build_multitask(dataset, config.task_weights, config.task_sampling)
    if config.augment and dataset.tokens_per_example is not None:
        raise UsageError(
            f"--augment is for images; --dataset={config.dataset} has sequences of tokens."
        )
    check_target(config, ("accuracy",) if dataset.tokens_per_example is None else _OF_TEXT)
    optimizer = build_optimizer(config, total_updates)
    forms = forms_of(platform) if config.forms == "auto" else ()
    if optimizer.differentiates_gradients:
        forms = tuple(name for name in forms if name not in ONCE_DIFFERENTIABLE)
    model = models.build(
        config.model,
        depth=config.depth,
        width=config.width,
        activation=config.activation,
        input_shape=dataset.train.inputs.shape[1:],
        classes=dataset.classes,
        precision=config.precision,
        forms=forms,
        **split_arguments(config.model_args, "--model_args"),
    )
    _check_fit(config, model, optimizer)
    program = Program(
        model=model,
        optimizer=optimizer,
        dataset=dataset,
        batch_size=config.batch_size,
        accumulate=config.accumulate,
        augment=config.augment,
        unroll_accumulation=platform == "cpu" and not model.dot_only,
        frozen=frozen_entries(model, config.trainable),
        multitask=multitask,
    )
    # The key too is made in the trace: a plan computes nothing on the device.
    state = jax.eval_shape(lambda: make_init(program)(jax.random.key(0)))
    initial = None if read_initial is None else read_initial(model)
    checkpoint_updates, checkpoint_seconds = config.checkpoint_interval()
    # A gradient by example is that of a batch of one, many times over.
    at_once = 1 if optimizer.per_example_gradients else config.batch_size // config.accumulate
    return Plan(
        config=config,
        dataset=dataset,
        program=program,
        total_updates=total_updates,
        eval_every=evaluation_interval(config, total_updates),
        checkpoint_updates=checkpoint_updates,
        checkpoint_seconds=checkpoint_seconds,
        eval_batch_sizes={
            split: min(_EVALUATION_BATCH_SIZE, len(getattr(dataset, split).labels))
            for split in ("validation", "test")
        },
        parameters=count_parameters(state.params),
        trained_parameters=count_parameters(program.trained(state.params)),
        initial=initial,
        forms=model.forms_taken(at_once),
    )


def check_target(config: RunConfig, measures: Sequence[str]) -> None:
    """Refuses a target that no evaluation of the run tells.

    Args:
        config: the settings.
        measures: what its evaluations tell.

    Raises:
        UsageError: the target is another.
    """
    target = config.target
    if target is not None and target.measure not in measures:
        allowed = " or ".join(f"--target_{measure}" for measure in measures)
        raise UsageError(
            f"--target_{target.measure}={target.value:g} is not possible with "
            f"--dataset={config.dataset}, whose evaluations tell no such thing.\n"
            f"Allowed: {allowed}."
        )


def evaluation_interval(config: RunConfig, total_updates: int) -> int:
    """Updates between evaluations."""
    return min(total_updates, config.eval_every or max(1, -(-total_updates // _EVALUATIONS)))


def count_parameters(params: Any) -> int:
    """The numbers in a tree of arrays."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def build_optimizer(config: RunConfig, total_updates: int) -> optimizers.Optimizer:
    """The optimizer that a config's settings name, for a training of so many updates."""
    return optimizers.build(
        config.optimizer,
        optimizers.parse_args(config.optimizer_args),
        learning_rate=config.learning_rate,
        schedule=config.schedule,
        total_updates=total_updates,
        weight_decay=config.weight_decay,
        clip_norm=config.clip_norm,
        seed=config.seed,
    )


def source_of(optimizer: optimizers.Optimizer) -> dict[str, Any]:
    """For `config.json`: which code a plug-in is; empty for Optax's own optimizers."""
    return {} if optimizer.source is None else {"optimizer_source": dict(optimizer.source)}


def _check_fit(config: RunConfig, model: models.Model, optimizer: optimizers.Optimizer) -> None:
    """Refuses an optimizer of per-example gradients where there is no such thing."""
    if not optimizer.per_example_gradients:
        return
    if dict(model.options).get("norm") == "batch":
        raise UsageError(
            f"--optimizer={config.optimizer} takes the gradient of each example, which batch "
            "normalisation does not have.\nAllowed: --model_args=norm=group, layer or none."
        )
    if config.accumulate > 1:
        raise UsageError(
            f"--accumulate={config.accumulate} is not possible with --optimizer={config.optimizer},"
            " which takes the gradient of each example.\nAllowed: 1."
        )


def updates_per_call(plan: Plan, flops_per_update: float | None, platform: str) -> int:
    """How many updates one compiled call makes.

    A call costs about 0.1 ms of the host whatever it does, so small updates are put together in a
    scan. Convolutions are not: inside a rolled loop they run some 60 times slower on the CPU.

    Args:
        plan: what will be run.
        flops_per_update: floating point operations of one update, None where not known.
        platform: `cpu` or `gpu`.

    Returns:
        A power of two, so that few lengths of run leave a remainder.
    """
    loops_well = plan.program.model.dot_only or platform != "cpu"
    if not loops_well or not flops_per_update:
        return 1
    examples = len(plan.dataset.train.labels)
    most = min(
        _MAX_UPDATES_PER_CALL,
        plan.eval_every,
        plan.checkpoint_updates or plan.eval_every,
        # The data order given to a call ends with the epoch after its first example's.
        examples // plan.config.batch_size,
        int(_CALL_FLOPS.get(platform, 2e11) / flops_per_update),
    )
    return 1 << max(0, most.bit_length() - 1) if most >= 1 else 1
