"""What this machine can meter, and for what it cannot, why and how to mend it."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path

from jaxenergy.meters import DEFAULT_POWERCAP_ROOT, METERS, open_meters
from jaxenergy.meters.base import CounterError, Device, Domain, Machine, MeterUnavailable


@dataclasses.dataclass(frozen=True)
class SurveyRow:
    """One domain that a meter offers, or one meter that cannot be had.

    Attributes:
        meter: the meter's name.
        domain: the domain; None where the meter cannot be had.
        reading_j: what its counter shows now; None where it cannot be read.
        used_by_auto: whether `--meters=auto` would count it.
        why: why it is not counted, not readable or not to be had, and how to mend that.
    """

    meter: str
    domain: Domain | None
    reading_j: float | None
    used_by_auto: bool
    why: str


@dataclasses.dataclass(frozen=True)
class Survey:
    """The rows, and the sentences that meters have for the user.

    Attributes:
        rows: by meter, in the order of the registry.
        notes: what `--meters=auto` would say, and then the other meters, where no row says it.
    """

    rows: tuple[SurveyRow, ...]
    notes: tuple[str, ...]


def survey(
    powercap_root: str | Path = DEFAULT_POWERCAP_ROOT, devices: Iterable[Device] | None = None
) -> Survey:
    """Tries every registered meter, each by itself.

    Args:
        powercap_root: where the kernel's powercap tree is.
        devices: the devices that compute; None for all that can be found.

    Returns:
        What each offers.

    Raises:
        UsageError: `powercap_root` is no folder.
    """
    devices = None if devices is None else tuple(devices)
    with open_meters("auto", devices, powercap_root=powercap_root) as chosen:
        used = {(meter.name, c.domain.name) for meter in chosen.meters for c in meter.counters}
        notes = list(chosen.notes)
    machine = Machine(devices, str(powercap_root))
    rows: list[SurveyRow] = []
    for name in METERS:
        try:
            meter = METERS[name](machine)
        except MeterUnavailable as error:
            rows.append(SurveyRow(name, None, None, False, str(error)))
            continue
        try:
            for counter in meter.counters:
                domain = counter.domain
                reading_j, why = None, domain.why_not_counted
                try:
                    reading_j = counter.read_j()
                except CounterError as error:
                    why = str(error)
                is_used = domain.counted and (name, domain.name) in used
                rows.append(SurveyRow(name, domain, reading_j, is_used, why))
            notes += [note for note in meter.notes if note not in notes]
        finally:
            meter.close()
    said = [row.why for row in rows if row.domain is None]
    notes = [note for note in notes if not any(why in note for why in said)]
    return Survey(tuple(rows), tuple(notes))
