"""What a person sees while a run trains: a bar on a terminal, plain lines elsewhere, or nothing.

Drawing costs energy on the machine that is being measured, so nothing is drawn by a thread: the bar
is redrawn at most once a second, from the loop, between two compiled calls.
"""

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from jaxenergy.training.loop import Account
from jaxenergy.units import format_accuracy, format_duration_s, format_si

_REDRAW_S = 1.0


class SilentObserver:
    """Tells nobody; for `--quiet` and for use as a library."""

    def say(self, text: str) -> None:
        """Drops the sentence."""

    def start(self, update: int, total_updates: int) -> None:
        """Nothing to show."""

    def advance(self, update: int, loss: float, account: Account) -> None:
        """Nothing to show."""

    def evaluated(self, metrics: dict[str, Any]) -> None:
        """Nothing to show."""

    def end(self) -> None:
        """Nothing to close."""


class ConsoleObserver(SilentObserver):
    """Writes to a console: a live bar where it is a terminal, a line per evaluation elsewhere.

    Args:
        console: where to write.
    """

    def __init__(self, console: Console):
        self.console = console
        self._bar: Progress | None = None
        self._found = ""  # by the last evaluation
        self._total_updates = 0

    def say(self, text: str) -> None:
        """Prints a sentence, above the bar where there is one."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def start(self, update: int, total_updates: int) -> None:
        """Opens the bar."""
        self._total_updates = total_updates
        self._first_update = self._update = update
        self._start_s = time.monotonic()
        self._drawn_s = self._start_s
        if self.console.is_terminal:
            bar = Progress(
                BarColumn(bar_width=5),
                TextColumn("{task.completed}/{task.total}{task.fields[text]}"),
                console=self.console,
                auto_refresh=False,
            )
            self._task = bar.add_task("", total=total_updates, completed=update, text="")
            bar.start()
            self.console.show_cursor(True)  # a process that is killed leaves it as it is
            self._bar = bar

    def advance(self, update: int, loss: float, account: Account) -> None:
        """Redraws the bar, at most once a second."""
        now_s = time.monotonic()
        self._update = update
        if self._bar is None or now_s - self._drawn_s < _REDRAW_S:
            return
        self._drawn_s = now_s
        rate = (update - self._first_update) / (now_s - self._start_s)
        left_s = (self._total_updates - update) / rate if rate else None
        power_w = account.power_w()
        parts = [
            f"loss {loss:.4f}",
            self._found,
            f"{rate:,.0f}/s" if rate >= 100 else f"{rate:.3g}/s",
            "" if power_w is None else format_si(power_w, "W"),
            _energy_so_far(account.energy_j(), account.provenance),
            f"{format_duration_s(left_s)} left",
        ]
        self._bar.update(self._task, completed=update, text="".join(f"  {p}" for p in parts if p))
        self._bar.refresh()

    def evaluated(self, metrics: dict[str, Any]) -> None:
        """Remembers what was found for the bar, or prints the evaluation as a line."""
        of_task = metrics.get("validation_return")
        if of_task is None:
            accuracy = metrics["validation_accuracy"]
            self._found = f"{accuracy:.1%}"
            by_task = metrics.get("validation_accuracy_by_task")
            told = f"validation accuracy {format_accuracy(accuracy, by_task)}"
        else:
            self._found = f"return {of_task:.1f}"
            told = f"validation return {of_task:.2f}"
        if self._bar is not None:
            return
        loss = metrics["train_loss"]
        energy = _energy_so_far(metrics["energy_j"], metrics["provenance"])
        self.say(
            f"update {metrics['update']:>{len(str(self._total_updates))}}/{self._total_updates}"
            f"  loss {'n/a' if loss is None else format(loss, '.4f')}"
            f"  {told}" + (f"  {energy}" if energy else "")
        )

    def end(self) -> None:
        """Closes the bar, leaving its last state on the screen."""
        if self._bar is not None:
            self._bar.update(self._task, completed=self._update, text="")
            self._bar.refresh()
            self._bar.stop()
            self._bar = None


def _energy_so_far(energy_j: float | str | None, provenance: str) -> str:
    """Joules that say so where they were not measured; nothing where they are not known."""
    if energy_j is None or isinstance(energy_j, str):
        return ""
    joules = format_si(energy_j, "J")
    return joules if provenance == "measured" else f"{joules} {provenance}"
