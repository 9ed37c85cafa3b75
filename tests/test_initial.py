"""Trainings that begin with another's parameters, and trainings of some layers only."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from jaxenergy import data, models
from jaxenergy.config import RunConfig
from jaxenergy.errors import UsageError
from jaxenergy.models import MODELS
from jaxenergy.records import read_run
from jaxenergy.training import session
from jaxenergy.training.initial import frozen_entries, read_layers
from jaxenergy.training.plan import make_plan
from jaxenergy.training.progress import SilentObserver
from jaxenergy.training.steps import DeviceSplit, make_init, make_orders, make_updates
from jaxenergy.training.trained import load_trained

CONFIG = RunConfig(
    model="mlp", depth=3, width=16, updates=40, batch_size=64, meters="none", optimizer="adam"
)


class Listener(SilentObserver):
    def __init__(self):
        self.said = []

    def say(self, text):
        self.said.append(text)


def train(config, out, name):
    listener = Listener()
    result = session.run(dataclasses.replace(config, out=str(out), name=name), listener, {})
    return load_trained(result.path, platform="cpu"), result, listener.said


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return train(CONFIG, tmp_path_factory.mktemp("runs"), "source")[0]


def changed(before, after) -> set[str]:
    """The top-level entries that differ."""
    return {
        name
        for name in before
        if not jax.tree.all(jax.tree.map(np.array_equal, before[name], after[name]))
    }


@pytest.mark.parametrize("family", MODELS)
def test_the_head_is_the_last_layer_of_every_family(family):
    entry = MODELS[family]
    shape = (8, 8, 1) if entry.inputs == "image" else (16,)
    few, many = (models.build(family, input_shape=shape, classes=c) for c in (5, 7))
    layers = read_layers(few)
    assert sorted(name for layer in layers for name in layer) == sorted(
        jax.eval_shape(few.init, jax.random.key(0))["params"]
    )
    own, other = (jax.eval_shape(m.init, jax.random.key(0))["params"] for m in (few, many))
    depends_on_classes = {
        name
        for name in own
        if jax.tree.map(np.shape, own[name]) != jax.tree.map(np.shape, other[name])
    }
    if entry.inputs == "tokens":  # the embedding, the first layer, has a row for each token
        depends_on_classes -= set(layers[0])
    assert depends_on_classes == set(layers[-1])


@pytest.mark.parametrize(
    ("trainable", "trained"),
    [("head", 1), ("last:2", 2), ("last:4", 4), ("all", 4)],
)
@pytest.mark.parametrize("optimizer", ["adam", "lookahead", "sam"])
def test_only_the_trainable_layers_move(trainable, trained, optimizer):
    config = dataclasses.replace(CONFIG, trainable=trainable, optimizer=optimizer)
    dataset = data.load("digits")
    plan = make_plan(config, dataset, "cpu")
    layers = read_layers(plan.program.model)
    state = jax.jit(make_init(plan.program))(jax.random.key(0))
    orders = make_orders(dataset.train.examples)(jax.random.key(1), 0)
    split = DeviceSplit(dataset.train.inputs, dataset.train.labels)
    after, _ = jax.jit(make_updates(plan.program, 1))(state, split, orders)
    moved = {name for layer in layers[len(layers) - trained :] for name in layer}
    assert changed(state.params, after.params) == moved
    assert plan.trained_parameters == sum(
        leaf.size for name in moved for leaf in jax.tree.leaves(state.params[name])
    )
    assert plan.parameters == sum(leaf.size for leaf in jax.tree.leaves(state.params))


def test_frozen_batch_norms_keep_their_scales_and_go_on_averaging():
    config = dataclasses.replace(CONFIG, trainable="head", model_args="norm=batch")
    plan = make_plan(config, data.load("digits"), "cpu")
    state = jax.jit(make_init(plan.program))(jax.random.key(0))
    orders = make_orders(plan.dataset.train.examples)(jax.random.key(1), 0)
    split = DeviceSplit(plan.dataset.train.inputs, plan.dataset.train.labels)
    after, _ = jax.jit(make_updates(plan.program, 1))(state, split, orders)
    norms = set(state.batch_stats)
    assert norms <= plan.program.frozen
    assert changed(state.params, after.params).isdisjoint(norms)
    assert changed(state.batch_stats, after.batch_stats) == norms


def test_frozen_layers_cost_no_backward_pass():
    def flops(trainable):
        config = dataclasses.replace(CONFIG, trainable=trainable, width=64)
        plan = make_plan(config, data.load("digits"), "cpu")
        state = jax.eval_shape(make_init(plan.program), jax.random.key(0))
        orders = jax.eval_shape(make_orders(1083), jax.random.key(0), 0)
        lowered = jax.jit(make_updates(plan.program, 1)).lower(
            state, DeviceSplit(plan.dataset.train.inputs, plan.dataset.train.labels), orders
        )
        return lowered.cost_analysis()["flops"]

    assert flops("head") < 0.5 * flops("all")


def test_a_training_begins_with_what_another_ended_with(source, tmp_path):
    config = dataclasses.replace(CONFIG, init_from=str(source.run.path), trainable="head", seed=1)
    trained, result, said = train(config, tmp_path, "fine")
    head = set(read_layers(source.model)[-1])
    assert changed(source.params, trained.params) == head
    resolved = (read_run(result.path).config or {})["resolved"]
    assert resolved["init_from"]["run"] == "source"
    assert resolved["init_from"]["new"] == []
    assert resolved["trained_parameters"] == 16 * 10 + 10
    assert any("begins with" in sentence for sentence in said)


def test_a_head_for_other_classes_begins_anew_and_that_is_said(source, tmp_path):
    config = dataclasses.replace(
        CONFIG, init_from=str(source.run.path), dataset="synthetic:8x8x1,classes=3,examples=128"
    )
    _, result, said = train(config, tmp_path, "other")
    facts = (read_run(result.path).config or {})["resolved"]["init_from"]
    assert facts["new"] == list(read_layers(source.model)[-1])
    assert facts["loaded_parameters"] == 64 * 16 + 16 + 2 * (16 * 16 + 16)
    sentence = next(sentence for sentence in said if "begins with" in sentence)
    assert f"begin anew: {facts['new'][0]}" in sentence


def test_a_head_for_as_many_other_classes_begins_anew(tmp_path):
    lower = dataclasses.replace(CONFIG, dataset="digits:classes=0-4", updates=5)
    first, *_ = train(lower, tmp_path, "lower")
    head = list(read_layers(first.model)[-1])
    for classes, new in (("5-9", head), ("0-4", [])):
        config = dataclasses.replace(
            lower, init_from=str(first.run.path), dataset=f"digits:classes={classes}"
        )
        _, result, _ = train(config, tmp_path, f"upper{classes}")
        assert (read_run(result.path).config or {})["resolved"]["init_from"]["new"] == new


def test_a_source_is_found_by_its_settings_and_the_seed(tmp_path):
    source = dataclasses.replace(CONFIG, updates=5, out=str(tmp_path), name=None)
    config = dataclasses.replace(source, init_from=f"setup:{source.setup_id}", trainable="head")
    assert config.setup_id == dataclasses.replace(config, seed=4).setup_id
    with pytest.raises(UsageError, match="no completed run of seed 3"):
        session.run(dataclasses.replace(config, seed=3), SilentObserver(), {})
    for seed in (0, 3):
        session.run(dataclasses.replace(source, seed=seed), SilentObserver(), {})
    path = session.run(dataclasses.replace(config, seed=3), SilentObserver(), {}).path
    facts = (read_run(path).config or {})["resolved"]["init_from"]
    assert facts["id"] == dataclasses.replace(source, seed=3).id


def test_it_goes_on_only_if_it_still_begins_the_same(source, tmp_path):
    config = dataclasses.replace(
        CONFIG, init_from=str(source.run.path), out=str(tmp_path), name="x"
    )
    path = session.run(config, SilentObserver(), {}).path
    (path / "summary.json").unlink()  # as if it had been killed at the end
    recorded = json.loads((path / "config.json").read_text())
    recorded["resolved"]["init_from"]["digest"] = "sha256:0"
    (path / "config.json").write_text(json.dumps(recorded))
    with pytest.raises(UsageError, match=r"init_from\.digest"):
        session.run(config, SilentObserver(), {})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"trainable": "last:5"}, "Allowed: all, head, last:1 to last:4"),
        ({"trainable": "some"}, "Allowed: all, head, or last:K"),
        ({"trainable": "last:0"}, "Allowed: all, head, or last:K"),
        ({"init_from": "absent"}, "no folder"),
        ({"init_from": True, "model": "cnn", "depth": 1}, "is a mlp"),
        ({"init_from": True, "width": 8}, "no layer of it"),
    ],
)
def test_what_cannot_be_begun_is_refused(settings, message, source, tmp_path):
    if settings.get("init_from") is True:
        settings = {**settings, "init_from": str(source.run.path)}
    config = dataclasses.replace(CONFIG, out=str(tmp_path / "out"), **settings)
    with pytest.raises(UsageError, match=message):
        session.run(config, SilentObserver(), {})
    assert not (tmp_path / "out").exists()


def test_frozen_entries_keep_norms_with_their_layer():
    model = models.build("cnn", depth=2, input_shape=(8, 8, 1), classes=10)
    assert frozen_entries(model, "head") == {"Conv_0", "BatchNorm_0", "Conv_1", "BatchNorm_1"}
    assert frozen_entries(model, "last:2") == {"Conv_0", "BatchNorm_0"}
