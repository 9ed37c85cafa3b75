"""Sweeps: their order, what is found and what is left alone, and sweeps in real processes."""

import collections
import dataclasses
import itertools
import shlex

import pytest
from absl import flags as absl_flags
from hypothesis import given, settings
from hypothesis import strategies as st

import experiments.run  # noqa: F401  # defines the flags of a run
from experiments.flags import run_config
from jaxenergy import sweeps
from jaxenergy.config import RunConfig
from jaxenergy.errors import UsageError

TINY = RunConfig(model="mlp", depth=1, width=16, updates=20, idle_seconds=0.0, meters="estimate")

ARGUMENT_TEXTS = st.text("abcxyz019.,=/_ '\"$;-", max_size=12)
CONFIGS = st.builds(
    RunConfig,
    model=st.sampled_from(["cnn", "mlp"]),
    depth=st.none() | st.integers(1, 50),
    optimizer_args=ARGUMENT_TEXTS,
    learning_rate=st.none() | st.floats(1e-9, 1e9),
    batch_size=st.integers(1, 10**6),
    augment=st.booleans(),
    updates=st.none() | st.integers(1, 2**31 - 1),
    seed=st.integers(0, 2**32 - 1),
    data_dir=st.none() | ARGUMENT_TEXTS,
    checkpoint_every=st.sampled_from(["60s", "500", "0"]),
    quiet=st.booleans(),
)


# ---------------------------------------------------------------------------------- the design


def grid(learning_rates=3, seeds=4):
    return sweeps.product(
        TINY,
        {
            "learning_rate": [0.1 * (n + 1) for n in range(learning_rates)],
            "seed": list(range(seeds)),
        },
    )


@given(st.integers(1, 6), st.integers(1, 5), st.integers(), st.randoms())
def test_each_block_is_a_random_order_of_all_cells_of_its_seed(rates, seeds, order_seed, shuffle):
    configs = grid(rates, seeds)
    planned = sweeps.plan(configs, order_seed=order_seed)
    assert collections.Counter(cell.config for cell in planned.cells) == collections.Counter(
        configs
    )
    blocks = [
        (seed, [cell.config.learning_rate for cell in cells])
        for seed, cells in itertools.groupby(planned.cells, lambda cell: cell.block)
    ]
    assert [seed for seed, _ in blocks] == list(range(seeds))
    assert all(len(set(block)) == rates for _, block in blocks)
    # The order is the draw's alone, not that in which the configs happened to be given.
    shuffle.shuffle(configs)
    assert sweeps.plan(configs, order_seed=order_seed) == planned


@given(st.integers(), st.sets(st.integers(0, 23), min_size=1))
def test_adding_runs_leaves_the_order_of_the_others(order_seed, chosen):
    configs = grid(6, 4)
    some = [configs[index] for index in chosen]
    whole = sweeps.plan(configs, order_seed=order_seed).cells
    part = sweeps.plan(some, order_seed=order_seed).cells
    assert list(part) == [cell for cell in whole if cell.config in some]


def test_no_cell_is_favoured():
    """Over many draws each cell is at each place of its block about equally often."""
    draws = 2000
    counts = collections.Counter()
    configs = grid(3, 1)
    for order_seed in range(draws):
        for place, cell in enumerate(sweeps.plan(configs, order_seed=order_seed).cells):
            counts[cell.config.learning_rate, place] += 1
    expected = draws / 3
    statistic = sum((count - expected) ** 2 / expected for count in counts.values())
    assert len(counts) == 9
    assert statistic < 18.5  # chi-squared with 4 degrees of freedom exceeds it once in 1,000


def parse(arguments):
    """The config that experiments.run makes of a command line."""
    absl_flags.FLAGS.unparse_flags()
    for name in absl_flags.FLAGS:
        absl_flags.FLAGS[name].unparse()
    rest = absl_flags.FLAGS(["run", *arguments])
    assert rest == ["run"]
    return run_config()


@settings(max_examples=50)
@given(CONFIGS, st.sampled_from(["runs", "/some where/runs", "a'b;$(c)"]))
def test_the_command_line_of_a_cell_is_its_config(config, out):
    arguments = sweeps.Cell(config).arguments(out, "x-r0")
    assert arguments[:2] == ["-m", "experiments.run"]
    typed = shlex.split(shlex.join(arguments))  # as a shell takes the line of sweep.json
    expected = dataclasses.replace(config, out=out, name="x-r0")
    assert parse(typed[2:]) == expected
    assert expected.id == config.id


@pytest.mark.parametrize(
    ("configs", "word"),
    [
        ([], "one or more"),
        ([TINY, TINY], "the same"),
        ([TINY, dataclasses.replace(TINY, verbose=True)], "the same"),
        ([dataclasses.replace(TINY, name="x")], "--name=x"),
        ([dataclasses.replace(TINY, overwrite=True)], "--overwrite"),
    ],
)
def test_what_is_no_sweep_is_refused(configs, word):
    with pytest.raises(UsageError, match=word) as error:
        sweeps.plan(configs)
    assert len(str(error.value).splitlines()) <= 3
