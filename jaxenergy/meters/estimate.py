"""An estimate for machines without any energy counter: CPU time times stated watts.

It is a guess and says so: every joule is `estimated`. It is for trying things out, and for
comparing programs by the CPU time they take, not for knowing what they cost.
"""

from jaxenergy.meters.base import Counter, Domain, Machine, Meter
from jaxenergy.meters.cpu_time import ProcessTreeClock

# Between the 4.4 W per core of an AMD EPYC 7763 (280 W TDP, 64 cores) and the 10.6 W of a Ryzen 9
# 7950X (170 W, 16 cores); an Intel Xeon Platinum 8380 (270 W, 40 cores) has 6.8 W.
WATTS_PER_BUSY_CORE = 6.0


class EstimatedCounter(Counter):
    """Joules of this process and its children, estimated from their CPU time.

    Args:
        watts_per_busy_core: the power charged for a core while it is busy with us.
    """

    def __init__(self, watts_per_busy_core: float = WATTS_PER_BUSY_CORE):
        self._watts = watts_per_busy_core
        self._clock = ProcessTreeClock()
        self.domain = Domain(
            name="cpu:estimate",
            provenance="estimated",
            source=f"CPU time of this process tree times {watts_per_busy_core:g} W per busy core",
            tick_s=0.0,
            resolution_j=1e-6 * watts_per_busy_core,  # microseconds, from RUSAGE_CHILDREN
        )

    def read_j(self) -> float:
        """Estimated joules since the counter was made."""
        return self._clock.read_s() * self._watts


class EstimateMeter(Meter):
    """The `estimate` meter.

    Args:
        machine: not looked at; an estimate can be made anywhere.
    """

    name = "estimate"

    def __init__(self, machine: Machine | None = None):
        del machine
        self.counters = (EstimatedCounter(),)
        self.notes = (
            f"estimate: CPU time of this process and its children x {WATTS_PER_BUSY_CORE:g} W per "
            "busy core; no idle power, memory or GPU. Estimates like this err by 27-37 %.",
        )
