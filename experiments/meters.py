"""Prints what this machine can meter: `python -m experiments.meters`.

Every domain with its provenance, tick and resolution; and for what cannot be metered, why, and
which file, permission or rule mends it.
"""

from absl import flags

from experiments.flags import launch

_POWERCAP_ROOT = flags.DEFINE_string(
    "powercap_root", "/sys/class/powercap", "Where the kernel's powercap tree (RAPL) is."
)


def run() -> None:
    """Surveys and prints."""
    from jaxenergy.meters.survey import survey

    print_survey(survey(_POWERCAP_ROOT.value))


def print_survey(found) -> None:
    """Prints a `jaxenergy.meters.survey.Survey`: a table, where each domain is read, what cannot.

    Args:
        found: the survey.
    """
    from rich.console import Console
    from rich.table import Table

    from jaxenergy.units import format_si

    # Wider than most terminals: a wrapped line can still be copied, a cut name cannot.
    console = Console(width=120, highlight=False, soft_wrap=True, markup=False)
    offered = [row for row in found.rows if row.domain is not None]
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("meter", "domain", "provenance", "tick", "resolution", "wraps at", "counted"):
        table.add_column(column, no_wrap=True)
    for row in offered:
        domain = row.domain
        table.add_row(
            row.meter,
            domain.name,
            domain.provenance,
            format_si(domain.tick_s, "s") if domain.tick_s else "none",
            format_si(domain.resolution_j, "J"),
            format_si(domain.range_j, "J") if domain.range_j else "never",
            "by auto" if row.used_by_auto else "yes" if domain.counted else "no",
        )
    console.print("What can be metered on this machine:\n")
    console.print(table)
    console.print()
    for row in offered:
        console.print(f"{row.meter} {row.domain.name}: {row.domain.source}")
        if row.why:
            console.print(f"    {row.why}")
    for row in found.rows:
        if row.domain is None:
            console.print(f"\n{row.meter} cannot be had here:\n{row.why}")
    if found.notes:
        console.print()
    for note in found.notes:
        console.print(f"Note: {note}")


def main() -> None:
    """Entry point of the driver."""
    launch(run)


if __name__ == "__main__":
    main()
