"""Control tasks: environments to act in, by name, where a data set would give examples.

They are gymnax's, in pure JAX, so that many copies of an environment are simulated on the device
inside the compiled program that learns from them, and what is measured is that alone. gymnax is an
extra of its own, since it brings matplotlib and pandas; it is imported where a task is loaded.
"""

import dataclasses
import hashlib
import importlib
import importlib.metadata
import inspect
from typing import Any

from jaxenergy.arguments import (
    COUNT,
    NOT_NEGATIVE,
    POSITIVE,
    PROPORTION,
    Argument,
    read_arguments,
    split_arguments,
)
from jaxenergy.errors import UsageError
from jaxenergy.registry import Registry

# Of PPO, with the defaults of PureJaxRL's ppo.py (C. Lu et al. 2022, Discovered Policy
# Optimisation, NeurIPS): 4 environments of 128 steps, 4 epochs, and with the default
# --batch_size=128 its 4 minibatches. They go back to J. Schulman et al. (2017), Proximal Policy
# Optimization Algorithms, arXiv 1707.06347: clip to table 1, gamma and gae_lambda to table 3,
# entropy to table 5.
OPTIONS = {
    "environments": Argument(int, 4, COUNT),
    "steps": Argument(int, 128, COUNT),
    "epochs": Argument(int, 4, COUNT),
    "gamma": Argument(float, 0.99, PROPORTION),
    "gae_lambda": Argument(float, 0.95, PROPORTION),
    "clip": Argument(float, 0.2, POSITIVE),
    "entropy": Argument(float, 0.01, NOT_NEGATIVE),
    "value": Argument(float, 0.5, NOT_NEGATIVE),
    "episodes": Argument(int, 32, COUNT),
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a policy is learned and evaluated; the names are those of `OPTIONS`.

    Attributes:
        environments: copies of the environment that are acted in side by side.
        steps: of each copy between two rounds of updates.
        epochs: passes over what these steps gave.
        gamma: discount of a reward per step.
        gae_lambda: decay of temporal differences in the estimate of advantages.
        clip: how far the probability of an action may move, as a ratio, before its gain is cut off.
        entropy: weight of the policy's entropy in the objective.
        value: weight of the value's squared error in it.
        episodes: of an evaluation.
    """

    environments: int
    steps: int
    epochs: int
    gamma: float
    gae_lambda: float
    clip: float
    entropy: float
    value: float
    episodes: int

    @property
    def transitions(self) -> int:
        """Steps of all copies together between two rounds of updates."""
        return self.environments * self.steps


@dataclasses.dataclass(frozen=True, eq=False)
class ControlTask:
    """An environment, and how a policy is learned in it.

    Attributes:
        name: as typed after `--dataset`, with every option.
        environment: gymnax's environment.
        params: its parameters.
        observations: numbers of an observation.
        actions: actions to choose from.
        settings: how a policy is learned.
        source: a sentence on where it comes from.
        digest: `sha256:` and the hash of the environment's source.
    """

    name: str
    environment: Any
    params: Any
    observations: int
    actions: int
    settings: Settings
    source: str
    digest: str


# By the name typed: what gymnax calls it.
TASKS: Registry[str] = Registry("--dataset")
TASKS.add("cartpole", "CartPole-v1", "a pole to balance on a cart; return 1 a step, at most 500")
TASKS.add("acrobot", "Acrobot-v1", "a double pendulum to swing up; return -1 a step, at least -500")


def load_task(name: str) -> ControlTask:
    """Loads a control task.

    Args:
        name: a name of `TASKS`, with options after a colon, e.g. `cartpole:environments=16`.

    Returns:
        The task.

    Raises:
        UsageError: an unknown name or option, or gymnax is not installed.
    """
    key, _, text = name.partition(":")
    known_as = TASKS[key]
    given = split_arguments(text, f"--dataset={key}")
    values: dict[str, Any] = read_arguments(given, OPTIONS, f"--dataset={key}")
    try:
        gymnax = importlib.import_module("gymnax")
    except ImportError as error:
        raise UsageError(
            f"--dataset={key} needs gymnax ({error}): pip install -c constraints.txt "
            "'jaxenergy[rl]', on Python 3.11 (gymnax 1.0 wants the jax below 0.12 that 3.11 has)."
        ) from error
    environment, params = gymnax.make(known_as)
    (observations,) = environment.observation_space(params).shape
    options = ",".join(f"{option}={value}" for option, value in values.items())
    module = inspect.getmodule(type(environment))
    assert module is not None
    return ControlTask(
        name=f"{key}:{options}",
        environment=environment,
        params=params,
        observations=observations,
        actions=environment.num_actions,
        settings=Settings(**values),
        source=f"{known_as} of gymnax {importlib.metadata.version('gymnax')}",
        digest=f"sha256:{hashlib.sha256(inspect.getsource(module).encode()).hexdigest()}",
    )
