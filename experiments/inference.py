"""Measures what a trained network's predictions cost, by batch size and precision.

python -m experiments.inference --run=runs/NAME
python -m experiments.inference --run=runs/NAME --batch_sizes=1,64 --precisions=float32

It says, too, after how many predictions they have taken more energy than the training did, where
both were told by the same counters.
"""

from absl import flags

from experiments.flags import define_measuring_flags, define_run_flags, launch
from jaxenergy.errors import UsageError

define_run_flags(["meters", "powercap_root", "data_dir"])
define_measuring_flags(max_seconds=120.0)
_RUN = flags.DEFINE_string("run", None, "The folder of the run that trained the network.")
_BATCH_SIZES = flags.DEFINE_string("batch_sizes", "1,8,64,512", "Examples per call, with commas.")
_PRECISIONS = flags.DEFINE_string(
    "precisions", "float32,bfloat16", "Precisions to compute in, with commas."
)
_OPTIMIZER = flags.DEFINE_string(
    "optimizer", None, "The run's optimizer, needed only where it is a plug-in module:function."
)


def run() -> None:
    """Measures and prints."""
    if _RUN.value is None:
        raise UsageError("--run is missing.\nAllowed: the folder of a run, e.g. --run=runs/NAME.")
    batch_sizes = read_batch_sizes(_BATCH_SIZES.value)
    precisions = _PRECISIONS.value.split(",")
    settings = flags.FLAGS

    from jaxenergy import runtime

    runtime_facts = runtime.prepare()

    from rich.console import Console

    from jaxenergy.inference import measure_inference
    from jaxenergy.measuring import read_jax_devices
    from jaxenergy.meters import open_meters
    from jaxenergy.report.inference import print_inference
    from jaxenergy.training.trained import load_trained

    console = Console()
    devices = read_jax_devices()
    trained = load_trained(
        _RUN.value,
        platform=devices[0].platform,
        data_dir=settings.data_dir,
        optimizer=_OPTIMIZER.value,
        say=console.print,
    )
    with open_meters(settings.meters, devices, powercap_root=settings.powercap_root) as meters:
        found = measure_inference(
            trained,
            meters,
            batch_sizes=batch_sizes,
            precisions=precisions,
            target_relative_ci=settings.target_relative_ci,
            max_seconds=settings.max_seconds,
        )
    print_inference(found, console)
    if settings.json is not None:
        from jaxenergy.records.files import write_json_atomic

        write_json_atomic(settings.json, {**found.to_json(), "runtime": runtime_facts})


def read_batch_sizes(text: str) -> list[int]:
    """Reads `1,8,64` as whole numbers."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(
            f"--batch_sizes={text} is not possible; allowed: whole numbers, e.g. 1,8,64."
        ) from None


def main() -> None:
    """Entry point of the driver."""
    launch(run)


if __name__ == "__main__":
    main()
