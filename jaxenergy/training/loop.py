"""The training loop: keeps the device busy, closes a window every second or so, evaluates, saves.

One call is dispatched before the loss of the one before it is fetched, so the device never waits
for the host inside a window. The loop stands still, fenced, only where a window ends. It decides
nothing by the clock that changes a result: a call's length depends on the plan alone.
"""

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any, Protocol

import jax

from jaxenergy.energy import Ledger, updates_per_window
from jaxenergy.records import RunFolder
from jaxenergy.training.checkpoint import Checkpoints, Progress
from jaxenergy.training.control import ReturnEvaluation
from jaxenergy.training.plan import Timetable
from jaxenergy.training.programs import Evaluation
from jaxenergy.training.steps import CallMetrics

State = Any  # a train state, whichever the programs take

# A kill loses the window it falls in, so none is too long; a run of days should not leave millions
# of them, so none is too short. The first one tells how many updates the others take.
_MAX_WINDOW_S = 4.0
_MIN_WINDOW_S = 1.0
_FIRST_WINDOW_S = 0.25
# A short training has shorter ones, so that there are enough for an interval.
_WINDOWS_WANTED = 50


class Programs(Protocol):
    """The compiled programs of a run, as far as the loop calls them."""

    @property
    def fixed_iterations(self) -> int | None:
        """Iterations of each update; None where calls tell them."""

    def call_length(self, update: int) -> int:
        """Updates of the call that begins at `update`; a function of the config alone."""
        ...

    def train(self, state: State, update: int, updates: int) -> tuple[State, CallMetrics]:
        """Dispatches a call of so many updates that begins after `update`; donates the state."""
        ...

    def evaluation(
        self, state: State, split: str, stop_requested: Callable[[], bool]
    ) -> Evaluation | ReturnEvaluation | None:
        """Evaluates a split and waits for it; None where a stop was asked for."""


@dataclasses.dataclass(frozen=True)
class Account:
    """The counted joules of a run so far, as a display and `metrics.jsonl` show them.

    Attributes:
        ledger: of this process.
        domains: the domains that are added.
        provenance: the weakest among them, as in the summary.
        earlier_j: what earlier attempts at the run took; None where that is not known.
    """

    ledger: Ledger
    domains: tuple[str, ...]
    provenance: str
    earlier_j: float | None = 0.0

    def energy_j(self) -> float | str:
        """Joules of all attempts as far as the counters have told, or why they are not known."""
        if not self.domains:
            return "no domain was counted"
        if self.earlier_j is None:
            return "what an earlier attempt took is not known"
        by_domain, total_j = self.ledger.energy_so_far_j(), self.earlier_j
        for domain in self.domains:
            told = by_domain[domain]
            if isinstance(told, str):
                return told
            total_j += told
        return total_j

    def power_w(self) -> float | None:
        """Mean power over about the last second; None at first and where a counter tells none."""
        by_domain = self.ledger.power_now_w()
        if not self.domains or not all(domain in by_domain for domain in self.domains):
            return None
        return sum(by_domain[domain] for domain in self.domains)


class Observer(Protocol):
    """Who is told how the training goes, e.g. a progress bar; called between compiled calls."""

    def say(self, text: str) -> None:
        """A sentence for the user."""

    def start(self, update: int, total_updates: int) -> None:
        """Training begins, or goes on, after `update` updates."""

    def advance(self, update: int, loss: float, account: Account) -> None:
        """The losses of the first `update` updates have arrived, the last of them `loss`."""

    def evaluated(self, metrics: dict[str, Any]) -> None:
        """An evaluation is done; `metrics` is its line of `metrics.jsonl`."""

    def end(self) -> None:
        """Training has ended, in whatever way."""


@dataclasses.dataclass
class Outcome:
    """How a training ended.

    Attributes:
        status: `completed`, `target_reached`, `preempted` or `failed`.
        state: the train state at the end.
        update: updates made.
        why: for `failed`, the reason.
    """

    status: str
    state: State
    update: int
    why: str | None = None


@dataclasses.dataclass
class Loop:
    """One process's training of one run.

    Attributes:
        plan: what is run.
        programs: the compiled programs.
        ledger: where energy is attributed; no phase is open between the methods' calls.
        account: the joules so far.
        checkpoints: where states are saved.
        folder: where evaluations are recorded.
        stop_requested: asked between calls.
        observer: told how it goes.
        tick_s: the longest tick of the counters, which decides how long a window must be.
    """

    plan: Timetable
    programs: Programs
    ledger: Ledger
    account: Account
    checkpoints: Checkpoints
    folder: RunFolder
    stop_requested: Callable[[], bool]
    observer: Observer
    tick_s: float

    def run(self, state: State, progress: Progress) -> Outcome:
        """Trains to the plan's end, its target, a failure or a stop.

        Args:
            state: the train state after `progress.update` updates; donated.
            progress: what had happened besides by then.

        Returns:
            How it ended, with the final state; every end but `failed` is saved.
        """
        self.observer.start(progress.update, self.plan.total_updates)
        self._last_save_s = time.monotonic()
        self._updates_per_window: int | None = None
        try:
            return self._run(state, progress)
        finally:
            self.observer.end()

    def _run(self, state: State, progress: Progress) -> Outcome:
        """Alternates stretches of training with what is due between them."""
        plan, update = self.plan, progress.update
        while True:
            if self.stop_requested() and update < plan.total_updates:
                return self._end("preempted", state, update, progress)
            if plan.evaluates_at(update) and update > progress.evaluated_at:
                evaluation = self.evaluate(state, update, "validation")
                if evaluation is None:
                    return self._end("preempted", state, update, progress)
                if not evaluation.is_finite:
                    why = f"the network's output is not finite after update {update}"
                    return Outcome("failed", state, update, why)
                self._record(update, evaluation, progress)
            if self._target_is_reached(progress):
                return self._end("target_reached", state, update, progress)
            if update == plan.total_updates:
                return self._end("completed", state, update, progress)
            if self._save_is_due(update):
                self._save(state, update, progress)
            state, update, why = self._stretch(state, update, progress)
            if why is not None:
                return Outcome("failed", state, update, why)

    def evaluate(
        self, state: State, update: int, split: str
    ) -> Evaluation | ReturnEvaluation | None:
        """How well a split is predicted, as an `eval` phase; None where a stop was asked for.

        Args:
            state: the train state after `update` updates.
            update: its place in the training, by which an evaluation that is redone counts as lost.
            split: `validation` or `test`.
        """
        with self.ledger.phase("eval", first_update=update) as phase:
            evaluation = self.programs.evaluation(state, split, self.stop_requested)
            if evaluation is None:  # it is made anew next time, by which this one counts as lost
                phase.cut(state, first_update=update, steady=False)
            else:
                phase.fence(state)
        return evaluation

    def _stretch(
        self, state: State, update: int, progress: Progress
    ) -> tuple[State, int, str | None]:
        """Trains until there is something else to do, in windows of equal numbers of updates.

        Returns:
            The state, the updates made, and the reason to give up, if there is one.
        """
        boundary = self.plan.next_boundary(update)
        window = _Window(update, self.checkpoints.saving)
        pending: tuple[CallMetrics, int] | None = None
        why = None
        with self.ledger.phase("train") as phase:
            leaving = False
            while update < boundary and not leaving:
                length = self.programs.call_length(update)
                state, metrics = self.programs.train(state, update, length)
                update += length
                window.add(metrics)
                if pending is not None:
                    why = self._settle(*pending, progress)
                pending = (metrics, length)
                leaving = why is not None or self.stop_requested() or self._seconds_are_up()
                if leaving or update >= boundary or self._window_is_full(window, update):
                    counts = window.counts(self.programs, update, self.plan.config.batch_size)
                    phase.cut(state, steady=window.steady, **counts)
                    self._learn_window_length(window, update)
                    window = _Window(update, self.checkpoints.saving)
        if why is None and pending is not None:
            why = self._settle(*pending, progress)
        return state, update, why

    def _window_is_full(self, window: "_Window", update: int) -> bool:
        if window.age_s() >= (_MAX_WINDOW_S if self._updates_per_window else _FIRST_WINDOW_S):
            return True
        return update - window.first_update >= (self._updates_per_window or math.inf)

    def _learn_window_length(self, window: "_Window", update: int) -> None:
        """Decides the updates of a window by how long they took, once that is known.

        This cuts the record and not the computation: it changes no result.
        """
        age_s = window.age_s()
        if self._updates_per_window is None and age_s >= _FIRST_WINDOW_S:
            update_s = age_s / (update - window.first_update)
            left_s = update_s * (self.plan.total_updates - update)
            self._updates_per_window = updates_per_window(
                update_s,
                self.tick_s,
                max_seconds=_MAX_WINDOW_S,
                min_seconds=min(_MIN_WINDOW_S, left_s / _WINDOWS_WANTED),
            )

    def _settle(self, metrics: CallMetrics, updates: int, progress: Progress) -> str | None:
        """Takes the loss of a dispatched call; gives the reason to stop if it is not finite."""
        value = float(metrics.loss)
        if not math.isfinite(value):
            return f"the training loss became {value} within update {progress.update + updates}"
        progress.add_loss(value, updates)
        self.observer.advance(progress.update, value, self.account)
        return None

    def _record(
        self, update: int, evaluation: Evaluation | ReturnEvaluation, progress: Progress
    ) -> None:
        found = evaluation_record(self.plan, evaluation, "validation")
        energy_j = self.account.energy_j()
        why = {}
        if isinstance(energy_j, str):
            energy_j, why["energy_j"] = None, energy_j
        if found["validation_accuracy"] is None:
            why["validation_accuracy"] = "a control task has a return and no accuracy"
        metrics = {
            "update": update,
            "train_loss": progress.take_loss(),
            **found,
            "energy_j": energy_j,
            "provenance": self.account.provenance,
            **({"why": why} if why else {}),
        }
        progress.evaluated_at = update
        progress.evaluation = found
        self.folder.append_metrics(metrics)
        self.observer.evaluated(metrics)

    def _target_is_reached(self, progress: Progress) -> bool:
        target = self.plan.config.target
        return target is not None and target.is_reached(progress.evaluation)

    def _seconds_are_up(self) -> bool:
        seconds = self.plan.checkpoint_seconds
        return seconds is not None and time.monotonic() - self._last_save_s >= seconds

    def _save_is_due(self, update: int) -> bool:
        every = self.plan.checkpoint_updates
        return self._seconds_are_up() or (every is not None and update > 0 and update % every == 0)

    def _save(self, state: State, update: int, progress: Progress) -> None:
        with self.ledger.phase("checkpoint"):
            progress.account = self.folder.account()
            self.folder.sync()  # after a power cut, no checkpoint is ahead of its records
            self.checkpoints.save(update, state, progress)
        self._last_save_s = time.monotonic()

    def _end(self, status: str, state: State, update: int, progress: Progress) -> Outcome:
        self._save(state, update, progress)
        return Outcome(status, state, update)


def evaluation_record(
    plan: Timetable, evaluation: Evaluation | ReturnEvaluation, split: str
) -> dict[str, Any]:
    """An evaluation as the records have it: accuracy, loss and, for text, bits per character.

    Of a control task it is the return, and the accuracy is None. Where there are several tasks
    accuracy and loss are means, and each task's own stand beside.

    Args:
        plan: what is run.
        evaluation: of that split.
        split: `validation` or `test`, with which the keys begin.
    """
    if isinstance(evaluation, ReturnEvaluation):
        return {f"{split}_accuracy": None, f"{split}_return": evaluation.mean_return}
    record: dict[str, Any] = {
        f"{split}_accuracy": evaluation.accuracy,
        f"{split}_loss": evaluation.loss,
    }
    if evaluation.by_task:
        tasks = evaluation.by_task.items()
        record[f"{split}_accuracy_by_task"] = {name: one.accuracy for name, one in tasks}
        record[f"{split}_loss_by_task"] = {name: one.loss for name, one in tasks}
    if plan.tokens_per_example is not None:
        record[f"{split}_bits_per_character"] = evaluation.bits
    return record


class _Window:
    """Counts the updates of one window.

    Args:
        first_update: updates made before it.
        saving: whether a checkpoint is being written in the background as it begins.
    """

    def __init__(self, first_update: int, saving: bool):
        self.first_update = first_update
        self._start_s = time.monotonic()
        self._iterations: list[jax.Array] = []
        # A save in the background draws power of its own; otherwise the ledger's rule decides.
        self.steady = False if saving else None

    def age_s(self) -> float:
        return time.monotonic() - self._start_s

    def add(self, metrics: CallMetrics) -> None:
        """Keeps what a call of this window will tell of its iterations."""
        if metrics.iterations is not None:
            self._iterations.append(metrics.iterations)

    def counts(self, programs: Programs, update: int, batch_size: int) -> dict[str, int]:
        """The counts of a line of `windows.jsonl`, with `update` updates made in all."""
        updates = update - self.first_update
        fixed = programs.fixed_iterations
        return {
            "first_update": self.first_update,
            "updates": updates,
            "iterations": sum(map(int, self._iterations)) if fixed is None else updates * fixed,
            "examples": updates * batch_size,
        }
