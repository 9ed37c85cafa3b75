"""What a study is: a claim, the statements it comes down to, the runs it needs, and the judging.

A study's file says what is claimed and by whom, which runs would show it, and how each statement
is tested. Everything that has to be the same for all of them is here: what makes a verdict, that
joules which nobody measured decide nothing, and that several statements of one study share one
error rate.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxenergy.config import RunConfig
from jaxenergy.studies.grids import Context
from jaxenergy.studies.inference import LEVEL, holm
from jaxenergy.studies.table import ACCURACY, ENERGY, FLOPS, TIME, Quantity, Row, Table

SCHEMA = 1

SUPPORTED = "supported"
REFUTED = "refuted"
UNDECIDED = "undecided"
VOID = "void"
VERDICTS = (SUPPORTED, REFUTED, UNDECIDED, VOID)

MEASURED = "measured"
SIMULATED = "simulated"

COSTS = (ENERGY, TIME, FLOPS)
METERED = (ENERGY, TIME)


class TooLittleData(Exception):
    """There are not the runs that a statement's test needs; the message says which."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """What a test of a statement found, before it is judged.

    Attributes:
        effect: its size.
        ci95: the effect's 95 % interval.
        unit: of the effect; `ratio` where it is one.
        n: the independent units it rests on: seeds, set-ups or windows.
        p_for: probability of data that speak as much for the statement, were it false.
        p_against: probability of data that speak as much against it, were it true; where the
            statement is of a difference, "false" includes every difference below the margin.
        why: what a reader should know beside the numbers.
    """

    effect: float
    ci95: tuple[float, float]
    unit: str
    n: int
    p_for: float
    p_against: float
    why: str = ""


Measure = Callable[
    [Context, Sequence[RunConfig], Mapping[str, Row], Path, Callable[[str], None]], list[Row]
]
Test = Callable[[Table, Quantity], Finding]


@dataclasses.dataclass(frozen=True)
class Statement:
    """One sentence that is true or not, and how it is tested.

    Attributes:
        text: the sentence, with `{cost}` where the quantity stands.
        test: gives the finding; raises `TooLittleData`.
        quantities: what it is asked of, each with a verdict of its own.
        equality: whether it says that something is the same to within a margin. A difference
            that is shown both to be there and to be below the margin supports such a statement,
            and refutes one that says there is a difference.
    """

    text: str
    test: Test
    quantities: tuple[Quantity, ...] = COSTS
    equality: bool = False


@dataclasses.dataclass(frozen=True)
class Study:
    """A published claim and how it is put to the test.

    Attributes:
        name: what it is called on the command line.
        claim: what is claimed.
        source: by whom.
        statements: what the claim comes down to.
        minimum: the least data that can decide it, in words; the tests hold to it.
        design: the runs of a budget. Equal runs of several studies are one run.
        probes: whether it measures by itself (`probe.py`) and not by runs.
        measure: what is measured of its runs after them; None for nothing. It takes the context,
            the runs, what `read_runs` says of those that ended by run id, a folder for what it
            needs on the way and what to tell people by, and gives the table's rows.
        describe: what else to record for a quantity, e.g. a front; None for nothing.
    """

    name: str
    claim: str
    source: str
    statements: tuple[Statement, ...]
    minimum: str
    design: Callable[[Context], list[RunConfig]]
    probes: bool = False
    measure: Measure | None = None
    describe: Callable[[Table, Quantity], Any] | None = None


@dataclasses.dataclass(frozen=True)
class Verdict:
    """A statement judged; see `docs/studies.md` for the rule.

    Attributes:
        statement: the sentence.
        verdict: `supported`, `refuted`, `undecided` or `void`.
        quantity: `energy`, `time`, `flops` or `accuracy`.
        effect: its size; None where there is none.
        ci95: its 95 % interval; None where there is none.
        unit: of the effect.
        n: the independent units it rests on.
        why: the reason, and what else to know.
    """

    statement: str
    verdict: str
    quantity: str
    effect: float | None
    ci95: tuple[float, float] | None
    unit: str
    n: int
    why: str


def judge(study: Study, table: Table, *, gate: str | None = None) -> list[Verdict]:
    """Tests every statement of a study on every quantity it is asked of.

    Args:
        study: the study.
        table: its runs, of one protocol and one machine.
        gate: why the machine's counters are not believed, from the study `instrument`; None where
            they are.

    Returns:
        One verdict per statement and quantity, in the order of the statements.
    """
    asked = [(s, quantity) for s in study.statements for quantity in s.quantities]
    findings: list[Finding | str] = []
    void: list[str | None] = []
    for statement, quantity in asked:
        reason = _why_void(table, quantity, gate)
        void.append(reason)
        findings.append(reason or _find(statement, table, quantity))
    told = [finding for finding in findings if isinstance(finding, Finding)]
    p_for = iter(holm([finding.p_for for finding in told]))
    p_against = iter(holm([finding.p_against for finding in told]))
    verdicts = []
    for (statement, quantity), finding, reason in zip(asked, findings, void, strict=True):
        text = statement.text.format(cost=quantity.word)
        text = text[0].upper() + text[1:]
        if isinstance(finding, str):
            word = VOID if reason else UNDECIDED
            verdicts.append(Verdict(text, word, quantity.name, None, None, "", 0, finding))
            continue
        word, reason = _decide(next(p_for), next(p_against), statement.equality)
        why = [reason, finding.why]
        if quantity is ENERGY and table.provenance == SIMULATED:
            why.append("the joules are simulated: this says nothing of any machine")
        verdicts.append(
            Verdict(
                text,
                word,
                quantity.name,
                _finite(finding.effect),
                _finite_pair(finding.ci95),
                finding.unit,
                finding.n,
                "; ".join(filter(None, why)),
            )
        )
    return verdicts


def _find(statement: Statement, table: Table, quantity: Quantity) -> Finding | str:
    """The finding, or why there is none."""
    try:
        finding = statement.test(table, quantity)
    except TooLittleData as error:
        return f"too little data: {error}"
    if math.isnan(finding.p_for) or math.isnan(finding.p_against):
        return "too little data: the numbers do not vary, or are not finite"
    return finding


def _why_void(table: Table, quantity: Quantity, gate: str | None) -> str | None:
    """Why a quantity cannot be judged here at all."""
    if quantity is ENERGY:
        if table.provenance not in (MEASURED, SIMULATED):
            return (
                f"no verdict on joules: they are {table.provenance}"
                if table.provenance != "none"
                else "no verdict on joules: nothing was metered"
            )
        if gate:
            return f"no verdict on joules: the instrument failed its check ({gate})"
    return None


def _decide(p_for: float, p_against: float, equality: bool) -> tuple[str, str]:
    """The word, and the p-value it rests on; equivalence is looked at first."""
    order = [(SUPPORTED, p_for), (REFUTED, p_against)]
    for word, p in order if equality else reversed(order):
        if p <= LEVEL:
            return word, f"p = {p:.2g} (Holm)"
    return UNDECIDED, f"p = {p_for:.2g} for it, {p_against:.2g} against it (Holm)"


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _finite_pair(values: tuple[float, float]) -> tuple[float, float] | None:
    low, high = values
    return (float(low), float(high)) if math.isfinite(low) and math.isfinite(high) else None


def gate_of(study: Study, verdicts: Sequence[Verdict]) -> str | None:
    """Why the counters are not to be believed, from the verdicts of `instrument`.

    Only what says that readings agree can fail; that random numbers take more than zeros is a
    fact about the device.

    Returns:
        The statements that failed; None where none did.
    """
    agreements = {statement.text for statement in study.statements if statement.equality}
    failed = [v.statement for v in verdicts if v.verdict == REFUTED and v.statement in agreements]
    return f"refuted: {'; '.join(failed)}" if failed else None


def to_json(
    study: Study,
    verdicts: Sequence[Verdict],
    *,
    budget: str,
    provenance: str,
    runs: Sequence[str],
    command: str,
    protocol: int,
    machine: Mapping[str, Any],
) -> dict[str, Any]:
    """A study's result as written to `studies/NAME.json`.

    Args:
        study: the study.
        verdicts: of its statements.
        budget: `smoke`, `small`, `full`, or `csv` for others' data.
        provenance: of the joules.
        runs: the ids of the runs it rests on.
        command: that repeats it.
        protocol: of the runs.
        machine: what it was measured on.

    Returns:
        Plain JSON values.
    """
    return {
        "schema": SCHEMA,
        "study": study.name,
        "claim": study.claim,
        "source": study.source,
        "minimum": study.minimum,
        "budget": budget,
        "provenance": provenance,
        "verdicts": [
            {**dataclasses.asdict(v), "ci95": list(v.ci95) if v.ci95 else None} for v in verdicts
        ],
        "runs": list(runs),
        "command": command,
        "protocol": protocol,
        "machine": dict(machine),
    }


__all__ = ["ACCURACY", "COSTS", "METERED", "Finding", "Statement", "Study", "Verdict", "judge"]
