"""Control tasks and PPO: its formulas, its one compiled program, and runs from end to end."""

import contextlib
import dataclasses
import io
import os
import signal
import sys

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from jaxenergy import data, models, optimizers
from jaxenergy.config import RunConfig
from jaxenergy.errors import UsageError
from jaxenergy.records import read_run, read_runs
from jaxenergy.report.terminal import print_summary
from jaxenergy.training import session
from jaxenergy.training.checkpoint import Checkpoints
from jaxenergy.training.control import make_control_plan
from jaxenergy.training.ppo import (
    Minibatch,
    Program,
    apply_heads,
    estimate_advantages,
    make_evaluate,
    make_init,
    make_iteration,
    ppo_loss,
)
from jaxenergy.training.progress import SilentObserver

needs_gymnax = pytest.mark.skipif(
    sys.version_info >= (3, 12), reason="gymnax 1.0 has no version for the jax of this Python"
)
TINY = "environments=2,steps=8,epochs=2,episodes=4"


def numbers(shape, low=-3.0, high=3.0):
    count = int(np.prod(shape))
    return st.lists(st.floats(low, high, width=32), min_size=count, max_size=count).map(
        lambda values: np.array(values, np.float32).reshape(shape)
    )


# --- formulas -------------------------------------------------------------------------------------


@st.composite
def episodes(draw):
    """Rewards, values and ends of some steps in some environments."""
    shape = draw(st.integers(1, 7)), draw(st.integers(1, 3))
    rewards, values, next_values = (draw(numbers(shape)) for _ in range(3))
    # 0 goes on, 1 is cut off, 2 has ended for good.
    kinds = draw(st.lists(st.integers(0, 2), min_size=shape[0] * shape[1], max_size=21))
    ends = np.array(kinds[: shape[0] * shape[1]]).reshape(shape)
    return rewards, values, next_values, ends == 2, ends >= 1


@hypothesis.given(episodes(), st.floats(0, 1), st.floats(0, 1))
@hypothesis.settings(max_examples=40)
def test_advantages_are_discounted_sums_of_differences_within_an_episode(seen, gamma, decay):
    rewards, values, next_values, terminated, ended = seen
    found = estimate_advantages(*map(jnp.asarray, seen), gamma=gamma, decay=decay)
    steps, environments = rewards.shape
    for e in range(environments):
        for first in range(steps):
            wanted, weight = 0.0, 1.0
            for t in range(first, steps):
                future = 0.0 if terminated[t, e] else gamma * float(next_values[t, e])
                wanted += weight * (float(rewards[t, e]) + future - float(values[t, e]))
                weight *= gamma * decay
                if ended[t, e]:
                    break
            assert float(found[first, e]) == pytest.approx(wanted, rel=1e-4, abs=1e-4)


@hypothesis.given(st.data())
@hypothesis.settings(max_examples=40)
def test_the_loss_is_the_formula_of_the_paper(drawn):
    batch, actions = 6, 3
    logits = drawn.draw(numbers((batch, actions)))
    values, advantages, targets = (drawn.draw(numbers((batch,))) for _ in range(3))
    chosen = np.array(drawn.draw(st.lists(st.integers(0, 2), min_size=batch, max_size=batch)))
    before = drawn.draw(numbers((batch,), -2.0, -0.25))
    hypothesis.assume(np.std(advantages) > 0.1)
    seen = Minibatch(
        jnp.zeros((batch, 1)), *map(jnp.asarray, (chosen, before, advantages, targets))
    )
    found = ppo_loss(
        jnp.asarray(logits), jnp.asarray(values), seen, clip=0.2, value=0.5, entropy=0.01
    )

    total = 0.0
    mean = sum(map(float, advantages)) / batch
    deviation = (sum((float(a) - mean) ** 2 for a in advantages) / batch) ** 0.5
    for i in range(batch):
        weights = [float(np.exp(np.float64(logit))) for logit in logits[i]]
        chances = [weight / sum(weights) for weight in weights]
        ratio = chances[chosen[i]] / float(np.exp(np.float64(before[i])))
        gain = (float(advantages[i]) - mean) / deviation
        surrogate = min(ratio * gain, max(0.8, min(1.2, ratio)) * gain)
        error = (float(values[i]) - float(targets[i])) ** 2
        spread = -sum(p * float(np.log(p)) for p in chances)
        total += -surrogate + 0.5 * 0.5 * error - 0.01 * spread
    assert float(found) == pytest.approx(total / batch, rel=1e-3, abs=1e-3)


# --- the compiled program -------------------------------------------------------------------------


def make_program(name=f"cartpole:{TINY}", optimizer="adam", batch_size=8):
    task = data.load_task(name)
    model = models.build(
        "mlp", input_shape=(1, 1, task.observations), classes=task.actions + 1, depth=1, width=8
    )
    return Program(model, optimizers.build(optimizer, total_updates=100), task, batch_size)


@needs_gymnax
def test_an_iteration_is_traced_once_donates_its_state_and_repeats_itself():
    program = make_program()
    assert program.updates_per_iteration == 2 * (2 * 8 // 8)
    iteration = jax.jit(make_iteration(program), donate_argnums=0)
    init = jax.jit(make_init(program))
    ends = []
    for _ in range(2):
        state = init(jax.random.key(3))
        for number in range(4):
            before, (state, metrics) = state, iteration(state)
            assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before))
            assert int(state.update) == (number + 1) * program.updates_per_iteration
            assert np.isfinite(float(metrics.loss))
        ends.append(jax.tree.map(np.asarray, state._replace(key=jax.random.key_data(state.key))))
    assert iteration._cache_size() == init._cache_size() == 1
    jax.tree.map(np.testing.assert_array_equal, *ends)


@needs_gymnax
def test_environments_go_on_from_iteration_to_iteration():
    program = make_program("acrobot:environments=3,steps=5,epochs=1,episodes=2", batch_size=15)
    state = jax.jit(make_init(program))(jax.random.key(0))
    iteration = jax.jit(make_iteration(program))
    for number in range(1, 4):
        state, _ = iteration(state)
        np.testing.assert_array_equal(state.environments.time, [5 * number] * 3)
        shown = jax.vmap(program.task.environment.get_obs)(state.environments)
        np.testing.assert_array_equal(state.observations, shown)


@needs_gymnax
@pytest.mark.parametrize(
    ("name", "action", "low", "high"),
    [
        ("acrobot", 1, -500, -500),  # without torque it hangs there until it is cut off
        ("cartpole", 0, 8, 11),  # pushed to one side all the time, the pole falls at once
    ],
)
def test_an_evaluation_plays_whole_episodes_by_the_best_action(name, action, low, high):
    program = make_program(f"{name}:episodes=8")
    state = jax.jit(make_init(program))(jax.random.key(0))
    bias = jnp.zeros(program.task.actions + 1).at[action].set(1e6)
    params = {**state.params, "Dense_1": {**state.params["Dense_1"], "bias": bias}}
    state = state._replace(params=params)
    both = [jax.jit(make_evaluate(program, split))(state) for split in ("validation", "test")]
    for found in both:
        assert found.returns.shape == (8,)
        assert np.all((found.returns >= low) & (found.returns <= high))
        assert bool(found.finite)
    spoilt = state._replace(params=jax.tree.map(lambda leaf: leaf * jnp.nan, params))
    assert not bool(jax.jit(make_evaluate(program, "test"))(spoilt).finite)


@needs_gymnax
def test_the_last_output_is_the_value():
    program = make_program()
    state = jax.jit(make_init(program))(jax.random.key(0))
    logits, values = apply_heads(program.model, state.params, jnp.ones((5, 2, 4)))
    assert (logits.shape, values.shape) == ((5, 2, 2), (5, 2))
    kernel = state.params["Dense_1"]["kernel"]
    head = {**state.params["Dense_1"], "kernel": kernel.at[:, -1].set(0.0)}
    changed = {**state.params, "Dense_1": head}
    same_logits, zeros = apply_heads(program.model, changed, jnp.ones((5, 2, 4)))
    np.testing.assert_array_equal(logits, same_logits)
    assert not zeros.any()


# --- configs --------------------------------------------------------------------------------------

BASE = RunConfig(
    model="mlp",
    depth=1,
    width=16,
    optimizer="adam",
    dataset=f"cartpole:{TINY}",
    batch_size=8,
    updates=40,
    idle_seconds=0.0,
    checkpoint_every="0",
    meters="none",
    quiet=True,
)


@needs_gymnax
def test_lengths_are_rounded_up_to_whole_iterations():
    config = dataclasses.replace(BASE, updates=42, eval_every=5, checkpoint_every="9")
    plan = make_control_plan(config, data.load_task(config.dataset), "cpu")
    assert (plan.total_updates, plan.eval_every, plan.checkpoint_updates) == (44, 8, 12)
    assert plan.parameters == 4 * 16 + 16 + 16 * 3 + 3
    default = RunConfig(model="mlp", dataset="cartpole")
    plan = make_control_plan(default, data.load_task(default.dataset), "cpu")
    iterations = plan.total_updates // plan.program.updates_per_iteration
    assert iterations * 512 == pytest.approx(500_000, abs=512)


@needs_gymnax
@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"model": "cnn"}, "4 numbers each.\nAllowed: mlp"),
        ({"model": "lm_4x128"}, "Allowed: mlp"),
        ({"model": "mpl"}, "Did you mean 'mlp'"),
        ({"model_args": "norm=batch"}, "norm=none or layer"),
        ({"model_args": "dropout=0.1"}, "dropout=0"),
        ({"batch_size": 12}, "a divisor of 16"),
        ({"batch_size": 1}, "Nearest: 2."),
        (
            {"batch_size": 1, "dataset": "cartpole:environments=3,steps=5,epochs=1,episodes=2"},
            "a divisor of 15 from 3 on. Nearest: 3.",
        ),
        (
            {"batch_size": 1, "dataset": "cartpole:environments=1,steps=1,epochs=1,episodes=2"},
            "with more environments or steps",
        ),
        ({"epochs": 3.0, "updates": None}, "Allowed: --updates"),
        ({"accumulate": 2}, "Allowed: 1"),
        ({"augment": True}, "Allowed: false"),
        ({"trainable": "head"}, "Allowed: all"),
        ({"init_from": "runs/x"}, "Allowed: none"),
        ({"target_accuracy": 0.9}, "Allowed: --target_return"),
        ({"optimizer": "lbfgs"}, "all but dpsgd, lbfgs, momo, momo_adam, polyak_sgd, reduce"),
        ({"optimizer": "dpsgd"}, "gradient of each example"),
    ],
)
def test_what_has_no_meaning_is_refused_in_few_lines(settings, told):
    config = dataclasses.replace(BASE, **settings)
    with pytest.raises(UsageError) as refused:
        make_control_plan(config, data.load_task(config.dataset), "cpu")
    assert told in str(refused.value)
    assert len(str(refused.value).splitlines()) <= 3


@needs_gymnax
@pytest.mark.parametrize(
    "optimizer",
    ["sam", *(pytest.param(name, marks=pytest.mark.slow) for name in ("sophia", "schedule_free"))],
)
def test_optimizers_that_ask_for_more_than_gradients_learn(optimizer):
    program = make_program(optimizer=optimizer)
    state = jax.jit(make_init(program))(jax.random.key(0))
    new_state, metrics = jax.jit(make_iteration(program))(state)
    assert np.isfinite(float(metrics.loss))
    moved = jax.tree.map(lambda one, other: bool((one != other).any()), state.params, new_state[0])
    assert all(jax.tree.leaves(moved))


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("cartpole:gama=0.9", "Did you mean 'gamma'"),
        ("cartpole:gamma=1.5", "at most 1"),
        ("cartpole:steps=0", "at least 1"),
    ],
)
def test_a_wrong_option_is_told(name, told):
    with pytest.raises(UsageError, match=told):
        data.load_task(name)


def test_without_gymnax_one_line_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnax", None)
    with pytest.raises(UsageError, match=r"pip install .*jaxenergy\[rl\]") as refused:
        data.load_task("acrobot")
    assert len(str(refused.value).splitlines()) == 1


def test_who_needs_examples_refuses_an_environment():
    with pytest.raises(UsageError, match="has no examples"):
        data.load("cartpole")


# --- runs -----------------------------------------------------------------------------------------


class StopAfter(SilentObserver):
    """Sends this process a signal once so many updates are made."""

    def __init__(self, update):
        self.update = update

    def advance(self, update, loss, account):
        if update == self.update:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.slow
@needs_gymnax
def test_a_resumed_run_goes_on_bit_for_bit(tmp_path):
    whole = dataclasses.replace(BASE, out=str(tmp_path / "whole"), eval_every=8)
    parts = dataclasses.replace(whole, out=str(tmp_path / "parts"), resume="auto")
    reference = session.run(whole, SilentObserver(), {})
    stopped = session.run(parts, StopAfter(20), {})
    assert stopped.summary["status"] == "preempted"
    assert 20 <= stopped.summary["updates"] < 40
    ended = session.run(parts, SilentObserver(), {})
    assert ended.summary["attempts"] == 2
    assert ended.summary["final"] == reference.summary["final"]
    one, other = read_run(reference.path), read_run(ended.path)
    for here, there in zip(one.metrics, other.metrics, strict=True):
        assert here["train_loss"] == there["train_loss"]
        assert here["validation_return"] == there["validation_return"]
        assert here["validation_accuracy"] is None
        assert "control task" in here["why"]["validation_accuracy"]
    plan = make_control_plan(BASE, data.load_task(BASE.dataset), "cpu")
    like = jax.jit(make_init(plan.program))(jax.random.key(7))
    ends = []
    for run in (one, other):
        checkpoints = Checkpoints(run.path / "checkpoints", 2, read_only=True)
        with contextlib.closing(checkpoints):
            state, progress = checkpoints.restore(like, pytest.fail) or (like, None)
        assert progress is not None
        assert progress.update == 40
        ends.append(jax.tree.map(np.asarray, state._replace(key=jax.random.key_data(state.key))))
    jax.tree.map(np.testing.assert_array_equal, *ends)  # states of environments among them


@needs_gymnax
def test_cartpole_is_learned_and_the_return_has_its_name_and_its_energy(tmp_path):
    config = dataclasses.replace(
        BASE,
        out=str(tmp_path),
        dataset="cartpole",
        width=64,
        activation="tanh",
        batch_size=128,
        learning_rate=2.5e-3,
        clip_norm=0.5,
        updates=3200,
        eval_every=32,
        target_return=150.0,
        meters="estimate",
    )
    result = session.run(config, SilentObserver(), {})
    summary = result.summary
    assert summary["status"] == "target_reached"
    assert summary["final"]["validation_return"] >= 150
    assert summary["final"]["test_return"] > 100
    assert summary["final"]["validation_accuracy"] is summary["final"]["test_accuracy"] is None
    target = summary["target"]
    assert target["return"] == 150.0
    assert "accuracy" not in target
    assert target["reached_at_update"] == summary["updates"] < 3200
    assert 0 < target["energy_j"] < summary["energy_j"]["total"]
    assert summary["examples"] == 128 * summary["updates"] == 128 * summary["iterations"]
    assert summary["compiled"]["flops_per_update"] is None
    assert "loops" in summary["compiled"]["why"]["flops_per_update"]
    (row,) = read_runs(result.path)
    assert row["target.return"] == 150.0
    assert row["final.test_return"] == summary["final"]["test_return"]
    console = Console(file=io.StringIO(), width=120)
    print_summary(summary, "folder", console)
    assert "to a return of 150" in console.file.getvalue()
    assert "test return" in console.file.getvalue()
    assert "accuracy" not in console.file.getvalue()
