"""What a summary says of idle: its power before and after, its drift, and the energy above it."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from jaxenergy.energy.windows import IdlePower, idle_power_w, net_energy_j
from jaxenergy.stats import Estimate


def idle_account(lines: Sequence[Mapping[str, Any]], domains: Sequence[str]) -> dict[str, Any]:
    """Idle power of each domain, and the energy of everything but idling above it.

    Args:
        lines: all lines of a run, in the order of time.
        domains: the domains that are added.

    Returns:
        `idle_w`: watts by domain; `idle`: by domain `before`, `after` and `drift`, each with `mean`
        and `ci95` in watts; `net_total` in joules and `net_total_ci95`. What is not known is None,
        and `why` says for what reason, by key.
    """
    working = [line for line in lines if line["phase"] != "idle"]
    account: dict[str, Any] = {"idle_w": {}, "idle": {}, "net_total": None, "net_total_ci95": None}
    why: dict[str, str] = {}
    parts: list[Estimate] = []
    for domain in domains:
        idle = idle_power_w(lines, domain)
        if isinstance(idle, str):
            account["idle_w"][domain] = account["idle"][domain] = None
            why[f"idle_w.{domain}"] = idle
            why["net_total"] = f"the idle power of {domain} is not known"
            continue
        account["idle_w"][domain] = idle.during.value
        account["idle"][domain] = _described(idle)
        net = net_energy_j(working, idle, domain)
        if isinstance(net, str):
            why["net_total"] = net
        else:
            parts.append(net)
    if domains and len(parts) == len(domains):
        total = Estimate(
            math.fsum(part.value for part in parts),
            math.hypot(*(part.standard_error for part in parts)),
            min(part.freedom for part in parts),
        )
        account["net_total"] = total.value
        account["net_total_ci95"] = list(total.interval())
    elif not domains:
        why["net_total"] = "no domain was counted"
    return {**account, "why": why}


def _described(idle: IdlePower) -> dict[str, Any]:
    estimates = {"before": idle.before, "after": idle.after, "drift": idle.drift}
    return {
        name: {"mean": estimate.value, "ci95": list(estimate.interval())}
        for name, estimate in estimates.items()
        if estimate is not None
    }
