"""Several tasks on one trunk: what an update learns of each, and that nothing else changes."""

import dataclasses
import itertools
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxenergy import data, models, optimizers
from jaxenergy.config import RunConfig
from jaxenergy.data.dataset import UNLABELLED, Split, Task
from jaxenergy.data.multitask import Multitask, balanced_orders, build_multitask
from jaxenergy.data.tasks import load_joined, single_task_names, task_names
from jaxenergy.errors import UsageError
from jaxenergy.records import read_run
from jaxenergy.training.plan import make_plan
from jaxenergy.training.steps import (
    DeviceSplit,
    make_evaluate,
    make_init,
    make_orders,
    make_updates,
)

BOTH = "digits:tasks=class+parity"
JOINED = "joined:digits+synthetic:12x10x3,classes=4,examples=600"


@pytest.fixture(scope="module")
def datasets():
    return {name: data.load(name) for name in ("digits", "digits:tasks=class", BOTH, JOINED)}


def plan_of(datasets, name, **settings):
    config = RunConfig(
        model="mlp", depth=1, width=8, dataset=name, batch_size=24, updates=10, **settings
    )
    return make_plan(config, datasets[name], "cpu")


def start(plan):
    """A fresh state, the training split on the device, and the orders of the first epochs."""
    program, train = plan.program, plan.dataset.train
    state = jax.jit(make_init(program))(jax.random.key(0))
    split = DeviceSplit(jnp.asarray(train.inputs), jnp.asarray(train.labels))
    orders = jax.jit(make_orders(train.examples, program.multitask))(jax.random.key(1), 0)
    return state, split, orders


# --- data sets ------------------------------------------------------------------------------------


def test_tasks_are_readings_of_the_same_images(datasets):
    digits, both = datasets["digits"], datasets[BOTH]
    assert both.tasks == (Task("class", 10), Task("parity", 2))
    assert both.classes == 12
    for part in ("train", "validation", "test"):
        plain, two = getattr(digits, part), getattr(both, part)
        np.testing.assert_array_equal(two.inputs, plain.inputs)
        np.testing.assert_array_equal(two.labels[:, 0], plain.labels)
        np.testing.assert_array_equal(two.labels[:, 1], plain.labels % 2)
    assert datasets["digits:tasks=class"].digest == digits.digest


def test_joined_sets_are_padded_to_one_shape_and_labelled_for_their_own_task(datasets):
    joined, digits = datasets[JOINED], datasets["digits"]
    assert joined.input_shape == (12, 10, 3)
    assert joined.tasks == (Task("digits", 10), Task("synthetic", 4))
    n = digits.train.examples
    own, others = joined.train.labels[:n], joined.train.labels[n:]
    np.testing.assert_array_equal(own[:, 0], digits.train.labels)
    assert (own[:, 1] == UNLABELLED).all()
    assert (others[:, 0] == UNLABELLED).all()
    assert set(others[:, 1]) == {0, 1, 2, 3}
    images = joined.train.inputs[:n]
    inner = images[:, 2:10, 1:9]
    np.testing.assert_array_equal(inner[..., 0], inner[..., 2])
    # The pixels of digits count to 16, those of the other set to 255.
    np.testing.assert_array_equal(inner[..., 0], digits.train.inputs[..., 0] * 255.0 // 16)
    assert images.sum() == inner.sum()
    assert not joined.flips


def test_channels_that_differ_are_not_joined(datasets):
    def load(name, data_dir):
        images = np.zeros((2, 4, 4, int(name[-1])), np.uint8)
        parts = [Split(images, np.zeros(2, np.int32)) for _ in range(3)]
        return data.build_dataset(data.Facts(name, 1, True, "", ""), *parts, source="")

    assert load_joined("a1+b3", None, load).input_shape == (4, 4, 3)
    with pytest.raises(UsageError, match="images of 2 and 3 channels"):
        load_joined("a2+b3", None, load)


def test_a_set_is_taken_apart_by_its_name():
    assert task_names(BOTH) == ("class", "parity")
    assert single_task_names(BOTH) == ("digits", "digits:tasks=parity")
    assert task_names("joined:mnist:examples=9+digits:tasks=parity") == ("mnist", "parity")
    assert single_task_names("joined:mnist:examples=9+digits") == ("mnist:examples=9", "digits")
    assert task_names("cifar10:examples=5") == ("cifar10",)
    assert single_task_names("cifar100:tasks=class+superclass,examples=9") == (
        "cifar100:examples=9",
        "cifar100:examples=9,tasks=superclass",
    )


# --- one task is as it was ------------------------------------------------------------------------


def test_one_task_is_the_same_program_whatever_it_is_called(datasets):
    texts = []
    for name in ("digits", "digits:tasks=class"):
        plan = plan_of(datasets, name)
        assert plan.program.multitask is None
        state, split, orders = start(plan)
        lowered = jax.jit(make_updates(plan.program, 1)).lower(state, split, orders)
        texts.append(lowered.as_text())
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    ("name", "settings", "told"),
    [
        ("digits", {"task_weights": "1,2"}, "has one task"),
        ("digits", {"task_sampling": "alternate"}, "has one task"),
        ("digits", {"task_sampling": "alternating"}, "Did you mean 'alternate'"),
        (BOTH, {"task_weights": "1"}, r"2 numbers of at least 0.*\(class, parity\)"),
        (BOTH, {"task_weights": "1,-1"}, "2 numbers of at least 0"),
        (BOTH, {"task_weights": "0,0"}, "not all 0"),
        (BOTH, {"task_weights": "1,nan"}, "2 numbers"),
        (BOTH, {"task_weights": "class=1"}, "2 numbers"),
        (BOTH, {"task_sampling": "tasks"}, "labels of several tasks"),
        (JOINED, {"task_sampling": "alternate"}, "lack labels"),
    ],
)
def test_flags_that_do_not_fit_are_refused(datasets, name, settings, told):
    with pytest.raises(UsageError, match=told) as refused:
        plan_of(datasets, name, **settings)
    assert len(str(refused.value).splitlines()) <= 3


# --- the loss -------------------------------------------------------------------------------------


@pytest.mark.slow
@given(st.tuples(st.floats(0, 5), st.floats(0.1, 5)))
@settings(max_examples=20, deadline=None)
def test_without_knowledge_the_loss_is_the_weighted_mean_of_the_logarithms_of_classes(weights):
    """Over an epoch, and however examples are drawn: of the labels that are drawn."""
    told = ",".join(map(str, weights))
    both, joined = (_loaded(name) for name in (BOTH, JOINED))
    logs = np.log([10, 2])
    for sampling in ("examples", "alternate"):
        how = build_multitask(both, told, sampling)
        assert how is not None
        losses = [
            how.losses(jnp.zeros((len(both.train.labels), 12)), how.labels_of(labels, update))
            for update in range(2)
            for labels in [jnp.asarray(both.train.labels)]
        ]
        assert np.mean(losses) == pytest.approx(np.average(logs, weights=weights), rel=1e-4)
    logs = np.log([10, 4])
    labels = joined.train.labels
    share = (labels != UNLABELLED).mean(axis=0)
    for sampling, drawn in (("examples", share), ("tasks", [0.5, 0.5])):
        how = build_multitask(joined, told, sampling)
        assert how is not None
        if sampling == "tasks":
            order = balanced_orders(jax.random.key(0), 0, 1, how.groups)[0]
            labels = labels[np.asarray(order)]
        mean = np.mean(how.losses(jnp.zeros((len(labels), 14)), jnp.asarray(labels)))
        assert mean == pytest.approx(np.average(logs, weights=weights * np.array(drawn)), rel=2e-3)


def _loaded(name, known={}):  # noqa: B006  hypothesis calls a test many times
    if name not in known:
        known[name] = data.load(name)
    return known[name]


def test_a_label_that_is_not_there_moves_nothing():
    how = Multitask((Task("a", 3), Task("b", 2)), (1.0, 2.0))
    logits = jax.random.normal(jax.random.key(0), (4, 5))
    labels = jnp.array([[0, UNLABELLED], [UNLABELLED, 1], [2, 0], [UNLABELLED, UNLABELLED]])
    gradient = jax.grad(lambda logits: jnp.sum(how.losses(logits, labels)))(logits)
    touched = np.asarray(gradient != 0)
    expected = np.array([[1, 1, 1, 0, 0], [0, 0, 0, 1, 1], [1, 1, 1, 1, 1], [0] * 5], bool)
    np.testing.assert_array_equal(touched, expected)


@pytest.mark.parametrize("name", [BOTH, JOINED])
def test_micro_batches_add_up_to_the_batch(datasets, name):
    plan = plan_of(datasets, name, optimizer="sgd", learning_rate=0.1, task_weights="1,3")
    state, split, orders = start(plan)
    whole, metrics = jax.jit(make_updates(plan.program, 1))(state, split, orders)
    in_parts = dataclasses.replace(plan.program, accumulate=4)
    parts, told = jax.jit(make_updates(in_parts, 1))(state, split, orders)
    assert float(metrics.loss) == pytest.approx(float(told.loss), rel=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6),
        whole.params,
        parts.params,
    )


def head_columns(params):
    """The columns of the last layer's weights, which belong to the classes of the tasks."""
    (kernel,) = [leaf for leaf in jax.tree.leaves(params) if leaf.ndim == 2 and leaf.shape[1] == 12]
    return jnp.array(kernel)  # a copy: a view from the host would keep it from being donated


@pytest.mark.parametrize(
    ("flags", "moved"),
    [
        ({"task_sampling": "alternate"}, [(True, False), (False, True), (True, False)]),
        ({"task_weights": "0,1"}, [(False, True)] * 3),
        ({}, [(True, True)] * 3),
    ],
)
def test_which_heads_an_update_moves_and_that_it_is_one_program(datasets, flags, moved):
    plan = plan_of(datasets, BOTH, optimizer="sgd", learning_rate=0.1, **flags)
    state, split, orders = start(plan)
    update = jax.jit(make_updates(plan.program, 1), donate_argnums=0)
    for expected in moved:
        kept, before = state.params, head_columns(state.params)
        state, _ = update(state, split, orders)
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(kept))
        change = jnp.abs(head_columns(state.params) - before).max(axis=0)
        assert (change[:10].max() > 0, change[10:].max() > 0) == expected
    assert update._cache_size() == 1


@pytest.mark.parametrize("name", ["sgd", "sam", "dpsgd", "polyak_sgd", "sophia"])
def test_optimizers_that_look_at_the_loss_take_several_tasks(datasets, name):
    plan = plan_of(datasets, JOINED)
    other = dataclasses.replace(plan.program, optimizer=optimizers.build(name, total_updates=10))
    state, split, orders = start(dataclasses.replace(plan, program=other))
    state, metrics = jax.jit(make_updates(other, 1))(state, split, orders)
    assert np.isfinite(metrics.loss)


@pytest.mark.parametrize("family", list(models.MODELS))
def test_every_family_of_image_networks_takes_several_tasks(family):
    if models.MODELS[family].inputs != "image":
        pytest.skip("it takes tokens")
    model = models.build(family, input_shape=(16, 16, 1), classes=12)
    how = Multitask((Task("class", 10), Task("parity", 2)), (0.5, 0.5))

    def look(key):
        logits, _ = model.apply(model.init(key), jnp.zeros((3, 16, 16, 1)), train=False)
        return how.losses(logits, jnp.zeros((3, 2), jnp.int32)), how.predict(logits)

    losses, predicted = jax.eval_shape(look, jax.random.key(0))
    assert (losses.shape, predicted.shape) == ((3,), (3, 2))


# --- drawing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [(7, 7), (3, 29), (10, 1, 6)])
def test_tasks_are_drawn_in_equal_number_and_their_examples_alike(groups):
    epoch, seed = 3, 5
    orders = np.asarray(balanced_orders(jax.random.key(seed), epoch, 2, groups))
    assert orders.shape == (2, sum(groups))
    edges = np.cumsum([0, *groups])
    for order in orders:
        counts = np.bincount(order, minlength=sum(groups))
        by_group = [counts[a:b] for a, b in itertools.pairwise(edges)]
        assert np.ptp([group.sum() for group in by_group]) <= 1
        assert all(np.ptp(group) <= 1 for group in by_group)
    again = balanced_orders(jax.random.key(seed), epoch + 1, 1, groups)
    np.testing.assert_array_equal(orders[1], again[0])


def test_evaluation_tells_each_task_by_the_examples_that_have_its_label(datasets):
    plan = plan_of(datasets, JOINED)
    state, _, _ = start(plan)
    held_out = plan.dataset.validation
    split = DeviceSplit(jnp.asarray(held_out.inputs), jnp.asarray(held_out.labels))
    evaluate = jax.jit(make_evaluate(plan.program, 100))
    counted = [
        evaluate(state, split, jnp.int32(begin)) for begin in range(0, held_out.examples, 100)
    ]
    scaled = (held_out.inputs - np.array(plan.dataset.mean)) / np.array(plan.dataset.std)
    logits, _ = plan.program.model.apply(
        {"params": state.params}, jnp.asarray(scaled, jnp.float32), train=False
    )
    for column, (own, labels) in enumerate(
        zip(np.split(np.asarray(logits), [10], axis=1), held_out.labels.T, strict=True)
    ):
        own, labels = own[labels >= 0], labels[labels >= 0]
        right = int(np.sum(own.argmax(axis=1) == labels))
        loss = np.log(np.exp(own).sum(axis=1)) - own[np.arange(len(own)), labels]
        assert sum(int(batch.correct[column]) for batch in counted) == right
        assert sum(float(batch.loss[column]) for batch in counted) == pytest.approx(
            loss.sum(), rel=1e-4
        )


# --- a run ----------------------------------------------------------------------------------------


def test_a_run_tells_every_task_and_ends_when_each_has_reached_the_target(tmp_path):
    flags = [f"--dataset={BOTH}", "--model=mlp", "--width=64", "--target_accuracy=0.85"]
    flags += ["--updates=300", "--eval_every=10", "--meters=none", "--idle_seconds=0"]
    flags += ["--learning_rate=0.1", f"--out={tmp_path}", "--name=two", "--task_weights=2,1"]
    ended = subprocess.run(
        [sys.executable, "-m", "experiments.run", *flags],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    run = read_run(tmp_path / "two")
    assert run.summary is not None
    assert run.config is not None
    assert run.config["resolved"]["tasks"] == {"class": 10, "parity": 2}
    summary = run.summary
    assert summary["status"] == "target_reached"
    reached = summary["target"]["reached_at_update"]
    assert summary["updates"] == reached
    for line in run.metrics:
        by_task = line["validation_accuracy_by_task"]
        assert line["validation_accuracy"] == pytest.approx(sum(by_task.values()) / 2)
        assert (min(by_task.values()) >= 0.85) == (line["update"] == reached)
    final = summary["final"]
    assert set(final["test_accuracy_by_task"]) == {"class", "parity"}
    assert final["test_accuracy"] == pytest.approx(sum(final["test_accuracy_by_task"].values()) / 2)
    told = final["test_accuracy_by_task"]["parity"]
    assert f"parity {told:.2%}" in ended.stdout
    json.dumps(summary, allow_nan=False)
