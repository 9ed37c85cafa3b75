"""What all studies have in common: no verdict without data, none on joules nobody measured."""

import dataclasses
import json
import math

import known_truth as truth
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxenergy import models
from jaxenergy.config import RunConfig
from jaxenergy.data.tasks import task_names
from jaxenergy.errors import RunError, UsageError
from jaxenergy.studies import (
    BUDGETS,
    STUDIES,
    Context,
    Table,
    gate_of,
    grids,
    judge,
    patterns,
    to_json,
)
from jaxenergy.studies.core import (
    REFUTED,
    SUPPORTED,
    UNDECIDED,
    VERDICTS,
    VOID,
    TooLittleData,
    Verdict,
)
from jaxenergy.studies.findings import render_findings
from jaxenergy.studies.inference_probe import FLOAT32, HALF, measure_networks, rows_of
from jaxenergy.studies.instrument import IDLE, RANDOM, SQUARE, ZEROS
from jaxenergy.studies.running import all_runs, possible
from jaxenergy.studies.table import Row, target_of

positive = st.floats(1e-6, 1e6)
accuracies = st.floats(0.0, 1.0)


@st.composite
def rows(draw, seeds=2, cells=5, rounds=4, values=positive):
    """Runs with any costs, of too few seeds and set-ups for any study."""
    made = []
    for cell in range(draw(st.integers(0, cells))):
        setup = {
            "model": draw(st.sampled_from(["mlp", "cnn"])),
            "depth": 2**cell,
            "width": 64,
            "activation": draw(st.sampled_from(["relu", "tanh"])),
            "optimizer": draw(st.sampled_from(["sgd", "adam"])),
            "learning_rate": 10.0**-cell,
            "batch_size": 16 * 2**cell,
            "init_from": draw(st.sampled_from([None, "setup:0123456789"])),
            "trainable": draw(st.sampled_from(["all", "head", "last:2"])),
            "inference.batch_size": draw(st.sampled_from([None, 2**cell])),
            "inference.precision": draw(st.sampled_from([FLOAT32, HALF])),
            "inference.per_prediction_j": draw(values),
            "inference.per_prediction_s": draw(values),
            "inference.flops_per_prediction": draw(values),
            "iterations": 100 * (cell + 1),
            "parameters": 10 ** (cell + 3),
            "compiled.bytes_per_update": draw(values),
            "compiled.flops_per_update": draw(values),
            "compiled.cache_hit": draw(st.booleans()),
            "compiled.compile_j": draw(values),
            "compiled.compile_s": draw(values),
        }
        for seed in range(draw(st.integers(0, seeds))):
            row = truth.make_row(setup, seed, draw(values), draw(values))
            row["target.accuracy"] = draw(st.sampled_from([None, 0.9]))
            row["target.reached_at_update"] = draw(st.sampled_from([None, 10, truth.UPDATES]))
            row["final.validation_accuracy"] = draw(accuracies)
            row["final.test_accuracy"] = draw(accuracies)
            row["machine"] = draw(st.sampled_from(["a", "b"]))
            made.append(row)
    for number in range(draw(st.integers(0, rounds))):
        for probe in (IDLE, RANDOM, ZEROS, SQUARE):
            watts = {name: draw(values) for name in ("power_w", "counter_j", "integral_j")}
            made.append(
                {
                    "state": "completed",
                    "provenance": "measured",
                    "probe": probe,
                    "round": number,
                    "duty": 0.5,
                    **watts,
                }
            )
    return made


def judge_of(name, made, **how):
    """The verdicts on those of the rows that are of the study's kind."""
    probes = STUDIES[name].probes
    return judge(STUDIES[name], Table([row for row in made if ("probe" in row) == probes]), **how)


@given(rows())
@settings(max_examples=60, deadline=None)
def test_too_little_data_decides_nothing(made):
    for name in STUDIES:
        for verdict in judge_of(name, made):
            assert verdict.verdict != SUPPORTED, (name, verdict)


@given(rows(seeds=4, cells=9, rounds=6, values=st.sampled_from([0.0, 1.0, 5.0, math.inf])))
@settings(max_examples=30, deadline=None)
def test_any_numbers_get_a_verdict(made):
    with np.errstate(all="ignore"):
        for name in STUDIES:
            for verdict in judge_of(name, made):
                assert verdict.verdict in VERDICTS
                assert verdict.why
                assert (verdict.effect is None) or math.isfinite(verdict.effect)


def effects(provenance: str):
    """Runs with a clear trend by depth, of some provenance."""
    cells = [{"depth": d, "width": 64, "parameters": 4000} for d in (2, 4, 8)]
    made = truth.make_runs(
        np.random.default_rng(0), cells, 4, energy=[0.0, 1.0, 2.0], time=[0.0, 1.0, 2.0]
    )
    return [{**row, "provenance": provenance} for row in made]


@pytest.mark.parametrize("provenance", ["estimated", "none"])
def test_no_verdict_on_joules_that_nobody_measured(provenance):
    verdicts = judge(STUDIES["depth"], Table(effects(provenance)))
    energy = [verdict for verdict in verdicts if verdict.quantity == "energy"]
    assert {verdict.verdict for verdict in energy} == {VOID}
    assert all(verdict.effect is None and "joules" in verdict.why for verdict in energy)
    decided = {verdict.quantity: verdict.verdict for verdict in verdicts}
    assert decided["time"] == SUPPORTED
    assert decided["flops"] == REFUTED  # the same FLOPs at every depth


def test_one_estimated_run_is_enough_to_decide_nothing():
    made = effects("measured")
    made[5]["provenance"] = "estimated"
    assert judge(STUDIES["depth"], Table(made))[0].verdict == VOID


def test_simulated_joules_say_so():
    first = judge(STUDIES["depth"], Table(effects("simulated")))[0]
    assert first.verdict == SUPPORTED
    assert "simulated" in first.why


def test_a_failed_instrument_voids_joules():
    first = judge(STUDIES["depth"], Table(effects("measured")), gate="it failed")[0]
    assert first.verdict == VOID
    assert "it failed" in first.why


def test_only_disagreement_closes_the_gate():
    study = STUDIES["instrument"]
    verdicts = judge(study, Table([]))
    assert gate_of(study, verdicts) is None
    refuted = [dataclasses.replace(verdict, verdict=REFUTED) for verdict in verdicts]
    zeros = next(i for i, s in enumerate(study.statements) if not s.equality)
    assert gate_of(study, [refuted[zeros]]) is None
    assert refuted[0].statement in (gate_of(study, refuted) or "")


def test_unfinished_and_failed_runs_are_left_out_and_diverged_ones_are_not():
    row = {"config.seed": 0, "target.accuracy": 0.9}
    table = Table(
        [
            {**row, "state": "completed"},
            {**row, "state": "unfinished", "why": "it was preempted"},
            {**row, "state": "failed", "why": "the disk"},
            {**row, "state": "failed", "why": "the training loss became nan within update 3"},
        ]
    )
    assert len(table) == 2


def test_set_ups_that_diverge_are_no_hindrance_to_compare_the_others():
    rng = np.random.default_rng(5)
    cells = [{"learning_rate": r, "batch_size": 16} for r in (0.001, 0.01, 0.1, 1.0, 10.0)]
    needed = np.log([0.9, 0.3, 0.05, 0.2, 0.2])
    made = truth.make_reaching(rng, cells, 6, energy=[0.0] * 5, needed=needed, reach=0.05)
    for row in made:
        if row["config.learning_rate"] == 10.0:
            row |= {
                "state": "failed",
                "why": "the training loss became nan within update 3",
                "target.reached_at_update": None,
                "updates": 3,
                "energy_j.by_phase.train": 1.0,
            }
    five = judge(STUDIES["five_times"], Table(made))[0]
    assert five.verdict == SUPPORTED
    assert five.effect == pytest.approx(18, rel=0.3)
    u_shape = judge(STUDIES["learning_rate"], Table(made))[0]
    assert u_shape.verdict == SUPPORTED


def test_a_record_has_what_the_report_reads():
    verdicts = judge(STUDIES["depth"], Table(effects("measured")))
    record = to_json(
        STUDIES["depth"],
        verdicts,
        budget="small",
        provenance="measured",
        runs=["abc"],
        command="python -m experiments.study depth",
        protocol=1,
        machine={"device": "a card"},
    )
    assert record["schema"] == 1
    assert set(record["verdicts"][0]) == {
        *("statement", "verdict", "quantity", "effect", "ci95", "unit", "n", "why"),
    }
    text = render_findings([record])
    assert "MEASURED" in text.splitlines()[0]
    assert "a card" in text
    assert "is tested: `docs/studies.md` of jaxenergy." in text
    assert "[studies.md](studies.md)" in render_findings([record], beside_the_guide=True)
    estimated = render_findings([{**record, "provenance": "estimated"}])
    assert "ESTIMATED" in estimated.splitlines()[0]


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"machine": {"device": "a card"}}, "On a card, main data set `digits`"),
        ({"dataset": "cifar10"}, "On this machine, main data set `cifar10`"),
        ({"budget": "full"}, "main data set `digits`, budget `full`"),
        ({"protocol": 9}, "protocol 9; energy MEASURED"),
        ({"budget": "csv", "machine": {"files": ["a.csv"]}}, "On a.csv, "),
    ],
    ids=["machine", "dataset", "budget", "protocol", "csv"],
)
def test_sections_of_unlike_origin_say_their_own(other, said):
    made = effects("measured")
    first, second = (
        {
            **to_json(
                STUDIES[name],
                judge(STUDIES[name], Table(made)),
                budget="small",
                provenance="measured",
                runs=["abc"],
                command=f"python -m experiments.study {name}",
                protocol=1,
                machine={},
            ),
            "dataset": "digits",
        }
        for name in ("depth", "activation")
    )
    one = render_findings([first, second])
    assert "On this machine, main data set `digits`, budget `small`, protocol 1: " in one
    assert one.count("On this machine") == 1
    first["machine"] = {"device": "a CPU"} if "machine" in other else {}
    text = render_findings([first, {**second, **other}])
    assert "MEASURED" not in text.splitlines()[0]
    below = text.partition("## activation")[2]
    assert said in below
    assert said not in text.partition("## activation")[0]


def test_the_notes_of_the_findings_say_which_statements_they_are_about():
    def verdict(statement, quantity, why):
        return Verdict(statement, UNDECIDED, quantity, 1.0, (0.9, 1.1), "ratio", 5, why)

    verdicts = [
        verdict("All layers.", "time", "p = 1"),
        verdict("All layers.", "flops", "p = 0.2"),
        verdict("The head.", "time", "p = 1"),
    ]
    record = to_json(
        STUDIES["pretraining"],
        verdicts,
        budget="small",
        provenance="measured",
        runs=["abc"],
        command="python -m experiments.study pretraining",
        protocol=1,
        machine={},
    )
    lines = render_findings([record]).splitlines()
    assert "| 3 | The head. | time | undecided | 1 (0.9 to 1.1) ratio | 5 |" in lines
    assert "- 1, 3 (time): p = 1" in lines
    assert "- 2 (flops): p = 0.2" in lines


@pytest.mark.parametrize("budget", BUDGETS, ids=lambda budget: f"budget {budget}")
def test_designs(budget):
    for data_dir in (None, "DIR"):
        context = Context(budget, data_dir=data_dir)
        designed = {name: STUDIES[name].design(context) for name in STUDIES}
        for runs in designed.values():
            assert len({run.id for run in runs}) == len(runs)
        assert {run.id for run in designed["batch_size"]} == {
            run.id for run in designed["five_times"]
        }
        together = all_runs(designed)
        assert len(together) < sum(map(len, designed.values()))
        assert len(together) <= {"smoke": 32, "small": 420, "gpu": 420, "full": 1800}[budget]


@pytest.mark.parametrize("dataset", ["stdlib", "cartpole", "acrobot"])
@pytest.mark.parametrize("budget", BUDGETS, ids=lambda budget: f"budget {budget}")
def test_designs_of_texts_and_control_tasks_have_networks_for_them(budget, dataset):
    context = Context(budget, dataset=dataset)
    left_out: list[str] = []
    names = possible(context, left_out.append)
    assert {line.split()[0] for line in left_out} == set(STUDIES) - set(names)
    assert set(STUDIES) - set(names) <= {"pretraining", "inference", "multitask", "compute"}
    runs = all_runs({name: STUDIES[name].design(context) for name in names})
    (target,) = {run.target for run in runs} - {None}
    is_text = dataset == "stdlib"
    assert target is not None
    assert target.measure == ("bits_per_character" if is_text else "return")
    shape, outputs = ((128,), 200) if is_text else ((1, 1, 4), 3)
    for family, depth, width in {(run.model, run.depth, run.width) for run in runs}:
        assert is_text or family == "mlp"
        models.build(family, depth=depth, width=width, input_shape=shape, classes=outputs)
    assert is_text or all(512 % run.batch_size == 0 for run in runs)


def test_a_target_is_told_and_compared_by_what_it_is():
    rows = [
        {"state": "completed", "target.return": 195.0, "config.seed": seed} for seed in range(3)
    ]
    rows.append({"state": "completed", "target.bits_per_character": 3.5, "config.seed": 0})
    table = Table(rows).with_target()
    assert [row["target.return"] for row in table.rows] == [195.0] * 3
    words = [patterns.target_words(target_of(row)) for row in rows[2:]]
    assert words == ["to a validation return of 195", "to 3.5 bits per character"]
    with pytest.raises(TooLittleData, match="have a return"):
        patterns.need_accuracies(Table([{**rows[0], "final.validation_return": 12.0}]))


def test_designs_meet_their_own_minimum():
    """What a study needs at least, its small design has: made-up costs decide something."""
    rng = np.random.default_rng(1)
    context = Context("small", data_dir="DIR")
    for name in STUDIES:
        made = [made_up(rng, config) for config in STUDIES[name].design(context)]
        if STUDIES[name].measure is not None:
            table = Table([row for run in made for row in predicted(run)])
        else:
            table = Table(made)
        for verdict in judge(STUDIES[name], table) if made else ():
            assert "too little data" not in verdict.why, (name, verdict)


def made_up(rng: np.random.Generator, config: RunConfig) -> dict:
    """A run as it might have ended."""
    names = ("model", "depth", "width", "optimizer", "learning_rate", "batch_size", "dataset")
    names += ("activation", "init_from", "trainable")
    cell = {key: getattr(config, key) for key in names}
    updates = config.updates or 1
    parameters = grids.count_parameters(config.depth or 1, config.width or 1, 64)
    # Many updates are accurate, and a narrow range of accuracies makes a front of three.
    accuracy = 0.9 * (1 - math.exp(-updates / 30)) + rng.normal(0, 0.001)
    joules, seconds = parameters * 1e-6 * np.exp(rng.normal(0, 0.05, 2))
    row = truth.make_row(cell, config.seed, joules, seconds)
    row |= {
        "config.updates": updates,
        "updates": updates,
        "iterations": updates,
        "parameters": parameters,
        "energy_j.by_phase.train": joules * updates,
        "duration_by_phase_s.train": seconds * updates,
        "energy_j.total": joules * updates + 1,
        "duration_s": seconds * updates + 1,
        "compiled.flops_per_update": 6.0 * parameters * config.batch_size,
        "compiled.bytes_per_update": 20.0 * parameters + config.batch_size * 1e3,
        "compiled.cache_hit": False,
        "compiled.compile_j": 10.0,
        "compiled.compile_s": 1.0,
        "final.validation_accuracy": accuracy,
        "final.test_accuracy": accuracy,
        "final.validation_loss": (updates * parameters) ** -0.1,
        "final.test_loss": (updates * parameters) ** -0.1,
    }
    if config.model == "transformer_lm":
        row["compiled.flops_per_update"] = grids.count_flops(config)
    for task in task_names(config.dataset):
        row[f"final.test_accuracy_by_task.{task}"] = accuracy
    if config.target_accuracy:
        row |= {
            "target.accuracy": config.target_accuracy,
            "target.reached_at_update": updates // 2,
        }
    return row


def predicted(run: dict) -> list[Row]:
    """The rows of a run's predictions, as the study `inference` measures them."""
    return rows_of({**run, "examples": 1000}, {"provenance": "measured", "cases": CASES})


CASES = [
    {
        "batch_size": size,
        "precision": precision,
        "flops_per_call": size * 1e5,
        "per_prediction_j": 1e-5 + 1e-4 / size,
        "measurement": {"seconds_per_call": 1e-4 + 1e-6 * size},
    }
    for size in (1, 8, 64)
    for precision in (FLOAT32, HALF)
]


def test_predictions_are_measured_once(tmp_path):
    context = Context("smoke")
    (config,) = STUDIES["inference"].design(context)
    row = truth.make_row({}, 0, 1.0, 1.0) | {"name": "x", "path": str(tmp_path / "absent")}
    rows = {config.id: row}
    cases = [case | {"flops_per_call": None} for case in CASES]
    document = {"id": config.id, "provenance": "measured", "cases": cases}
    (tmp_path / "inference-x.json").write_text(json.dumps(document))
    told = measure_networks(context, [config], rows, tmp_path, print)
    assert [row["inference.batch_size"] for row in told] == [1, 1, 8, 8, 64, 64]
    (tmp_path / "inference-x.json").write_text(json.dumps({**document, "cases": cases[1:]}))
    with pytest.raises(RunError, match="predictions of x failed"):
        measure_networks(context, [config], rows, tmp_path, print)


def test_predictions_are_no_better_known_than_the_less_known_of_both():
    run = truth.make_row({}, 0, 1.0, 1.0) | {"examples": 1000}
    assert {row["provenance"] for row in predicted(run)} == {"measured"}
    assert {row["provenance"] for row in predicted({**run, "provenance": "estimated"})} == {
        "estimated"
    }


@pytest.mark.parametrize(
    ("dataset", "tasks"),
    [
        (None, ["digits:tasks=class+parity", "digits", "digits:tasks=parity"]),
        (
            "cifar100:examples=5000",
            [
                "cifar100:examples=5000,tasks=class+superclass",
                "cifar100:examples=5000",
                "cifar100:examples=5000,tasks=superclass",
            ],
        ),
        ("joined:digits+mnist", ["joined:digits+mnist", "digits", "mnist"]),
    ],
)
def test_networks_of_several_tasks_and_of_each(dataset, tasks):
    runs = grids.multitask(Context("small", dataset=dataset))
    assert list(dict.fromkeys(run.dataset for run in runs)) == tasks
    if dataset is None:  # those of the digits' classes are runs of the study `optimizer` as well
        others = {run.id for run in grids.optimizer(Context("small"))}
        assert {run.id for run in runs if run.dataset == "digits"} <= others


def test_text_has_no_tasks():
    with pytest.raises(UsageError, match=r"stdlib: .*multitask"):
        grids.multitask(Context("small", dataset="stdlib"))


def test_equal_computation_is_equal_to_the_compiler_too():
    """The counts of the design are XLA's to 6 %, so that a grid's rows are of one computation."""
    from jaxenergy import data
    from jaxenergy.sweeps.survey import _count_flops
    from jaxenergy.training.plan import make_plan

    for dataset in ("stdlib:length=64", "digits"):
        loaded = data.load("stdlib:length=64,characters=200000" if ":" in dataset else dataset)
        design = grids.compute(Context("small", seeds=1, dataset=dataset))
        for run in (design[0], design[2]):  # the narrowest and the widest
            counted = _count_flops(make_plan(run, loaded, "cpu"))
            assert grids.count_flops(run) == pytest.approx(counted, rel=0.06)


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_parameters_of_a_perceptron(depth):
    import jax

    from jaxenergy import models

    model = models.build("mlp", depth=depth, width=24, input_shape=(8, 8, 1), classes=10)
    variables = jax.eval_shape(model.init, jax.random.key(0))
    counted = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert counted == grids.count_parameters(depth, 24, 64)


@given(st.integers(1, 12), st.integers(500, 2_000_000), st.sampled_from([64, 784, 3072]))
@settings(deadline=None)
def test_no_other_width_comes_closer(depth, parameters, inputs):
    width = grids.width_for(depth, parameters, inputs)
    off = [
        abs(grids.count_parameters(depth, w, inputs) - parameters)
        for w in (max(1, width - 1), width, width + 1)
    ]
    assert off[1] == min(off)


def test_undecided_says_how_close_it_was():
    cells = [{"depth": d, "width": 64} for d in (2, 4, 8)]
    made = truth.make_runs(np.random.default_rng(3), cells, 3, energy=[0, 0.01, 0.0])
    first = judge(STUDIES["depth"], Table(made))[0]
    assert first.verdict == UNDECIDED
    assert "p = " in first.why


@pytest.mark.parametrize(
    ("name", "values"),
    [("precision", ["float32", "bfloat16"]), ("forms", ["auto", "plain"]), ("accumulate", [1, 4])],
)
def test_what_changes_the_cost_of_an_update_makes_another_set_up(name, values):
    cells = [
        {"width": width, "parameters": 10.0**width, name: value}
        for width in range(1, 4)
        for value in values
    ]
    made = truth.make_runs(np.random.default_rng(0), cells, 3, energy=np.zeros(len(cells)))
    first, *_ = judge_of("per_update", made)
    assert first.n == len(cells)


@pytest.mark.parametrize("quantity", ["energy", "time"])
def test_starting_is_told_without_compiling_which_only_the_first_run_of_a_length_does(quantity):
    made = []
    for seed in range(4):
        compiling = 40.0 if seed == 0 else 1.0
        for updates in (500, 1000, 2000, 4000):
            row = truth.make_row({}, seed, 0.0, 0.0)
            row |= {"iterations": updates, "updates": updates}
            whole = 7.0 + 0.01 * updates + compiling
            row |= {"energy_j.total": whole, "duration_s": whole}
            row["energy_j.by_phase.compile"] = row["duration_by_phase_s.compile"] = compiling
            made.append(row)
    (starting,) = [
        verdict
        for verdict in judge_of("iterations", made)
        if verdict.statement.startswith("Starting takes") and verdict.quantity == quantity
    ]
    assert starting.effect == pytest.approx(7.0)
    assert starting.verdict == SUPPORTED


def test_an_optimizer_of_which_a_seed_diverges_at_every_rate_is_compared_too():
    cells = [
        {"optimizer": name, "learning_rate": rate, "updates": truth.UPDATES}
        for name in ("sgd", "adam")
        for rate in (0.1, 1.0)
    ]
    needed = np.full(len(cells), math.log(0.3))
    rng = np.random.default_rng(0)
    made = truth.make_reaching(rng, cells, 5, energy=np.zeros(4), needed=needed)
    for row in made:
        diverged = {0.1: 0, 1.0: 1}[row["config.learning_rate"]]
        if row["config.optimizer"] == "sgd" and row["config.seed"] == diverged:
            row |= {"state": "failed", "why": "the training loss became nan within update 3"}
            row |= {"target.reached_at_update": None, "energy_j.by_phase.train": 1.0, "updates": 3}
    to_accuracy = judge_of("optimizer", made)[3]
    assert to_accuracy.statement == "SGD takes less energy to the accuracy than Adam."
    assert "log-rank p = " in to_accuracy.why
    assert "nan" not in to_accuracy.why
