"""Trains a Flax network with an Optax optimizer, meters every update, leaves a run folder.

python -m experiments.run --optimizer=sgd
python -m experiments.run --model=resnet --depth=20 --dataset=cifar10 --data_dir=DIR
python -m experiments.run --list
"""

from absl import flags

from experiments.flags import define_run_flags, launch, run_config
from jaxenergy.errors import RunError, unknown_value

define_run_flags()
_LISTS = (
    "all",
    "models",
    "presets",
    "activations",
    "optimizers",
    "schedules",
    "datasets",
    "meters",
)
flags.DEFINE_string(
    "list",
    None,
    f"Print the names that can be chosen, and end: {', '.join(_LISTS)}. With optimizers and a "
    "--model: what each optimizer's update costs.",
)
flags.declare_key_flag("list")


def run() -> int:
    """Runs what the flags say; returns the exit status."""
    config = run_config()
    names = flags.FLAGS.list
    if names is not None and names not in _LISTS:
        raise unknown_value("--list", names, _LISTS)

    # Heavy imports wait until they are needed, so that --help and bad flags answer at once.
    from rich.console import Console

    from jaxenergy import runtime
    from jaxenergy.training.interruption import end_at_signals

    console = Console()
    if names is not None:
        from jaxenergy.report.names import print_names, print_optimizer_costs

        if names == "optimizers" and flags.FLAGS["model"].present:
            print_optimizer_costs(config, console)
        else:
            print_names(names, console)
        return 0

    end_at_signals()  # there is nothing to save before the run has a folder
    runtime_facts = runtime.prepare()

    from jaxenergy.report.terminal import print_summary
    from jaxenergy.training import session
    from jaxenergy.training.progress import ConsoleObserver, SilentObserver

    observer = SilentObserver() if config.quiet else ConsoleObserver(console)
    if config.verbose:
        for name, facts in runtime_facts.items():
            observer.say(f"{name}: " + "; ".join(f"{key} {value}" for key, value in facts.items()))
    result = session.run(config, observer, runtime_facts)
    if result.message:
        observer.say(result.message)
    if not config.quiet:
        print_summary(result.summary, str(result.path), console)
    elif result.summary["status"] == "failed":
        raise RunError(f"{result.path} failed: {result.summary['why']['status']}.")
    return result.exit_status


def main() -> None:
    """Entry point of the driver."""
    launch(run)


if __name__ == "__main__":
    main()
