"""Under what conditions a run was measured: runs of different ones are never mixed silently.

Two runs with one id computed the same thing. Their joules and seconds can stand in one table only
if they come from the same kind of device, by counters of the same provenance, under the same
protocol and the same version of XLA.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxenergy.records import RecordError, Run


@dataclasses.dataclass(frozen=True)
class Conditions:
    """What two runs must have in common to be compared.

    Attributes:
        protocol: the number that is raised when the same flags mean something else.
        device: the model of what computed; with the CPU's, where its energy is counted.
        provenance: `measured`, `simulated`, `estimated` or `none`.
        counted_domains: the domains that totals are made of.
        jaxlib: the version of the compiler.
    """

    protocol: int
    device: str
    provenance: str
    counted_domains: tuple[str, ...]
    jaxlib: str

    def __str__(self) -> str:
        domains = ", ".join(self.counted_domains) or "no domain"
        return (
            f"{self.device}, {self.provenance} ({domains}), protocol {self.protocol}, "
            f"jaxlib {self.jaxlib}"
        )

    def to_json(self) -> dict[str, Any]:
        """The same as JSON has it."""
        return {**dataclasses.asdict(self), "counted_domains": list(self.counted_domains)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Conditions":
        """What `to_json` gave."""
        return cls(**{**values, "counted_domains": tuple(values["counted_domains"])})


def conditions_of(
    environment: Mapping[str, Any], protocol: int, provenance: str, counted_domains: Any
) -> Conditions:
    """The conditions that an `environment.json` describes.

    Args:
        environment: as `records.environment.read_environment` gives it.
        protocol: of the run.
        provenance: of its energy.
        counted_domains: its domains.

    Returns:
        The conditions.
    """
    (device,) = environment["devices"]
    cpu = environment["cpu"]
    computed_on = device["name"]
    host = f"{cpu['model']}, {cpu['usable_cores']} cores"
    if device["platform"] == "cpu":
        computed_on = host
    elif any(not domain.startswith("gpu") for domain in counted_domains):
        computed_on = f"{computed_on} with {host}"
    return Conditions(
        protocol=protocol,
        device=computed_on,
        provenance=provenance,
        counted_domains=tuple(counted_domains),
        jaxlib=environment["versions"].get("jaxlib", "unknown"),
    )


def read_conditions(run: Run) -> Conditions | None:
    """The conditions of a run's folder; None where they are not (or not yet) written there."""
    try:
        environment, config = run.environment, run.config
        if environment is None or config is None:
            return None
        resolved = config["resolved"]
        return conditions_of(
            environment, config["protocol"], resolved["provenance"], resolved["counted_domains"]
        )
    except (RecordError, KeyError, TypeError, ValueError):  # somebody else's idea of these files
        return None
