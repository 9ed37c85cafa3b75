"""Proximal policy optimisation as pure functions: act in the environments, then update on that.

An iteration is one compiled program: every copy of the environment is acted in for so many steps by
the policy as it is, advantages are estimated, and the steps are gone through several times in
shuffled minibatches, each of which is one update of the optimizer. So a call makes
`updates_per_iteration` updates, and what they take has the acting in it.

One network has both heads: its last layer gives a logit for each action and, last, the value.

References:
    J. Schulman et al. (2017). Proximal Policy Optimization Algorithms. arXiv 1707.06347.
    J. Schulman et al. (2016). High-Dimensional Continuous Control Using Generalized Advantage
    Estimation. ICLR. arXiv 1506.02438.
    C. Lu et al. (2022). Discovered Policy Optimisation. NeurIPS; PureJaxRL, whose layout this is.
    F. Pardo et al. (2018). Time Limits in Reinforcement Learning. ICML. arXiv 1712.00378: an
    episode that is cut off has a future, and its last state's value stands for it.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxenergy.data import ControlTask
from jaxenergy.models import Model
from jaxenergy.optimizers import Optimizer
from jaxenergy.training.steps import CallMetrics

PyTree = Any

_ADVANTAGE_EPSILON = 1e-8  # keeps equal advantages from being divided by nothing
# Evaluations begin in states of their own, the same for every run: of this key, folded with the
# number of the split.
_EVALUATION_SEED = 2017
_SPLITS = ("validation", "test")


class ControlState(NamedTuple):
    """All that an iteration changes; donated to each, and what a checkpoint holds.

    Attributes:
        params: the network's parameters.
        opt_state: the optimizer's state.
        key: PRNG key of actions, environments and order; each iteration folds its number in.
        update: updates made, int32 scalar.
        environments: the state of each copy of the environment, leaves [environments, ...].
        observations: what each copy shows, float32 [environments, observations].
    """

    params: PyTree
    opt_state: PyTree
    key: jax.Array
    update: jax.Array
    environments: PyTree
    observations: jax.Array


@dataclasses.dataclass(frozen=True)
class Program:
    """What is learned, by what: all that shapes the compiled iteration.

    Attributes:
        model: the network, with an output for each action and one for the value.
        optimizer: the optimizer.
        task: the environment and PPO's settings.
        batch_size: transitions of a minibatch; divides those of an iteration.
    """

    model: Model
    optimizer: Optimizer
    task: ControlTask
    batch_size: int

    @property
    def updates_per_iteration(self) -> int:
        """Updates that an iteration makes: one for each minibatch of each epoch."""
        settings = self.task.settings
        return settings.epochs * (settings.transitions // self.batch_size)

    def evaluation_params(self, state: ControlState) -> PyTree:
        """The parameters to evaluate: averages or slow ones where the optimizer keeps such."""
        return self.optimizer.evaluation_params(state.params, state.opt_state)


class Transitions(NamedTuple):
    """What was seen in acting; leaves [steps, environments, ...], or [batch, ...] of a minibatch.

    Attributes:
        observations: before each action, float32 [..., observations].
        actions: int32.
        log_probabilities: of these actions when they were chosen, float32.
        values: of the observations by then, float32.
        rewards: float32.
        terminated: whether the episode ended for good, so that nothing follows; bool.
        ended: whether it ended or was cut off; bool.
        next_observations: what the action led to, before a new episode began.
    """

    observations: jax.Array
    actions: jax.Array
    log_probabilities: jax.Array
    values: jax.Array
    rewards: jax.Array
    terminated: jax.Array
    ended: jax.Array
    next_observations: jax.Array


class Minibatch(NamedTuple):
    """What one update computes on; leaves [batch, ...].

    Attributes:
        observations: float32 [batch, observations].
        actions: int32.
        log_probabilities: of these actions when they were chosen, float32.
        advantages: how much better they were than the policy's mean, as estimated, float32.
        targets: the values to be learned, float32.
    """

    observations: jax.Array
    actions: jax.Array
    log_probabilities: jax.Array
    advantages: jax.Array
    targets: jax.Array


def make_init(program: Program) -> Callable[[jax.Array], ControlState]:
    """Makes the function from a seed's key to a fresh state; to be called under one jit."""
    environment, params = program.task.environment, program.task.params

    def init(key: jax.Array) -> ControlState:
        params_key, step_key, reset_key = jax.random.split(key, 3)
        weights = program.model.init(params_key)["params"]
        observations, environments = jax.vmap(environment.reset, in_axes=(0, None))(
            jax.random.split(reset_key, program.task.settings.environments), params
        )
        return _strongly_typed(
            ControlState(
                params=weights,
                opt_state=program.optimizer.tx.init(weights),
                key=step_key,
                update=jnp.zeros((), jnp.int32),
                environments=environments,
                observations=observations,
            )
        )

    return init


def make_iteration(program: Program) -> Callable[[ControlState], tuple[ControlState, CallMetrics]]:
    """Makes the function that does one iteration: acts, estimates advantages, updates.

    Args:
        program: what is learned.

    Returns:
        A function of the state that gives the new state and what is told of its updates.
    """
    settings = program.task.settings
    act, update = _make_act(program), _make_update(program)

    def iteration(state: ControlState) -> tuple[ControlState, CallMetrics]:
        act_key, order_key = jax.random.split(jax.random.fold_in(state.key, state.update))
        environments, observations, seen = act(state, act_key)
        _, next_values = apply_heads(program.model, state.params, seen.next_observations)
        advantages = estimate_advantages(
            seen.rewards,
            seen.values,
            next_values,
            seen.terminated,
            seen.ended,
            gamma=settings.gamma,
            decay=settings.gae_lambda,
        )
        whole = Minibatch(
            observations=seen.observations,
            actions=seen.actions,
            log_probabilities=seen.log_probabilities,
            advantages=advantages,
            targets=advantages + seen.values,
        )
        whole = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), whole)
        orders = jax.vmap(jax.random.permutation, in_axes=(0, None))(
            jax.random.split(order_key, settings.epochs), settings.transitions
        )
        (params, opt_state), each = jax.lax.scan(
            lambda carry, chosen: update(*carry, jax.tree.map(lambda leaf: leaf[chosen], whole)),
            (state.params, state.opt_state),
            orders.reshape(-1, program.batch_size),
        )
        new_state = ControlState(
            params=params,
            opt_state=opt_state,
            key=state.key,
            update=state.update + program.updates_per_iteration,
            environments=environments,
            observations=observations,
        )
        iterations = None if each.iterations is None else jnp.sum(each.iterations)
        return _strongly_typed(new_state), CallMetrics(jnp.mean(each.loss), iterations)

    return iteration


def apply_heads(
    model: Model, params: PyTree, observations: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """What the network says of observations.

    Args:
        model: the network.
        params: its parameters.
        observations: float32 [..., observations].

    Returns:
        The logits of the actions [..., actions] and the values [...], float32.
    """
    flat = observations.reshape(-1, observations.shape[-1])
    outputs, _ = model.apply({"params": params}, flat, train=False)
    outputs = outputs.reshape(*observations.shape[:-1], -1)
    return outputs[..., :-1], outputs[..., -1]


def _make_act(program: Program) -> Callable[[ControlState, jax.Array], tuple]:
    """Makes the function that acts by a state's policy for the steps of an iteration."""
    settings, params = program.task.settings, program.task.params
    step_all = jax.vmap(program.task.environment.step, in_axes=(0, 0, 0, None))

    def act(state: ControlState, key: jax.Array) -> tuple[PyTree, jax.Array, Transitions]:
        def step(carry: tuple[PyTree, jax.Array], key: jax.Array):
            environments, observations = carry
            action_key, step_key = jax.random.split(key)
            logits, values = apply_heads(program.model, state.params, observations)
            actions = jax.random.categorical(action_key, logits)
            keys = jax.random.split(step_key, settings.environments)
            new_observations, environments, rewards, terminated, truncated, info = step_all(
                keys, environments, actions, params
            )
            seen = Transitions(
                observations=observations,
                actions=actions,
                log_probabilities=_log_probabilities(logits, actions),
                values=values,
                rewards=rewards.astype(jnp.float32),
                terminated=terminated,
                ended=terminated | truncated,
                next_observations=info["final_observation"],
            )
            return _strongly_typed((environments, new_observations)), seen

        (environments, observations), seen = jax.lax.scan(
            step, (state.environments, state.observations), jax.random.split(key, settings.steps)
        )
        return environments, observations, seen

    return act


def _log_probabilities(logits: jax.Array, actions: jax.Array) -> jax.Array:
    """The logarithms of the probabilities of actions [...] by their logits [..., actions]."""
    return jnp.take_along_axis(jax.nn.log_softmax(logits), actions[..., None], axis=-1)[..., 0]


def estimate_advantages(
    rewards: jax.Array,
    values: jax.Array,
    next_values: jax.Array,
    terminated: jax.Array,
    ended: jax.Array,
    *,
    gamma: float,
    decay: float,
) -> jax.Array:
    """Generalised advantage estimates.

    A_t = d_t + gamma decay (1 - ended_t) A_{t+1}, with the temporal difference
    d_t = r_t + gamma (1 - terminated_t) V(next_t) - V_t. The estimate beyond the last step is 0.

    Args:
        rewards: float32 [steps, environments].
        values: of the observations before each action, likewise.
        next_values: of what the action led to, likewise; the last one of an episode that was cut
            off stands for what would have followed.
        terminated: whether the episode ended for good, bool, likewise.
        ended: whether it ended or was cut off, bool, likewise.
        gamma: discount of a reward per step.
        decay: of temporal differences; 0 for one step, 1 for the sum of all rewards.

    Returns:
        The advantages, float32 [steps, environments].

    References:
        Schulman et al. 2016, equations 11 and 16.
    """
    differences = rewards + gamma * jnp.where(terminated, 0.0, next_values) - values

    def add(later: jax.Array, at: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        difference, ended = at
        advantage = difference + gamma * decay * jnp.where(ended, 0.0, later)
        return advantage, advantage

    _, advantages = jax.lax.scan(
        add, jnp.zeros_like(differences[0]), (differences, ended), reverse=True
    )
    return advantages


def ppo_loss(
    logits: jax.Array,
    values: jax.Array,
    batch: Minibatch,
    *,
    clip: float,
    value: float,
    entropy: float,
) -> jax.Array:
    """What an update descends: the clipped surrogate, the value's error and the entropy.

    Advantages are scaled to mean 0 and standard deviation 1 over the minibatch.

    Args:
        logits: of the actions, by the network as it is, float32 [batch, actions].
        values: likewise, float32 [batch].
        batch: what was seen.
        clip: how far the ratio of probabilities may move before its gain is cut off.
        value: weight of half the squared error of values.
        entropy: weight of the policy's entropy.

    Returns:
        The loss, float32 scalar.

    References:
        Schulman et al. 2017, equations 7 and 9 (its sign turned, for descent).
    """
    advantages = batch.advantages
    advantages = (advantages - advantages.mean()) / (advantages.std() + _ADVANTAGE_EPSILON)
    ratio = jnp.exp(_log_probabilities(logits, batch.actions) - batch.log_probabilities)
    clipped = jnp.clip(ratio, 1 - clip, 1 + clip)
    surrogate = jnp.minimum(ratio * advantages, clipped * advantages).mean()
    error = 0.5 * jnp.square(values - batch.targets).mean()
    log_probabilities = jax.nn.log_softmax(logits)
    spread = -jnp.sum(jnp.exp(log_probabilities) * log_probabilities, axis=-1).mean()
    return -surrogate + value * error - entropy * spread


def _make_update(program: Program) -> Callable:
    """Makes one update on a minibatch: gradients of the loss, and the optimizer's step."""
    settings, optimizer = program.task.settings, program.optimizer

    def update(params: PyTree, opt_state: PyTree, batch: Minibatch):
        def loss_of(params: PyTree) -> jax.Array:
            logits, values = apply_heads(program.model, params, batch.observations)
            return ppo_loss(
                logits,
                values,
                batch,
                clip=settings.clip,
                value=settings.value,
                entropy=settings.entropy,
            )

        loss, grads = jax.value_and_grad(loss_of)(params)
        params, opt_state = optimizer.update(grads, opt_state, params, value=loss, value_fn=loss_of)
        passes = optimizer.iterations(opt_state)
        iterations = None if isinstance(passes, int) else passes
        return (params, opt_state), CallMetrics(loss, iterations)

    return update


class Returns(NamedTuple):
    """What an evaluation found.

    Attributes:
        returns: undiscounted, of each episode, float32 [episodes].
        finite: whether all that the network put out was finite, bool scalar.
    """

    returns: jax.Array
    finite: jax.Array


def make_evaluate(program: Program, split: str) -> Callable[[ControlState], Returns]:
    """Makes the function that plays whole episodes with the most probable action at each step.

    Args:
        program: what is learned.
        split: `validation` or `test`: which of two fixed sets of episodes, the same for every run,
            and none that training begins with.

    Returns:
        A function of the state.
    """
    task = program.task
    step_all = jax.vmap(task.environment.step, in_axes=(0, 0, 0, None))

    def evaluate(state: ControlState) -> Returns:
        weights = program.evaluation_params(state)
        key = jax.random.fold_in(jax.random.key(_EVALUATION_SEED), _SPLITS.index(split))
        reset_key, key = jax.random.split(key)
        episodes = task.settings.episodes
        observations, environments = jax.vmap(task.environment.reset, in_axes=(0, None))(
            jax.random.split(reset_key, episodes), task.params
        )

        def goes_on(carry: tuple) -> jax.Array:
            *_, ended, _ = carry
            return ~jnp.all(ended)

        def step(carry: tuple) -> tuple:
            key, environments, observations, returns, ended, finite = carry
            key, step_key = jax.random.split(key)
            logits, _ = apply_heads(program.model, weights, observations)
            observations, environments, rewards, terminated, truncated, _ = step_all(
                jax.random.split(step_key, episodes),
                environments,
                jnp.argmax(logits, axis=-1),
                task.params,
            )
            return _strongly_typed(
                (
                    key,
                    environments,
                    observations,
                    returns + jnp.where(ended, 0.0, rewards),
                    ended | terminated | truncated,
                    finite & jnp.all(jnp.isfinite(logits)),
                )
            )

        begun = _strongly_typed(
            (
                key,
                environments,
                observations,
                jnp.zeros(episodes),
                jnp.zeros(episodes, bool),
                jnp.array(True),
            )
        )
        *_, returns, _, finite = jax.lax.while_loop(goes_on, step, begun)
        return Returns(returns, finite)

    return evaluate


def _strongly_typed(tree: PyTree) -> PyTree:
    """The same without weak types, for which jit would compile a second time."""

    def strong(leaf: Any) -> jax.Array:
        leaf = jnp.asarray(leaf)
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return leaf
        return jax.lax.convert_element_type(leaf, leaf.dtype)

    return jax.tree.map(strong, tree)
