"""What a trained network's predictions cost: joules and latency, by batch size and precision.

A training is paid for once, a prediction each time. So beside the joules of a prediction stands the
number of predictions after which they have taken more than the training did, where both were told
by the same counters on the same kind of machine.

All cases are measured beside each other, in rounds of random order (`jaxenergy.compare`), on real
examples that lie on the device. Latency is another question than throughput: it is the time from a
call to its result with nothing else in flight, one call at a time, and is measured apart.
"""

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxenergy.data import pipeline
from jaxenergy.data.dataset import UNLABELLED
from jaxenergy.data.multitask import SAMPLINGS, build_multitask
from jaxenergy.errors import UsageError, unknown_value
from jaxenergy.flops import count_flops
from jaxenergy.measuring import Measurement, compare, measure, read_jax_devices
from jaxenergy.meters import Meters
from jaxenergy.models import PRECISIONS, Model
from jaxenergy.models.forms import UNCOUNTED_PREDICTIONS
from jaxenergy.records.environment import read_device_name
from jaxenergy.records.files import plain_text
from jaxenergy.training.trained import Trained

SCHEMA = 1
BATCH_SIZES = (1, 8, 64, 512)
_LATENCY_CALLS = 200
_LATENCY_S = 2.0  # of one case, at most
_MAX_BATCH_SIZE = 65536


@dataclasses.dataclass(frozen=True)
class Case:
    """Predictions in batches of one size, computed in one precision.

    Attributes:
        batch_size: examples per call.
        precision: `float32`, or `bfloat16` for computing in it, with parameters stored in it.
        measurement: of one call.
        flops_per_call: floating point operations of a call, by XLA's own count; None where the
            program has a loop, whose body XLA counts once.
        latency_median_s: median time from a call to its result.
        latency_p95_s: the 95th percentile of the same.
        latency_calls: calls that they rest on.
        validation_accuracy: of the network in that precision.
    """

    batch_size: int
    precision: str
    measurement: Measurement
    flops_per_call: float | None
    latency_median_s: float
    latency_p95_s: float
    latency_calls: int
    validation_accuracy: float

    @property
    def per_prediction_j(self) -> float | None:
        """Joules of one example."""
        energy_j = self.measurement.per_call_j
        return None if energy_j is None else energy_j / self.batch_size

    @property
    def ci95_j(self) -> tuple[float, float] | None:
        """The 95 % interval of the joules of one example."""
        ci95_j = self.measurement.ci95_j
        return (
            None if ci95_j is None else (ci95_j[0] / self.batch_size, ci95_j[1] / self.batch_size)
        )

    @property
    def predictions_per_s(self) -> float | None:
        """Throughput: examples per second, calls back to back."""
        seconds = self.measurement.seconds_per_call
        return None if seconds is None else self.batch_size / seconds


@dataclasses.dataclass(frozen=True)
class BreakEven:
    """After how many predictions they have taken more than the training.

    Attributes:
        training_j: what the training took, without idle; None where not known.
        predictions: training_j over the joules of a prediction; None where not known.
        ci95: its 95 % interval, from that of the joules of a prediction.
        why: the reason of a None.
    """

    training_j: float | None
    predictions: float | None
    ci95: tuple[float, float] | None
    why: str = ""


@dataclasses.dataclass(frozen=True)
class Inference:
    """What the predictions of a trained network cost.

    Attributes:
        trained: the network.
        cases: every batch size in every precision.
        domains: what was metered and counted.
        provenance: `measured`, `simulated`, `estimated` or `none`.
        notes: what the meters have to say.
    """

    trained: Trained
    cases: tuple[Case, ...]
    domains: tuple[str, ...]
    provenance: str
    notes: tuple[str, ...]

    def break_even(self, case: Case) -> BreakEven:
        """When the predictions of a case have taken more than the training."""
        summary = self.trained.run.summary or {}
        energy = summary.get("energy_j") or {}
        training_j = energy.get("total")
        why = self._why_incomparable(summary, energy)
        each_j, ci95_j = case.per_prediction_j, case.ci95_j
        if why:
            return BreakEven(training_j, None, None, why)
        if training_j is None:
            return BreakEven(None, None, None, "the joules of the training are not known")
        if each_j is None or ci95_j is None:
            return BreakEven(training_j, None, None, case.measurement.why["per_call_j"])
        low_j, high_j = ci95_j
        if low_j <= 0:
            why = "the interval of the joules of a prediction holds zero"
            return BreakEven(training_j, None, None, why)
        return BreakEven(training_j, training_j / each_j, (training_j / high_j, training_j / low_j))

    def _why_incomparable(self, summary: Mapping[str, Any], energy: Mapping[str, Any]) -> str:
        """Why the joules of the training are not of the same kind as these; empty if they are."""
        if not summary:
            return "the training is not finished"
        if summary.get("provenance") != self.provenance:
            return (
                f"the training's joules are {summary.get('provenance')}, "
                f"these are {self.provenance}"
            )
        domains = energy.get("counted_domains") or []
        if list(domains) != list(self.domains):
            return f"the training's joules are of {domains}, these of {list(self.domains)}"
        # Its model: JAX calls every CPU `cpu`.
        resolved = (self.trained.run.config or {}).get("resolved")
        trained_on = resolved.get("device") if isinstance(resolved, Mapping) else None
        here = [read_device_name(device) for device in read_jax_devices()]
        if [trained_on] != here:
            return f"the training ran on {plain_text(trained_on)}, this on {', '.join(here)}"
        return ""

    def to_json(self) -> dict[str, Any]:
        """All of it, ready for a JSON file."""
        return {
            "schema": SCHEMA,
            "run": self.trained.run.name,
            "id": self.trained.config.id,
            "update": self.trained.update,
            "domains": list(self.domains),
            "provenance": self.provenance,
            "notes": list(self.notes),
            "tokens_per_example": self.trained.dataset.tokens_per_example,
            "cases": [
                {
                    **dataclasses.asdict(case),
                    "per_prediction_j": case.per_prediction_j,
                    "ci95_j": case.ci95_j,
                    "predictions_per_s": case.predictions_per_s,
                    "break_even": dataclasses.asdict(self.break_even(case)),
                }
                for case in self.cases
            ],
        }


def measure_inference(
    trained: Trained,
    meters: Meters,
    *,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    precisions: Sequence[str] = PRECISIONS,
    target_relative_ci: float = 0.02,
    max_seconds: float = 120.0,
) -> Inference:
    """Measures the predictions of a trained network.

    Args:
        trained: the network.
        meters: the open meters.
        batch_sizes: examples per call; a batch larger than the training set repeats it.
        precisions: of the computation, of `models.PRECISIONS`.
        target_relative_ci: the half-width of every interval, over its mean, at which to end.
        max_seconds: when the joules' measurement ends at the latest; latencies come after it.

    Returns:
        What they cost.

    Raises:
        UsageError: a batch size or precision is not possible, or one comes twice.
    """
    for size in batch_sizes:
        if not 1 <= size <= _MAX_BATCH_SIZE:
            raise UsageError(f"batch size {size} is out of range; allowed: 1 to {_MAX_BATCH_SIZE}.")
    for precision in precisions:
        if precision not in PRECISIONS:
            raise unknown_value("precision", precision, PRECISIONS)
    if len({*batch_sizes}) < len(batch_sizes) or len({*precisions}) < len(precisions):
        raise UsageError(f"a batch size or precision comes twice: {batch_sizes}, {precisions}.")
    functions: dict[str, Callable[[], jax.Array]] = {}
    keys, accuracies, flops = [], {}, {}
    for precision in precisions:
        predict, variables = make_predict(trained, precision)
        accuracies[precision] = _validation_accuracy(trained, predict, variables)
        for size in batch_sizes:
            keys.append((size, precision))
            inputs = jnp.asarray(
                np.resize(trained.dataset.train.inputs, (size, *trained.dataset.input_shape))
            )
            name = f"{precision} {size}"
            functions[name] = functools.partial(predict, variables, inputs)
            flops[name] = _count_flops(trained.model, size, predict, (variables, inputs))
    arguments = {
        "meters": meters,
        "target_relative_ci": target_relative_ci,
        "max_seconds": max_seconds,
    }
    if len(functions) == 1:
        measurements = {name: measure(fn, **arguments) for name, fn in functions.items()}
    else:
        measurements = compare(functions, **arguments).measurements
    cases = []
    for (size, precision), (name, function) in zip(keys, functions.items(), strict=True):
        latencies_s = _latencies_s(function)
        cases.append(
            Case(
                batch_size=size,
                precision=precision,
                measurement=measurements[name],
                flops_per_call=flops[name],
                latency_median_s=statistics.median(latencies_s),
                latency_p95_s=float(np.quantile(latencies_s, 0.95)),
                latency_calls=len(latencies_s),
                validation_accuracy=accuracies[precision],
            )
        )
    return Inference(
        trained=trained,
        cases=tuple(cases),
        domains=meters.counted_domains,
        provenance=meters.provenance,
        notes=tuple(meters.notes),
    )


def make_predict(trained: Trained, precision: str) -> tuple[Any, Any]:
    """Makes the compiled function that predicts, and the variables it takes.

    Args:
        trained: the network.
        precision: of the computation.

    Returns:
        A jitted function of the variables and of stored inputs (uint8 [batch, ...]) to the classes
        predicted, int32 [batch], [batch, tasks] or [batch, length]; and the variables, on the
        device, the parameters stored in that precision.
    """
    module = trained.model.module.clone(dtype=jnp.dtype(precision))
    model = dataclasses.replace(trained.model, precision=precision, module=module)
    dataset = trained.dataset
    multitask = build_multitask(dataset, "", SAMPLINGS[0])

    @jax.jit
    def predict(variables: Any, inputs: jax.Array) -> jax.Array:
        if dataset.tokens_per_example is None:
            prepared = pipeline.normalise(inputs, dataset.mean, dataset.std)
        else:
            prepared = inputs.astype(jnp.int32)
        logits, _ = model.apply(variables, prepared, train=False)
        return jnp.argmax(logits, axis=-1) if multitask is None else multitask.predict(logits)

    variables = dict(trained.variables)
    variables["params"] = jax.tree.map(lambda p: jnp.asarray(p, precision), variables["params"])
    return predict, jax.device_put(variables)


def _count_flops(model: Model, batch_size: int, predict: Any, arguments: tuple) -> float | None:
    """Operations of a program as it is compiled, as the runs' records count those of an update."""
    if model.recurrent or UNCOUNTED_PREDICTIONS.intersection(model.forms_taken(batch_size)):
        return None
    return count_flops(predict, arguments, predict.lower(*arguments).compile())


def _validation_accuracy(trained: Trained, predict: Callable, variables: Any) -> float:
    split = trained.dataset.validation
    size = min(512, len(split.labels))
    right = np.zeros(split.labels.shape[1:])
    for start in range(0, len(split.labels), size):
        first = min(start, len(split.labels) - size)  # one shape, so one program
        predicted = np.asarray(predict(variables, jnp.asarray(split.inputs[first : first + size])))
        right += np.sum(predicted[start - first :] == split.labels[start : first + size], axis=0)
    if not trained.dataset.tasks:
        return float(np.sum(right)) / split.labels.size
    return float(np.mean(right / np.sum(split.labels != UNLABELLED, axis=0)))


def _latencies_s(function: Callable[[], jax.Array]) -> list[float]:
    """Seconds from a call to its result, of calls one at a time; the function is compiled."""
    durations_s: list[float] = []
    began_s = time.perf_counter()
    while len(durations_s) < _LATENCY_CALLS and (
        len(durations_s) < 3 or time.perf_counter() - began_s < _LATENCY_S
    ):
        start_s = time.perf_counter()
        jax.block_until_ready(function())
        durations_s.append(time.perf_counter() - start_s)
    return durations_s
