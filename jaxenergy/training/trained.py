"""A trained network out of a run's folder, for inference and for trainings that begin with it.

The folder is only read: another process may be at work on it. A plug-in that the folder names is
imported only where the user names it too.
"""

import contextlib
import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxenergy import data, optimizers
from jaxenergy.config import RunConfig
from jaxenergy.data import Dataset
from jaxenergy.errors import UsageError
from jaxenergy.models import Model
from jaxenergy.records import Run, read_run
from jaxenergy.records.files import plain_text
from jaxenergy.records.reader import find_runs
from jaxenergy.records.schema import COMPLETED
from jaxenergy.training.checkpoint import Checkpoints
from jaxenergy.training.initial import Initial, take_over
from jaxenergy.training.plan import make_plan
from jaxenergy.training.steps import make_init

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Trained:
    """A network with what its training left.

    Attributes:
        run: the run's folder, as read.
        config: its settings.
        dataset: what it was trained on.
        model: the network.
        params: its parameters, as the run evaluated them; numpy arrays.
        batch_stats: running statistics of batch normalisation; empty where there are none.
        update: updates made until then.
    """

    run: Run
    config: RunConfig
    dataset: Dataset
    model: Model
    params: PyTree
    batch_stats: PyTree
    update: int

    @property
    def variables(self) -> dict[str, PyTree]:
        """What `Model.apply` takes."""
        stats = {"batch_stats": self.batch_stats} if self.batch_stats else {}
        return {"params": self.params, **stats}


def load_trained(
    folder: str | os.PathLike[str],
    *,
    platform: str,
    data_dir: str | None = None,
    optimizer: str | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Trained:
    """Reads the newest checkpoint of a run.

    Args:
        folder: the run's folder.
        platform: `cpu` or `gpu`, where it will be used.
        data_dir: where its data set is; None for where it was.
        optimizer: the run's optimizer, which has to be named again where it is a plug-in.
        say: told about each checkpoint that cannot be read.

    Returns:
        The network.

    Raises:
        UsageError: the folder is no run's, has no checkpoint, or its data set is not to be had.
        RunError: there are checkpoints, and none can be read.
    """
    run = read_run(folder)
    shown = plain_text(run.path)
    if run.config is None:
        raise UsageError(f"{shown} holds no run that can be read: {run.why}")
    config = RunConfig.from_json(run.config)
    named = _named_optimizer(config)
    if ":" in named and optimizer != named:
        raise UsageError(
            f"{shown} was trained by {plain_text(named)}, code that is imported only if you name "
            f"it too.\nAllowed: --optimizer={plain_text(named)}."
        )
    if not (run.path / "checkpoints").is_dir():
        raise UsageError(f"{shown} has no checkpoint yet, so there is no trained network in it.")
    dataset = data.load(config.dataset, data_dir=data_dir or config.data_dir)
    recorded = run.data_digest
    if recorded not in (None, dataset.digest):
        raise UsageError(
            f"{shown} was trained on other data than --dataset={config.dataset} is here: its "
            f"digest was {plain_text(recorded)}, and is {dataset.digest}."
        )
    plan = make_plan(config, dataset, platform)
    like = jax.jit(make_init(plan.program))(jax.random.key(0))
    checkpoints = Checkpoints(run.path / "checkpoints", config.keep, read_only=True)
    with contextlib.closing(checkpoints):
        restored = checkpoints.restore(like, say)
    if restored is None:
        raise UsageError(f"{shown} has no checkpoint yet, so there is no trained network in it.")
    state, progress = restored
    params, batch_stats = jax.tree.map(
        np.asarray, (plan.program.evaluation_params(state), state.batch_stats)
    )
    return Trained(run, config, dataset, plan.program.model, params, batch_stats, progress.update)


def _named_optimizer(config: RunConfig) -> str:
    """What a config names as the optimizer, or as the one that it is around."""
    arguments = optimizers.parse_args(config.optimizer_args)
    return config.optimizer if ":" in config.optimizer else arguments.get("base", config.optimizer)


def read_initial(
    config: RunConfig, dataset: Dataset, model: Model, platform: str, say: Callable
) -> Initial:
    """What a run with `--init_from` begins with.

    Args:
        config: its settings.
        dataset: its data.
        model: its network.
        platform: `cpu` or `gpu`.
        say: told what was and what was not taken over.

    Returns:
        The layers that fit, and for the records what their training took.

    Raises:
        UsageError: the folder holds no trained network, one of another family, or no layer fits.
    """
    assert config.init_from is not None
    folder = config.init_from if config.source_setup is None else _find_source(config)
    found = load_trained(folder, platform=platform, optimizer=_named_optimizer(config), say=say)
    if found.model.family != model.family:
        raise UsageError(
            f"--init_from={plain_text(config.init_from)} is a {found.model.family}, and --model is "
            f"of the family {model.family}.\nAllowed: a run of the same family."
        )
    summary = found.run.summary or {}
    facts = {
        "run": found.run.name,
        "id": found.config.id,
        "update": found.update,
        "training_j": (summary.get("energy_j") or {}).get("total"),
        "provenance": summary.get("provenance"),
    }
    initial = take_over(
        model,
        found.params,
        found.batch_stats,
        facts,
        new_head=found.dataset.facts.vocabulary != dataset.facts.vocabulary,
    )
    say(initial.sentence())
    return initial


def _find_source(config: RunConfig) -> Path:
    """The folder of the completed run that `--init_from=setup:ID` means.

    Raises:
        UsageError: there is none below --out.
    """
    if os.path.isdir(config.out):
        for run in find_runs(config.out):
            if run.state != COMPLETED or (run.config or {}).get("seed") != config.seed:
                continue
            try:
                source = RunConfig.from_json(run.config or {})
            except (UsageError, TypeError):  # of another version
                continue
            if source.setup_id == config.source_setup and source.id == (run.config or {})["id"]:
                return run.path
    raise UsageError(
        f"--init_from={plain_text(config.init_from)}: below --out={plain_text(config.out)} no "
        f"completed run of seed {config.seed} has settings with that id at seed 0.\n"
        "Allowed: the folder of a run, or the id of settings that were run there with this seed."
    )
