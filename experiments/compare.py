"""Compares what the same training costs in JAX and in PyTorch: joules, seconds, memory, crossovers.

python -m experiments.compare --model=resnet --depth=8 --optimizer=sgd --frameworks=jax,torch
python -m experiments.compare --models=all

The programs are shown to be the same first. Then each framework trains in processes of its own, in
random order; a process is one observation. Ctrl-C stops, and the same command goes on from there.
The method: docs/frameworks.md.
"""

from pathlib import Path

from absl import flags

from experiments.flags import define_flag, define_run_flags, launch, run_config
from jaxenergy.arguments import COUNT, POSITIVE, Argument, Interval
from jaxenergy.errors import UsageError, unknown_value
from jaxenergy.frameworks import FRAMEWORKS

# The settings of a run that shape what is compared. Augmentation is off, and the rate is constant.
SETTINGS = (
    *("model", "depth", "width", "model_args", "activation"),
    *("optimizer", "optimizer_args", "learning_rate", "weight_decay", "clip_norm"),
    *("batch_size", "accumulate", "epochs", "updates", "precision", "seed"),
    *("dataset", "data_dir", "meters", "powercap_root", "idle_seconds"),
    *("out", "name", "overwrite", "quiet"),
)
define_run_flags(SETTINGS)
_FRAMEWORKS = flags.DEFINE_string(
    "frameworks",
    "jax,jax_plain,torch,torch_compile",
    f"What to compare, the reference first: {', '.join(FRAMEWORKS)}.",
)
_MODELS = flags.DEFINE_string(
    "models", None, "Several families with commas between, or all of them, at the zoo's settings."
)
_PROCESSES = define_flag(
    "processes", Argument(int, 5, Interval(low=2)), "Processes of each framework: what n counts."
)
_COLD = define_flag(
    "cold_compiles",
    Argument(int, 3, COUNT),
    "How many of them compile anew (unless given: all, where there are fewer), which tells of "
    "compilation and of crossovers.",
)
_SECONDS = define_flag(
    "seconds", Argument(float, 3.0, POSITIVE), "Seconds of training that each process meters."
)
_TF32 = flags.DEFINE_boolean(
    "tf32", True, "On a GPU, let every framework round factors of float32 products to TF32."
)


def run() -> int:
    """Compares and prints; returns the exit status."""
    design = read_design()
    config = next(iter(design.configs.values()))

    from rich.console import Console

    from jaxenergy.frameworks import comparison
    from jaxenergy.records.folder import check_name
    from jaxenergy.report.frameworks import print_comparison

    name = config.name or f"compare-{design.id}"
    check_name(name)
    folder = Path(config.out) / name
    console = Console()

    def say(text: str) -> None:
        if not config.quiet:
            console.print(text, markup=False, highlight=False, soft_wrap=True)

    result = comparison.run(design, folder, overwrite=config.overwrite, say=say)
    if not config.quiet:
        print_comparison(result.document, str(result.path), console)
    return result.exit_status


def read_design():
    """The design that the flags describe."""
    frameworks, processes = read_frameworks(_FRAMEWORKS.value), _PROCESSES.value
    cold = _COLD.value if flags.FLAGS["cold_compiles"].present else min(_COLD.value, processes)
    if cold > processes:
        raise UsageError(
            f"--cold_compiles={cold} of --processes={processes} cannot be.\n"
            f"Allowed: at most {processes}, or more --processes."
        )

    from jaxenergy.frameworks.comparison import Design
    from jaxenergy.frameworks.zoo import ZOO, zoo_configs

    config = run_config(schedule="constant")
    if _MODELS.value is None:
        configs = {config.model: config}
    else:
        for name in ("model", *sorted(set().union(*ZOO.values()))):
            if flags.FLAGS[name].present:
                raise UsageError(
                    f"--{name}={getattr(config, name)} and --models={_MODELS.value} both say what "
                    "is compared.\nAllowed: one of the two."
                )
        configs = zoo_configs(_MODELS.value, config)
    return Design(
        configs=configs,
        frameworks=frameworks,
        processes=processes,
        cold_compiles=cold,
        seconds=_SECONDS.value,
        tf32=_TF32.value,
        seed=config.seed,
    )


def read_frameworks(text: str) -> tuple[str, ...]:
    """Reads `jax,torch`: at least two different names of `FRAMEWORKS`."""
    names = tuple(name.strip() for name in text.split(","))
    for name in names:
        if name not in FRAMEWORKS:
            raise unknown_value("--frameworks", name or text, FRAMEWORKS)
        if names.count(name) > 1:
            raise UsageError(f"--frameworks={text} names {name} twice.")
    if len(names) < 2:
        raise UsageError(
            f"--frameworks={text} names one; a comparison needs two.\n"
            f"Allowed: {', '.join(FRAMEWORKS)}."
        )
    return names


def main() -> None:
    """Entry point of the driver."""
    launch(run)


if __name__ == "__main__":
    main()
