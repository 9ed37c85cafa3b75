"""Runs a grid of set-ups, each run in a process of its own, in a random order; resumable.

python -m experiments.sweep --grid=optimizer=sgd,adam --grid=depth=2,4,8 --seeds=5
python -m experiments.sweep --grid='optimizer_args=momentum=0.9,nesterov=true; momentum=0'
python -m experiments.sweep --grid=depth=2,4,8 --seeds=5 --launcher=slurm --sbatch=partition=gpu

Every flag of experiments.run but --name, --resume, --overwrite and --list may be given and holds
for all runs. Values have commas between them; where values hold commas themselves, semicolons. What
is written: docs/sweeps.md.
"""

import dataclasses
import sys
from pathlib import Path

from absl import flags

from experiments.flags import define_flag, define_run_flags, launch, run_config
from jaxenergy.arguments import COUNT, Argument
from jaxenergy.config import RunConfig
from jaxenergy.errors import UsageError

# Flags of a single run that a sweep does not take, and why.
_NOT_OF_A_SWEEP = {
    "name": "is for a single run: a sweep chooses the folders of its runs.\n"
    "Allowed: --out=FOLDER, which holds them all.",
    "resume": "is for a single run: a sweep goes on with those of its runs that are unfinished.\n"
    "Allowed: another --out=FOLDER, to begin anew.",
    "overwrite": "is for a single run: a sweep does not run again what is finished.\n"
    "Allowed: another --out=FOLDER, to begin anew.",
    "list": "is for a single run: a sweep prints no names.\n"
    "Allowed: python -m experiments.run --list.",
}

define_run_flags([f.name for f in dataclasses.fields(RunConfig) if f.name not in _NOT_OF_A_SWEEP])
_GRID = flags.DEFINE_multi_string(
    "grid", [], "A setting and its values, e.g. optimizer=sgd,adam; may be given several times."
)
_SEEDS = flags.DEFINE_string("seeds", None, "How many seeds (5), or a list of them (3,7 or 7,).")
_ORDER_SEED = define_flag(
    "order_seed", Argument(int, 0), "What the order of the runs is drawn from."
)
_DRY_RUN = flags.DEFINE_boolean("dry_run", False, "Print the runs and their times; start nothing.")
_RETRY_FAILED = flags.DEFINE_boolean("retry_failed", False, "Run anew what failed before.")
_WAIT = flags.DEFINE_boolean(
    "wait", True, "Wait while another sweep has the devices; --nowait refuses instead."
)
_LOCK_DIR = flags.DEFINE_string(
    "lock_dir",
    "/tmp/jaxenergy-locks",
    "Folder of this machine's locks, one per metered device; all its sweeps must name the same.",
)
_LAUNCHER = define_flag(
    "launcher",
    Argument(str, "local", choices=("local", "slurm")),
    "local: on this machine; slurm: as a job array.",
)
_EXCLUSIVE = define_flag(
    "exclusive",
    Argument(str, "node", choices=("gpu", "node")),
    "slurm: what a task has to itself; with gpu, one at a time unless --meters=nvml.",
)
_GRES = flags.DEFINE_string("gres", "gpu:1", "slurm: the GPU of a task, with --exclusive=gpu.")
_PARALLEL = define_flag(
    "parallel", Argument(int, None, COUNT, optional=True), "slurm: most tasks at a time."
)
_SBATCH = flags.DEFINE_multi_string(
    "sbatch", [], "slurm: an option of sbatch, e.g. partition=gpu; may be given several times."
)
_SETUP = flags.DEFINE_multi_string(
    "setup", [], "slurm: a line of shell before each run, e.g. 'module load cuda'."
)
_WATCH = flags.DEFINE_boolean("watch", True, "slurm: wait for the array's end and show it.")
_OF_SLURM = ("exclusive", "gres", "parallel", "sbatch", "setup", "watch")


def run() -> int:
    """Runs the sweep that the flags describe; returns the exit status."""
    from jaxenergy import sweeps
    from jaxenergy.sweeps.grid import check_size, read_axes, read_seeds

    settings = flags.FLAGS
    axes = read_axes(_GRID.value)
    if _SEEDS.value is not None:
        if "seed" in axes or settings["seed"].present:
            other = "--grid=seed" if "seed" in axes else "--seed"
            raise UsageError(f"--seeds and {other} both give the seeds.\nAllowed: one of the two.")
        axes["seed"] = read_seeds(_SEEDS.value)
    if not axes:
        raise UsageError(
            "There is nothing to sweep over.\n"
            "Allowed: --grid=name=value,value, once or more, and --seeds=5."
        )
    for name in axes:
        if name != "seed" and settings[name].present:
            raise UsageError(
                f"--{name} and --grid={name} both give {name}.\nAllowed: one of the two."
            )
    check_size(axes)
    if _LAUNCHER.value != "slurm":
        for name in _OF_SLURM:
            if settings[name].present:
                raise UsageError(
                    f"--{name} is for --launcher=slurm.\n"
                    f"Allowed with --launcher={_LAUNCHER.value}: none of {', '.join(_OF_SLURM)}."
                )
    elif settings["gres"].present and _EXCLUSIVE.value != "gpu":
        raise UsageError(
            f"--gres={_GRES.value} is for --exclusive=gpu: with a node to itself a task has all of "
            "its GPUs.\nAllowed: --exclusive=gpu, or e.g. --sbatch=gres=gpu:1."
        )
    quiet = settings.quiet
    base = run_config(quiet=False)  # what a run prints goes to its log
    sweep = sweeps.plan(sweeps.product(base, axes), order_seed=_ORDER_SEED.value, axes=axes)
    out = Path(settings.out)

    from rich.console import Console

    from jaxenergy.report.sweep import SweepView, print_forecast

    console = Console(quiet=quiet)
    if _DRY_RUN.value:
        forecast = sweeps.forecast(
            sweep, out=out, retry_failed=_RETRY_FAILED.value, here=_LAUNCHER.value == "local"
        )
        print_forecast(forecast, console)
        return 0
    with SweepView(console) as view:
        result = sweeps.run(
            sweep,
            out=out,
            observer=view,
            launcher=_LAUNCHER.value,
            slurm=sweeps.SlurmOptions(
                exclusive=_EXCLUSIVE.value,
                gres=_GRES.value,
                parallel=_PARALLEL.value,
                sbatch=tuple(_SBATCH.value),
                setup=tuple(_SETUP.value),
                watch=_WATCH.value,
            ),
            retry_failed=_RETRY_FAILED.value,
            wait=_WAIT.value,
            lock_dir=_LOCK_DIR.value,
            command=["python", "-m", "experiments.sweep", *sys.argv[1:]],
        )
        view.finish(result)
    return result.exit_status


def main() -> None:
    """Entry point of the driver."""
    launch(run, refused=_NOT_OF_A_SWEEP)


if __name__ == "__main__":
    main()
