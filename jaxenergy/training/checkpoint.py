"""Checkpoints by Orbax: the whole train state, so that a resumed run goes on bit for bit.

Only what cannot be recomputed is kept. The position in the data order is part of the state, the
orders themselves follow from the seed. Of the energy ledger, whose lines lie in the run's own
files, it keeps what they added up to, so that no run goes on with an account that lost some.
"""

import asyncio
import contextlib
import dataclasses
import json
import logging
import pathlib
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from orbax import checkpoint as ocp

from jaxenergy.errors import RunError
from jaxenergy.records.files import RecordError, plain_text, read_document
from jaxenergy.training.ppo import ControlState
from jaxenergy.training.steps import TrainState

State = TypeVar("State", TrainState, ControlState)

_CHECKSUM = "crc32"  # beside the progress
# Seconds that writes and reads which were begun beside one that failed are waited for.
_PATIENCE_S = 5.0


@dataclasses.dataclass
class Progress:
    """What the loop remembers on the host besides the train state; saved with each checkpoint.

    Attributes:
        update: updates whose loss has arrived.
        evaluated_at: the update of the last evaluation.
        evaluation: what it found, as `metrics.jsonl` has it; empty before the first.
        loss_sum: the sum of the losses of the updates since then.
        loss_updates: how many those are.
        account: the energy ledger by then, as `RunFolder.account` gives it; empty where none is
            kept.
    """

    update: int = 0
    evaluated_at: int = 0
    evaluation: dict[str, Any] = dataclasses.field(default_factory=dict)
    loss_sum: float = 0.0
    loss_updates: int = 0
    account: dict[str, Any] = dataclasses.field(default_factory=dict)

    def add_loss(self, loss: float, updates: int) -> None:
        """Adds the mean loss of a call of so many updates."""
        self.update += updates
        self.loss_sum += loss * updates
        self.loss_updates += updates

    def take_loss(self) -> float | None:
        """The mean loss since the last evaluation, starting anew; None where there was none."""
        mean = self.loss_sum / self.loss_updates if self.loss_updates else None
        self.loss_sum, self.loss_updates = 0.0, 0
        return mean


class UnusableCheckpoints(RunError):
    """There are checkpoints, and none can be gone on from; they are left as they are.

    Args:
        faults: the update of each, newest first, and what is wrong with it.
    """

    def __init__(self, faults: Sequence[tuple[int, str]]):
        newest, fault = faults[0]
        super().__init__(
            f"none of the {len(faults)} checkpoints can be used; the newest, {newest}: {fault}\n"
            "They are left as they are. To start anew: --overwrite moves the folder aside."
        )


def refuse_unusable(
    folder: pathlib.Path, fault_of: Callable[[Mapping[str, Any]], str | None]
) -> None:
    """Refuses checkpoints none of which can be gone on from, as far as a look beside states tells.

    It takes no device and alters nothing; whether a state is whole shows only in `restore`.

    Args:
        folder: where they lie; it need not exist.
        fault_of: why a checkpoint with such an energy account is of no use, or None.

    Raises:
        UnusableCheckpoints: there are some, and none is of use.
    """
    if folder.is_symlink() or not folder.is_dir():
        return
    faults = []
    steps = [int(p.name) for p in folder.iterdir() if p.name.isascii() and p.name.isdigit()]
    for step in sorted(steps, reverse=True):
        fault = _fault_beside_state(folder / str(step), fault_of)
        if fault is None:
            return
        faults.append((step, fault))
    if faults:
        raise UnusableCheckpoints(faults)


def _fault_beside_state(
    checkpoint: pathlib.Path, fault_of: Callable[[Mapping[str, Any]], str | None]
) -> str | None:
    """What is wrong with a checkpoint, as far as its progress tells; None where nothing is."""
    if not (checkpoint / "state").is_dir():
        return "its state is missing"
    try:
        progress = read_document(checkpoint / "progress" / "metadata")
    except RecordError as error:
        return f"its progress: {error}"
    if progress is None:
        return "its progress is missing"
    account = progress.get("account")
    return fault_of(account) if isinstance(account, dict) else None


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: where they lie; created by the first save.
        keep: how many are kept, newest first.
        read_only: leave the folder as it is: another process may be at work on it.
    """

    def __init__(self, folder: pathlib.Path, keep: int, *, read_only: bool = False):
        # Orbax logs each save, and pages of tracebacks for each exception that it raises as well;
        # a run says what matters itself.
        for name in ("absl", "asyncio"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self._keep = keep
        self._read_only = read_only
        self._closed = False
        self._asyncio_policy = asyncio.get_event_loop_policy()
        asyncio.set_event_loop_policy(_PatientPolicy())
        self._manager = ocp.CheckpointManager(
            folder.absolute(),
            options=ocp.CheckpointManagerOptions(read_only=True)
            if read_only
            else ocp.CheckpointManagerOptions(
                max_to_keep=keep,
                create=True,
                enable_async_checkpointing=True,
                cleanup_tmp_directories=True,  # what a process killed amid a save left
            ),
        )

    def save(self, update: int, state: State, progress: Progress) -> None:
        """Starts to save the state after `update` updates; returns once it may be donated.

        Raises:
            RunError: it, or the one before it, could not be saved.
        """
        if update == self._manager.latest_step():
            return
        saved, remembered = _with_raw_key(state), dataclasses.asdict(progress)
        with _as_run_error():
            self._manager.save(
                update,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(saved),
                    progress=ocp.args.JsonSave(
                        {**remembered, _CHECKSUM: _checksum(saved, remembered)}
                    ),
                ),
            )

    def restore(
        self,
        like: State,
        say: Callable[[str], None],
        fault_of: Callable[[Progress], str | None] = lambda progress: None,
    ) -> tuple[State, Progress] | None:
        """The newest checkpoint that can be gone on from, or None where there is none.

        Args:
            like: a state of the same structure, for shapes, dtypes and placement.
            say: told about each checkpoint that is of no use and is moved aside (not moved where
                this is read-only).
            fault_of: why a checkpoint that can be read is of no use, or None.

        Returns:
            The state, and the progress whose `update` is the number of updates made.

        Raises:
            UnusableCheckpoints: there are some, and none is of use; they are left as they are.
        """
        template = jax.tree.map(ocp.utils.to_shape_dtype_struct, _with_raw_key(like))
        damaged: list[tuple[int, str]] = []
        for step in sorted(self._manager.all_steps(), reverse=True):
            restored = self._read(step, template, fault_of)
            if isinstance(restored, str):
                damaged.append((step, restored))
                continue
            # Only now: where none can be read, the cause may lie elsewhere (memory, versions).
            for newer, reason in damaged:
                kept = (
                    "" if self._read_only else f"it is kept as {self._set_aside(newer).name}, and "
                )
                say(f"checkpoint {newer} cannot be used ({reason}); {kept}{step} is taken")
            if self._read_only:
                return restored
            # A process killed between a save and the removal of the oldest left one too many.
            for surplus in sorted(self._manager.all_steps())[: -self._keep]:
                self._manager.delete(surplus)
            return restored
        if damaged:
            raise UnusableCheckpoints(damaged)
        return None

    def _read(
        self, step: int, template: State, fault_of: Callable[[Progress], str | None]
    ) -> tuple[State, Progress] | str:
        """A checkpoint's state and progress, or why they cannot be had."""
        try:
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(template), progress=ocp.args.JsonRestore()
                ),
            )
            state, progress = type(template)(*restored.state), restored.progress
            progress = _checked(state, progress)
            if fault := fault_of(progress):
                return fault
            return state._replace(key=jax.random.wrap_key_data(state.key)), progress
        except Exception as error:  # Orbax raises many kinds for a damaged file
            return _shortly(error)

    def _set_aside(self, step: int) -> pathlib.Path:
        """Renames a damaged checkpoint, so that its number is free for the redone update."""
        damaged = pathlib.Path(self._manager.directory) / str(step)
        aside = damaged.with_name(f"damaged-{step}-{time.time_ns()}")
        damaged.rename(aside)
        self._manager.reload()
        return aside

    @property
    def saving(self) -> bool:
        """Whether a save is still going on in the background."""
        return self._manager.is_saving_in_progress()

    def wait(self) -> None:
        """Waits for the last save to reach the disk."""
        with _as_run_error():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for the last save to reach the disk and gives back Orbax's threads, once."""
        if self._closed:
            return
        self._closed = True
        with _as_run_error():
            try:
                self._manager.wait_until_finished()
            finally:
                self._manager.close()
                asyncio.set_event_loop_policy(self._asyncio_policy)


class _PatientLoop(asyncio.SelectorEventLoop):
    """An event loop that is closed only when what was begun in it has ended.

    Where one array cannot be written or read, Orbax closes its loop at once, with those of the
    others going on: files would appear in a folder that was given up, and each of them would report
    to a loop that is gone, by a traceback of tensorstore's threads ("Event loop is closed").
    """

    def close(self) -> None:
        """Waits, within bounds, for the tasks that are left; then closes."""
        try:
            if not self.is_closed() and (left := asyncio.all_tasks(self)):
                self.run_until_complete(asyncio.wait(left, timeout=_PATIENCE_S))
        finally:
            super().close()


class _PatientPolicy(asyncio.DefaultEventLoopPolicy):
    """Has Orbax, which makes a loop for each of its steps and threads, make patient ones."""

    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        """A new loop; nobody's current one."""
        return _PatientLoop()


@contextlib.contextmanager
def _as_run_error() -> Iterator[None]:
    """Orbax reports a full disk or a folder that is gone by many kinds of exception.

    None of them is the training's fault: the run stays unfinished, and goes on from the checkpoint
    before.
    """
    try:
        yield
    except Exception as error:
        raise RunError(
            f"a checkpoint could not be saved: {_shortly(error)}\n"
            "The same command goes on from the checkpoint before it."
        ) from error


def _shortly(error: BaseException) -> str:
    """An exception of Orbax in one line; its own may fill pages, with the cause at the end."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(error).partition("\n")[0].partition(" [")[0]
    return f"{type(error).__name__}: {plain_text(text if len(text) <= 200 else '…' + text[-200:])}"


def _checksum(state: State, remembered: Mapping[str, Any]) -> int:
    """The CRC-32 of all that a checkpoint holds: Orbax gives arrays with flipped bits as they are.

    Args:
        state: with its key as plain numbers.
        remembered: the fields of the progress.
    """
    checksum = zlib.crc32(json.dumps(remembered).encode())
    for leaf in jax.tree.leaves(state):
        checksum = zlib.crc32(np.asarray(leaf).reshape(-1).view(np.uint8).data, checksum)
    return checksum


def _checked(state: State, saved: Mapping[str, Any]) -> Progress:
    """The progress of a restored checkpoint whose contents are what was saved."""
    remembered = {name: value for name, value in saved.items() if name != _CHECKSUM}
    known = {field.name for field in dataclasses.fields(Progress)}
    progress = Progress(**{name: value for name, value in remembered.items() if name in known})
    if saved.get(_CHECKSUM) != _checksum(state, remembered):
        raise ValueError("its contents are not those that were saved")
    return progress


def _with_raw_key(state: State) -> State:
    """The state with its typed PRNG key as plain uint32, which Orbax stores as an array."""
    return state._replace(key=jax.random.key_data(state.key))
