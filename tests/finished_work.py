"""A counter of finished work: joules that are known exactly, whatever the machine's speed.

Each computation that is watched deposits its joules when its output is ready. So a window has the
joules of its own calls, to the last one, exactly if none runs on beyond its end.
"""

from typing import Any

from jaxenergy.meters import Counter, Domain, Meter, Meters

# Added at each reading: a counter that does not move for a second counts as frozen.
HEARTBEAT_J = 1e-12


class FinishedWork(Counter):
    """Joules of the watched outputs that are ready."""

    def __init__(self):
        self.domain = Domain("work", "simulated", "outputs that are ready", 0.0, HEARTBEAT_J)
        self.reads = 0
        self._pending: list[tuple[Any, float]] = []
        self._energy_j = 0.0

    def watch(self, output: Any, energy_j: float = 1.0) -> Any:
        """Deposits joules when an array is ready; gives it back."""
        self._pending.append((output, energy_j))
        return output

    def read_j(self) -> float:
        self.reads += 1
        self._energy_j += HEARTBEAT_J
        ready = [output.is_ready() for output, _ in self._pending]
        self._energy_j += sum(
            joules for (_, joules), done in zip(self._pending, ready, strict=True) if done
        )
        self._pending = [
            pending for pending, done in zip(self._pending, ready, strict=True) if not done
        ]
        return self._energy_j

    def meters(self) -> Meters:
        meter = _FinishedWorkMeter()
        meter.counters = (self,)
        return Meters((meter,))


class _FinishedWorkMeter(Meter):
    name = "finished work"
