"""The programs of `training.shares` compute what they say, and the parts add up to the update."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxenergy import data
from jaxenergy.config import RunConfig
from jaxenergy.data import pipeline
from jaxenergy.meters import Meters, open_meters
from jaxenergy.meters.simulated import Faults, PowerCurve, SimulatedCounter, SimulatedMeter
from jaxenergy.training import shares
from jaxenergy.training.plan import make_plan
from jaxenergy.training.steps import DeviceSplit, make_init, make_orders, make_take_batch

CONFIGS = {
    "mlp": RunConfig(model="mlp", depth=1, width=8, batch_size=16),
    "adam, micro-batches": RunConfig(
        model="mlp", depth=1, width=8, batch_size=16, accumulate=4, optimizer="adam"
    ),
    "dropout": RunConfig(model="mlp", depth=1, width=8, batch_size=16, model_args="dropout=0.5"),
    "batch norm, augmented": RunConfig(
        model="cnn", depth=3, width=4, batch_size=8, augment=True, model_args="norm=batch"
    ),
}


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


@dataclasses.dataclass
class Parts:
    """The programs of a config, and what they are called with."""

    plan: shares.Plan
    programs: dict
    state: object
    split: DeviceSplit
    orders: jax.Array

    def __call__(self, name, *rest):
        return jax.jit(self.programs[name])(self.state, *(rest or (self.split, self.orders)))


@pytest.fixture(scope="module", params=CONFIGS)
def parts(request, digits):
    plan = make_plan(CONFIGS[request.param], digits, "cpu")
    train = digits.train
    state = jax.jit(make_init(plan.program))(jax.random.key(1))
    return Parts(
        plan=plan,
        programs=shares.make_programs(plan.program),
        state=state._replace(position=jnp.int32(5), update=jnp.int32(3)),
        split=DeviceSplit(jnp.asarray(train.inputs), jnp.asarray(train.labels)),
        orders=jax.jit(make_orders(len(train.labels)))(jax.random.key(2), np.int32(0)),
    )


def assert_same(left, right):
    """Equal to the last places: parts are other programs than the whole."""
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6), left, right)


def test_the_parts_compute_what_the_update_computes(parts):
    updated, (loss, _) = parts("update")
    batch = jax.jit(make_take_batch(parts.plan.program))(parts.state, parts.split, parts.orders)
    forward, forward_loss = parts("forward")
    differentiated, (gradients_loss, grads) = parts("gradients")
    optimized, _ = parts("optimizer", batch, loss, grads)
    assert_same((forward_loss, gradients_loss), (loss, loss))
    assert_same(forward.batch_stats, updated.batch_stats)
    assert_same(differentiated.batch_stats, updated.batch_stats)
    assert_same((optimized.params, optimized.opt_state), (updated.params, updated.opt_state))
    assert all(np.any(leaf) for leaf in jax.tree.leaves(grads))


def test_nothing_that_a_program_should_compute_is_optimised_away(parts):
    """By XLA's own count; backward is dearer than forward, and the update holds both."""
    flops = {}
    for name in parts.programs.keys() - {"optimizer"}:
        lowered = jax.jit(parts.programs[name]).lower(parts.state, parts.split, parts.orders)
        flops[name] = lowered.compile().cost_analysis()["flops"]
    assert flops["call"] < flops["batch"] < flops["forward"]
    assert flops["gradients"] - flops["forward"] > 0.8 * (flops["forward"] - flops["batch"])
    assert flops["gradients"] < flops["update"]
    if "augmented" in flops:
        assert flops["batch"] < flops["augmented"] < flops["forward"]


def test_the_batch_is_the_update_s_own_scaled(parts):
    dataset, size = parts.plan.dataset, parts.plan.config.batch_size
    _, (inputs, labels) = parts("batch")
    chosen = np.asarray(parts.orders[0, 5 : 5 + size])
    np.testing.assert_array_equal(labels, dataset.train.labels[chosen])
    expected = pipeline.normalise(dataset.train.inputs[chosen], dataset.mean, dataset.std)
    np.testing.assert_allclose(inputs, expected, rtol=1e-5, atol=1e-6)
    assert ("augmented" in parts.programs) == parts.plan.config.augment
    if parts.plan.config.augment:
        _, (augmented, same_labels) = parts("augmented")
        np.testing.assert_array_equal(same_labels, labels)
        assert np.any(np.asarray(augmented) != np.asarray(inputs))


def test_parts_leave_alone_what_is_not_theirs_and_go_on_to_the_next_batch(parts):
    examples, size = parts.split.labels.shape[0], parts.plan.config.batch_size
    near_end = parts.state._replace(position=jnp.int32(examples - 1))
    for name in parts.programs.keys() - {"optimizer"}:
        state, _ = jax.jit(parts.programs[name])(near_end, parts.split, parts.orders)
        assert int(state.update) == 4, name
        assert int(state.position) == (examples - 1 + size) % examples, name
        if name != "update":
            assert_same(state.params, near_end.params)
            assert_same(state.opt_state, near_end.opt_state)


def test_each_case_hands_its_own_donated_state_on(digits):
    plan = make_plan(CONFIGS["mlp"], digits, "cpu")
    cases = shares.make_cases(plan)
    assert list(cases) == ["call", "batch", "forward", "gradients", "optimizer", "update"]
    for name, case in cases.items():
        before = case.state
        state, _ = jax.block_until_ready(case(3))
        assert int(state.update) == 3, name
        assert before.update.is_deleted(), name


# Adding up

NAMES = ("call", "batch", "augmentation", "forward", "backward", "optimizer", "remainder")
COSTS = st.fixed_dictionaries({name: st.floats(-100, 100) for name in NAMES})


def programs_of(part):
    """What the programs cost whose parts cost so much."""
    batch = part["call"] + part["batch"]
    augmented = batch + part["augmentation"]
    forward = augmented + part["forward"]
    gradients = forward + part["backward"]
    return {
        "call": part["call"],
        "batch": batch,
        "augmented": augmented,
        "forward": forward,
        "gradients": gradients,
        "optimizer": part["call"] + part["optimizer"],
        "update": gradients + part["optimizer"] + part["remainder"],
    }


@given(st.lists(COSTS, min_size=5, max_size=20))
def test_parts_and_remainder_add_up_and_may_be_negative(rounds):
    found = shares.share(list(map(programs_of, rounds)))
    assert not isinstance(found, str)
    *names, whole = found
    assert (tuple(names), whole) == (NAMES, "update")
    assert sum(found[name].value for name in names) == pytest.approx(found[whole].value, abs=1e-9)
    for name in names:
        truth = np.mean([one[name] for one in rounds])
        assert found[name].value == pytest.approx(truth, abs=1e-9)


def test_without_augmentation_forward_is_held_against_the_batch():
    costs = programs_of({**dict.fromkeys(NAMES, 2.0), "augmentation": 0.0})
    del costs["augmented"]
    found = shares.share([costs] * 6)
    assert not isinstance(found, str)
    parts = [name for name in NAMES if name != "augmentation"]
    assert {name: part.value for name, part in found.items()} == {
        **dict.fromkeys(parts, 2.0),
        "update": 12.0,
    }
    assert found["update"].interval() == (12.0, 12.0)


def test_too_few_rounds_give_a_reason():
    assert "too few" in str(shares.share([programs_of(dict.fromkeys(NAMES, 1.0))] * 4))
    assert "time was up" in str(shares.share([]))


# Measured


@pytest.mark.slow
def test_at_constant_power_joules_are_power_times_time_and_add_up(digits):
    counter = SimulatedCounter(PowerCurve([0.0], [80.0]), tick_s=0.0)
    found = shares.measure_shares(
        make_plan(CONFIGS["mlp"], digits, "cpu"),
        Meters((SimulatedMeter([counter]),)),
        target_relative_ci=0.99,
        max_seconds=100.0,  # where it is known earlier it ends earlier
    )
    assert found.energy_j is not None
    assert found.duration_s is not None
    *names, whole = found.energy_j
    for estimates in (found.energy_j, found.duration_s):
        total = sum(estimates[name].value for name in names)
        assert total == pytest.approx(estimates[whole].value, rel=1e-9)
    joules, seconds = found.energy_j[whole].value, found.duration_s[whole].value
    assert joules == pytest.approx(80.0 * seconds, rel=0.02)
    assert found.rounds >= 15
    assert found.provenance == "simulated"
    written = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert written["energy_j"][whole]["mean"] == joules
    assert set(written["duration_s"]) == {*names, whole}


def test_a_counter_that_cannot_be_read_gives_its_reason(digits):
    faults = Faults(drop_outs=((0.0, math.inf),))
    counter = SimulatedCounter(PowerCurve([0.0], [80.0]), faults=faults)
    plan = make_plan(CONFIGS["mlp"], digits, "cpu")
    meters = Meters((SimulatedMeter([counter]),))
    for max_seconds in (3.0, 60.0):  # a busy machine may compile for longer than the first
        found = shares.measure_shares(plan, meters, max_seconds=max_seconds)
        if found.duration_s is not None:
            break
    assert found.energy_j is None
    assert "switched off" in found.why["energy_j"]


def test_without_meters_there_are_shares_of_time_and_a_reason(digits):
    found = shares.measure_shares(
        make_plan(CONFIGS["mlp"], digits, "cpu"), open_meters("none"), max_seconds=100.0
    )
    assert found.energy_j is None
    assert "no domain was counted" in found.why["energy_j"]
    assert found.duration_s is not None
    assert found.duration_s["update"].value > 0
    assert not found.reached_target
