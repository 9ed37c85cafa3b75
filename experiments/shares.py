"""Measures what the parts of an update cost: batch, augmentation, forward, backward, optimizer.

python -m experiments.shares --model=resnet --depth=8 --optimizer=adam

The flags describe the update as those of experiments.run do. How its parts are told apart, and what
the remainder is: jaxenergy.training.shares.
"""

from absl import flags

from experiments.flags import define_measuring_flags, define_run_flags, launch, run_config

# The settings that shape an update, and how it is measured.
SETTINGS = (
    *("model", "depth", "width", "model_args", "activation"),
    *("optimizer", "optimizer_args", "learning_rate", "schedule", "weight_decay", "clip_norm"),
    *("batch_size", "accumulate", "augment", "precision", "seed", "dataset", "data_dir"),
    *("meters", "powercap_root"),
)
define_run_flags(SETTINGS)
define_measuring_flags(max_seconds=120.0)


def run() -> None:
    """Measures and prints."""
    config = run_config()
    settings = flags.FLAGS

    from jaxenergy import runtime

    runtime_facts = runtime.prepare()

    from rich.console import Console

    from jaxenergy.report.shares import print_shares
    from jaxenergy.training import shares

    plan, found = shares.run(config, settings.target_relative_ci, settings.max_seconds)
    print_shares(plan, found, Console())
    if settings.json is not None:
        from jaxenergy.records.files import write_json_atomic

        described = {name: getattr(config, name) for name in SETTINGS}
        record = {"config": {**described, "resolved": plan.resolved()}, "runtime": runtime_facts}
        write_json_atomic(settings.json, {**found.to_json(), **record})


def main() -> None:
    """Entry point of the driver."""
    launch(run)


if __name__ == "__main__":
    main()
