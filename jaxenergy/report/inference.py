"""What predictions cost, on the terminal: joules, latency and throughput by batch and precision."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxenergy.inference import Inference
from jaxenergy.report.terminal import PROVENANCE_WORDS
from jaxenergy.units import format_percent, format_si


def print_inference(inference: Inference, console: Console) -> None:
    """Prints what the predictions of a trained network take.

    Args:
        inference: what was measured.
        console: where to print.
    """
    trained = inference.trained
    for note in inference.notes:
        console.print(Text(note))
    tokens = trained.dataset.tokens_per_example
    what = "an example" if tokens is None else f"a sequence of {tokens} characters"
    console.print(
        Text(
            f"Predictions of {trained.run.name} after {trained.update:,} updates:"
            f" {trained.model.family} on {trained.config.dataset}; one is of {what}",
            style="bold",
        )
    )
    words, style = PROVENANCE_WORDS[inference.provenance]
    console.print(Text(f"Energy: {words}.", style=style))
    reasons: dict[str, None] = {}
    for precision in dict.fromkeys(case.precision for case in inference.cases):
        cases = [case for case in inference.cases if case.precision == precision]
        accuracy = cases[0].validation_accuracy
        table = Table(
            title=f"{precision}, validation accuracy {accuracy:.2%}",
            title_justify="left",
            box=None,
            pad_edge=False,
        )
        for heading in (
            "batch",
            "J each",
            "± (95 %)",
            "per second",
            "latency",
            "95th",
            "training =",
        ):
            table.add_column(heading, justify="right")
        for case in cases:
            ci95_j, break_even = case.ci95_j, inference.break_even(case)
            reasons.update({break_even.why: None} if break_even.why else {})
            table.add_row(
                str(case.batch_size),
                format_si(case.per_prediction_j, "J"),
                "" if ci95_j is None else format_si((ci95_j[1] - ci95_j[0]) / 2, "J", 2),
                format_si(case.predictions_per_s, ""),
                format_si(case.latency_median_s, "s"),
                format_si(case.latency_p95_s, "s"),
                format_si(break_even.predictions, ""),
            )
        console.print(table)
    console.print(
        Text(
            "Latency: from a call to its result with nothing else in flight, median and 95th "
            "percentile.\n"
            "training =: after so many predictions they have taken as much as the training did."
        )
    )
    for why in reasons:
        console.print(Text(f"training = n/a: {why}", style="yellow"))
    if inference.provenance != "none" and not all(
        case.measurement.reached_target for case in inference.cases
    ):
        target = inference.cases[0].measurement.target_relative_ci
        console.print(
            Text(
                f"The time was up before every interval was within ± {format_percent(target, 3)}.",
                style="yellow",
            )
        )
