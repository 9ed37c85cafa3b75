"""The same training in two frameworks: held against each other in float64, layer by layer."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxenergy import data, models, optimizers
from jaxenergy.errors import UsageError
from jaxenergy.training import steps

torch_twin = pytest.importorskip("jaxenergy.torch_twin", reason="pip install 'jaxenergy[torch]'")

FAMILIES = {
    "mlp": {"depth": 2, "width": 16},
    "cnn": {"depth": 3, "width": 4},
    "resnet": {"depth": 8, "width": 4},
}


def make_program(family, optimizer="sgd", args=None, model_args=None, **settings):
    dataset = data.load("digits")
    return steps.Program(
        model=models.build(
            family,
            input_shape=dataset.input_shape,
            classes=dataset.classes,
            **{**FAMILIES[family], **(model_args or {})},
        ),
        optimizer=optimizers.build(optimizer, args, total_updates=50, **settings),
        dataset=dataset,
        batch_size=16,
    )


def make_variables(program):
    state = jax.jit(steps.make_init(program))(jax.random.key(0))
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    return {name: tree for name, tree in variables.items() if tree}


@pytest.mark.parametrize("family", FAMILIES)
def test_three_updates_are_those_of_jax(family):
    program = make_program(family, "sgd", {"momentum": 0.9})
    variables = make_variables(program)
    training = torch_twin.build_training(program, variables)
    state = jax.jit(steps.make_init(program))(jax.random.key(0))
    update = jax.jit(steps.make_updates(program, 1))
    train = program.dataset.train
    split = steps.DeviceSplit(train.inputs, train.labels)
    orders = np.stack([np.arange(train.examples, dtype=np.int32)] * 2)
    for index in range(3):
        state, metrics = update(state, split, orders)
        training.update(np.arange(16 * index, 16 * index + 16))
        training.fence()
        np.testing.assert_allclose(training.loss(), metrics.loss, rtol=1e-4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
        training.variables()["params"],
        jax.tree.map(np.asarray, state.params),
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"optimizer": "lion"}, "--optimizer=lion has no twin in PyTorch"),
        ({"optimizer": "rmsprop"}, "Give --optimizer_args=eps_in_sqrt=false."),
        ({"optimizer": "rprop"}, "only with --schedule=constant"),
        ({"model_args": {"dropout": 0.1}}, "Give dropout=0."),
    ],
)
def test_what_has_no_twin_is_refused_with_what_has(changes, said):
    with pytest.raises(UsageError, match=said.replace(".", r"\.")) as caught:
        torch_twin.check_has_twin(make_program("mlp", **changes))
    assert len(str(caught.value).splitlines()) <= 3


def test_random_augmentation_has_no_twin():
    program = dataclasses.replace(make_program("mlp"), augment=True)
    with pytest.raises(UsageError, match="--augment has no twin"):
        torch_twin.check_has_twin(program)
