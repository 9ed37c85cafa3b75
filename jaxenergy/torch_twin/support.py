"""Which programs have a twin in PyTorch; what has none is refused with the list of what has."""

import functools
from collections.abc import Iterable, Mapping
from typing import Any

import jax

from jaxenergy.errors import UsageError, unknown_value
from jaxenergy.models import Model
from jaxenergy.optimizers import Optimizer
from jaxenergy.torch_twin.activations import ACTIVATIONS
from jaxenergy.torch_twin.models import FAMILIES
from jaxenergy.torch_twin.optimizers import OPTIMIZERS, WITHOUT
from jaxenergy.training.steps import Program

# What draws random numbers, which no two frameworks share.
_RANDOM_OPTIONS = ("dropout", "stochastic_depth")


def check_has_twin(program: Program) -> None:
    """Refuses a program that PyTorch cannot be made to run as it is.

    Args:
        program: what is trained.

    Raises:
        UsageError: it says what keeps the program from having a twin, and what has one.
    """
    model = program.model
    _check_name("--model", model.family, FAMILIES)
    _check_name("--activation", model.activation, ACTIVATIONS)
    for option, value in model.options:
        if option in _RANDOM_OPTIONS and value:
            raise UsageError(
                f"--model={model.family} with {option}={value:g} has no twin in PyTorch: no two"
                f" frameworks draw the same random numbers. Give {option}=0."
            )
    if program.frozen:
        raise UsageError(
            "--trainable has no twin in PyTorch: only trainings of all layers have. Leave it out."
        )
    if program.multitask is not None:
        raise UsageError(
            f"--dataset={program.dataset.name} has several tasks, which have no twin in PyTorch."
            " Give a set of one task."
        )
    if program.augment:
        raise UsageError(
            "--augment has no twin in PyTorch: no two frameworks draw the same random numbers."
            " Leave it out."
        )
    _check_optimizer(program.optimizer)
    if OPTIMIZERS[program.optimizer.name].make_for_others is not None and _has_convolutions(model):
        raise UsageError(
            f"--optimizer={program.optimizer.name} has no twin in PyTorch for networks with"
            " convolutions: its own takes matrices alone. Give another network, e.g."
            " --model=mlp."
        )
    examples = program.batch_size // program.accumulate
    if 1 in batch_norm_values(model, examples).values():
        raise UsageError(
            f"--batch_size={program.batch_size} with --accumulate={program.accumulate} has no twin"
            " in PyTorch with norm=batch: a batch norm would see one value of a channel at a time,"
            " which PyTorch refuses.\nGive a --batch_size of at least"
            f" {2 * program.accumulate}, or --model_args=norm=layer."
        )


# Both trace the network in JAX, which takes a while; a process that is metered has it done before.
@functools.cache
def batch_norm_values(model: Model, examples: int) -> Mapping[str, int]:
    """How many values of a channel each batch norm sees in so many examples, by its path."""
    if dict(model.options).get("norm") != "batch":
        return {}
    return model.batch_norm_values(examples)


@functools.cache
def _has_convolutions(model: Model) -> bool:
    params = jax.eval_shape(lambda: model.init(jax.random.key(0)))["params"]
    return any(leaf.ndim == 4 for leaf in jax.tree.leaves(params))


def _check_optimizer(optimizer: Optimizer) -> None:
    if optimizer.name in WITHOUT:
        raise UsageError(
            f"--optimizer={optimizer.name} has no twin in PyTorch: {WITHOUT[optimizer.name]}.\n"
            f"Those that have one: {', '.join(sorted(OPTIMIZERS))}."
        )
    _check_name("--optimizer", optimizer.name, OPTIMIZERS)
    twin = OPTIMIZERS[optimizer.name]
    for name, needed in twin.needs.items():
        got = optimizer.hyper_parameters[name]
        if got != needed:
            raise UsageError(
                f"--optimizer={optimizer.name} with {name}={_write(got)} has no twin in PyTorch,"
                f" whose own has no such choice. Give --optimizer_args={name}={_write(needed)}."
            )
    refusal = twin.refusal(optimizer)
    if refusal:
        raise UsageError(f"--optimizer={optimizer.name} has a twin in PyTorch {refusal}.")


def _check_name(flag: str, name: str, names: Iterable[str]) -> None:
    if name not in names:
        unknown = unknown_value(flag, name, names)
        message = str(unknown).replace(" is unknown.", " has no twin in PyTorch.", 1)
        raise UsageError(message.replace("Allowed:", "Those that have one:", 1))


def _write(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
