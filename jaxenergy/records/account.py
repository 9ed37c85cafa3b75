"""The energy ledger of a run so far, small enough to lie in a checkpoint.

A checkpoint and the lines that were written before it belong together: a training that goes on from
a checkpoint whose lines are gone has lost part of its account. So each checkpoint holds what the
lines said by then, and it is compared when the run goes on.
"""

import copy
from collections.abc import Iterable, Mapping
from typing import Any


class Account:
    """Adds up the lines of `windows.jsonl`, in the order of the file.

    Args:
        lines: those that are there already, events among them.

    Attributes:
        lines: how many there were.
    """

    def __init__(self, lines: Iterable[Mapping[str, Any]] = ()):
        self.lines = 0
        self._energy_j: dict[str, dict[str, float | None]] = {}
        for line in lines:
            self.add(line)

    def add(self, line: Mapping[str, Any]) -> None:
        """Adds a line; an event has no joules."""
        self.lines += 1
        if "phase" not in line:
            return
        by_domain = self._energy_j.setdefault(line["phase"], {})
        for domain, joules in line["energy_j"].items():
            before = by_domain.get(domain, 0.0)
            by_domain[domain] = None if before is None or joules is None else before + joules

    def to_json(self) -> dict[str, Any]:
        """The account as plain values.

        Returns:
            `lines`, and `energy_j` by phase and domain, null where a line of it is. The same lines
            give the same joules to the last bit.
        """
        return {"lines": self.lines, "energy_j": copy.deepcopy(self._energy_j)}
