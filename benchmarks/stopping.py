"""What is left of an interval's 95 % when a measurement ends because it is narrow.

    python benchmarks/stopping.py               a minute or two

`measure` ends when it knows enough, and an interval that is chosen for being narrow holds the truth
less often than it says. Here windows are drawn at random and measured to +- 2 % by the rule of
`jaxenergy.energy.rounds` and by the rule that comes to mind first. `docs/measuring.md` quotes this.
"""

import dataclasses

import numpy as np

from jaxenergy.energy.rounds import Looks
from jaxenergy.energy.windows import first_steady
from jaxenergy.stats import Estimate, long_run_mean

REPETITIONS = 2000
MOST_WINDOWS = 800
TARGET = 0.02
SCATTERS = (0.02, 0.04, 0.08)  # of a window, relative to the mean
CORRELATIONS = (0.0, 0.6)  # from window to window


@dataclasses.dataclass
class EachRound:
    """Looks after every round from the tenth on, and believes the first narrow interval."""

    def are_enough(self, rounds, enough) -> bool:
        """As `Looks.are_enough`."""
        return rounds >= 10 and enough()


def make_windows(scatter: float, correlation: float, random: np.random.Generator) -> np.ndarray:
    """Joules per update, 1 in the long run, of a first-order autoregressive series."""
    steps = random.standard_normal(MOST_WINDOWS) * scatter
    steps[1:] *= np.sqrt(1 - correlation**2)
    for window in range(1, MOST_WINDOWS):
        steps[window] += correlation * steps[window - 1]
    return 1 + steps


def estimate(windows: np.ndarray) -> Estimate:
    """As a measurement's own."""
    return long_run_mean(list(windows[first_steady(list(windows)) :]))


def stop(looks, windows: np.ndarray) -> tuple[int, Estimate] | None:
    """How many windows a rule takes, and what it then knows; None where it does not end."""
    for count in range(1, MOST_WINDOWS + 1):
        found: list[Estimate] = []

        def enough(count=count, found=found) -> bool:
            found.append(estimate(windows[:count]))
            return found[0].half_width() <= TARGET * abs(found[0].value)

        if looks.are_enough(count, enough):
            return count, found[0]
    return None


def main() -> None:
    """Prints the table."""
    print("| rule | scatter | correlation | ends | windows | holds | error within 2 % |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name, make_looks in (("measure", Looks), ("each round", EachRound)):
        for correlation in CORRELATIONS:
            for scatter in SCATTERS:
                random = np.random.default_rng(1)
                ends = [
                    end
                    for _ in range(REPETITIONS)
                    if (end := stop(make_looks(), make_windows(scatter, correlation, random)))
                ]
                counts = [count for count, _ in ends]
                errors = [abs(found.value - 1) for _, found in ends]
                holds = [abs(found.value - 1) <= found.half_width() for _, found in ends]
                print(
                    f"| {name} | {scatter:.0%} | {correlation} | {len(ends) / REPETITIONS:.0%}"
                    f" | {np.mean(counts):.0f} | {np.mean(holds):.1%}"
                    f" | {np.mean(np.array(errors) <= TARGET):.1%} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
