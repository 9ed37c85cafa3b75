"""The summary is arithmetic on lines: sums are conserved, nothing unknown becomes a number."""

import json
import math
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxenergy.errors import UsageError
from jaxenergy.records.schema import LOST, PHASES, SCHEMA
from jaxenergy.records.summary import label_lines, summarise

CONFIG = {"id": "0123456789", "target_accuracy": None}
FACTS = {
    "status": "completed",
    "provenance": "measured",
    "parameters": 1000,
    "counted_domains": ("gpu:0", "cpu:package-0"),
}


def ratio_of_sums(lines, key, domains):
    """A small estimator: the ratio of sums, with the extremes of the windows as its interval."""
    lines = [line for line in lines if key in line]  # broken-off windows have no counts
    each = [sum(line["energy_j"][d] for d in domains) / line[key] for line in lines]
    joules = math.fsum(line["energy_j"][d] for line in lines for d in domains)
    mean = joules / sum(line[key] for line in lines)
    return {"mean": mean, "ci95": [min(each), max(each)], "windows": len(lines)}


def no_mean(lines, key, domains):
    return {"mean": None, "why": "two windows are needed"}


def pooled_idle(lines, domains):
    """A small estimator: joules over seconds of all idle lines, no interval."""
    idle = [line for line in lines if line["phase"] == "idle"]
    working = [line for line in lines if line["phase"] != "idle"]
    known = [line["energy_j"].get(d) is not None for line in lines for d in domains]
    if not domains:
        return {"idle_w": {}, "net_total": None, "why": {"net_total": "no domain was counted"}}
    if not idle or not all(known):
        return {
            "idle_w": dict.fromkeys(domains),
            "net_total": None,
            "why": {"net_total": f"the idle power of {domains[0]} is not known"},
        }
    watts = {d: sum(line["energy_j"][d] for line in idle) / _seconds(idle) for d in domains}
    total = math.fsum(line["energy_j"][d] for line in working for d in domains)
    return {
        "idle_w": watts,
        "net_total": total - sum(watts.values()) * _seconds(working),
        "why": {},
    }


def _seconds(lines):
    return sum(line["end_ns"] - line["start_ns"] for line in lines) / 1e9


def summary_of(lines, metrics=(), config=CONFIG, mean_per=no_mean, **facts):
    estimators: Any = SimpleNamespace(mean_per=mean_per, idle_account=pooled_idle)
    return summarise(config, lines, metrics, {**FACTS, **facts}, estimators=estimators)


def line(
    phase, gpu_j: float | None = 1.0, cpu_j=0.5, *, seconds=1.0, attempt=0, why=None, **counts
):
    return {
        "phase": phase,
        "attempt": attempt,
        "start_ns": 10**18,
        "end_ns": 10**18 + round(seconds * 1e9),
        "energy_j": {"gpu:0": gpu_j, "cpu:package-0": cpu_j, "psys": 99.0},
        "why": why or {},
        **counts,
    }


def window(first_update, updates, gpu_j: float | None = 1.0, cpu_j=0.5, **others):
    counts = {"first_update": first_update, "updates": updates}
    counts |= {"iterations": 2 * updates, "examples": 128 * updates}
    return line("train", gpu_j, cpu_j, **counts, **others)


def rollback(to_update, attempt):
    return {"event": "rollback", "to_update": to_update, "attempt": attempt}


def test_a_whole_run_has_every_key_of_the_contract_and_the_sums_of_its_lines():
    lines = [
        line("input", 1.0, 1.0),
        line("compile", 4.0, 6.0, seconds=2.0),
        line("idle", 4.0, 1.0, seconds=2.0),
        window(0, 40, 100.0, 20.0, seconds=4.0),
        line("eval", 3.0, 2.0, seconds=0.5),
        window(40, 40, 110.0, 10.0, seconds=4.0),
    ]
    metrics = [{"update": 40, "train_loss": 0.5, "validation_accuracy": 0.9, "energy_j": 1.0}]
    compiled = {"flops_per_update": 1e9, "bytes_per_update": 2e9, "cache_hit": False}
    summary = summary_of(
        lines, metrics, mean_per=ratio_of_sums, final={"test_accuracy": 0.8}, compiled=compiled
    )
    energy = summary.pop("energy_j")
    why = energy.pop("why")
    assert energy == {
        "counted_domains": ["gpu:0", "cpu:package-0"],
        "metered": 262.0,
        "total": 257.0,
        "net_total": 228.25,  # 11.5 s at 2.5 W less
        "by_phase": {
            "compile": 10.0,
            "train": 240.0,
            "eval": 5.0,
            "input": 2.0,
            "idle": 5.0,
        },
        "by_phase_and_domain": {
            "compile": {"gpu:0": 4.0, "cpu:package-0": 6.0},
            "train": {"gpu:0": 210.0, "cpu:package-0": 30.0},
            "eval": {"gpu:0": 3.0, "cpu:package-0": 2.0},
            "input": {"gpu:0": 1.0, "cpu:package-0": 1.0},
            "idle": {"gpu:0": 4.0, "cpu:package-0": 1.0},
        },
        "by_domain": {"gpu:0": 222.0, "cpu:package-0": 40.0},
        "idle_w": {"gpu:0": 2.0, "cpu:package-0": 0.5},
        "unaccounted_j": None,
    }
    assert list(why) == ["unaccounted_j"]
    assert summary == {
        "schema": SCHEMA,
        "status": "completed",
        "provenance": "measured",
        "parameters": 1000,
        "updates": 80,
        "iterations": 160,
        "examples": 10240,
        "attempts": 1,
        "duration_s": 13.5,
        "duration_by_phase_s": {
            "compile": 2.0,
            "train": 8.0,
            "eval": 0.5,
            "input": 1.0,
            "idle": 2.0,
        },
        "final": {"train_loss": 0.5, "validation_accuracy": 0.9, "test_accuracy": 0.8},
        "target": None,
        "per_iteration_j": {"mean": 1.5, "ci95": [1.5, 1.5], "windows": 2},
        "per_update_j": {"mean": 3.0, "ci95": [3.0, 3.0], "windows": 2},
        "per_example_j": {"mean": 240 / 10240, "ci95": [120 / 5120] * 2, "windows": 2},
        "per_update_per_parameter_j": {"mean": 0.003, "ci95": [0.003, 0.003], "windows": 2},
        # 10 J are 1 % of themselves and 330 updates of 3 J
        "compiled": {
            **compiled,
            "compile_s": 2.0,
            "compile_j": 10.0,
            "amortised_after_updates": 330,
        },
        "warnings": [],
    }
    json.dumps([summary, energy], allow_nan=False)


joules = st.floats(0, 1e6, allow_nan=False)


@st.composite
def histories(draw):
    """The lines of a run that was killed and resumed any number of times, and what became of them.

    The truth is kept by living through it: what stands is cut back at each kill.
    """
    lines, standing, lost, update = [], [], [], 0
    checkpoints = [0]
    for attempt in range(draw(st.integers(1, 4))):
        if attempt:
            update = draw(st.sampled_from(checkpoints))
            checkpoints = [c for c in checkpoints if c <= update]
            lines.append(rollback(update, attempt))
            lost += [w for w in standing if w["first_update"] + w["updates"] > update]
            standing = [w for w in standing if w["first_update"] + w["updates"] <= update]
        for kind in draw(st.lists(st.sampled_from(["train", "save", *PHASES]), max_size=8)):
            gpu_j, cpu_j = draw(joules), draw(joules)
            if kind == "train":
                updates = draw(st.integers(1, 50))
                lines.append(window(update, updates, gpu_j, cpu_j, attempt=attempt))
                standing.append(lines[-1])
                update += updates
            elif kind == "save":
                lines.append(line("checkpoint", gpu_j, cpu_j, attempt=attempt))
                checkpoints.append(update)
            else:
                lines.append(line(kind, gpu_j, cpu_j, attempt=attempt))
    return lines, standing, lost, update


@given(histories())
def test_joules_are_conserved_over_phases_and_domains_through_kills(history):
    lines, standing, lost, update = history
    summary = summary_of(lines)
    energy = summary["energy_j"]
    windows = [entry for entry in lines if "phase" in entry]
    everything = sum(w["energy_j"]["gpu:0"] + w["energy_j"]["cpu:package-0"] for w in windows)
    if not windows:
        assert energy["metered"] is None
        assert energy["why"]["metered"]
        return
    assert energy["metered"] == pytest.approx(everything, rel=1e-12)
    assert math.fsum(energy["by_phase"].values()) == pytest.approx(everything, rel=1e-12)
    assert math.fsum(energy["by_domain"].values()) == pytest.approx(everything, rel=1e-12)
    idle = energy["by_phase"].get("idle", 0.0)
    assert (energy["total"] or 0.0) + idle == pytest.approx(everything, rel=1e-12)
    assert summary["updates"] == update
    assert summary["examples"] == 128 * update
    both = {"train": standing, LOST: lost}
    for phase, members in both.items():
        expected = sum(w["energy_j"]["gpu:0"] + w["energy_j"]["cpu:package-0"] for w in members)
        if members:
            assert energy["by_phase"][phase] == pytest.approx(expected, rel=1e-12)
        else:
            assert phase not in energy["by_phase"]


@given(histories(), st.data())
def test_a_null_makes_its_phase_its_domain_and_the_total_null_and_leaves_the_rest(history, data):
    lines, *_ = history
    windows = [position for position, entry in enumerate(lines) if "phase" in entry]
    if not windows:
        return
    whole = summary_of(lines)["energy_j"]
    position = data.draw(st.sampled_from(windows))
    broken = dict(lines[position])
    broken["energy_j"] = {**broken["energy_j"], "gpu:0": None}
    broken["why"] = {"gpu:0": "the counter went backwards"}
    lines = [*lines[:position], broken, *lines[position + 1 :]]
    label = next(label for label, entry in label_lines(lines) if entry is broken)
    energy = summary_of(lines)["energy_j"]
    assert energy["by_phase"] == {**whole["by_phase"], label: None}
    assert energy["by_domain"] == {**whole["by_domain"], "gpu:0": None}
    assert energy["metered"] is None
    assert energy["total"] == (whole["total"] if label == "idle" else None)
    assert energy["net_total"] is None
    for key in (f"by_phase.{label}", "by_domain.gpu:0", "metered"):
        assert "the counter went backwards" in energy["why"][key]


def test_a_domain_that_is_missing_in_a_line_is_null_and_an_overlapping_one_is_never_added():
    without = line("train", updates=1, iterations=1, examples=1, first_update=0)
    del without["energy_j"]["gpu:0"]
    energy = summary_of([without])["energy_j"]
    assert energy["by_domain"] == {"gpu:0": None, "cpu:package-0": 0.5}
    assert energy["by_phase"] == {"train": None}


def test_without_counted_domains_nothing_is_a_number():
    summary = summary_of([window(0, 10)], counted_domains=(), provenance="none")
    energy = summary["energy_j"]
    assert energy["metered"] is energy["total"] is energy["net_total"] is None
    assert energy["by_phase"] == {"train": None}
    assert energy["by_domain"] == {}
    for key in ("per_iteration_j", "per_update_j", "per_example_j", "per_update_per_parameter_j"):
        assert summary[key] == {"mean": None, "why": "no domain was counted"}


def test_a_reason_of_the_estimator_reaches_every_mean():
    summary = summary_of([window(0, 10)], mean_per=no_mean)
    expected = {"mean": None, "why": "two windows are needed"}
    assert summary["per_update_j"] == summary["per_update_per_parameter_j"] == expected


def test_without_parameters_only_the_mean_per_parameter_is_null():
    summary = summary_of([window(0, 10)], mean_per=ratio_of_sums, parameters=None)
    assert summary["per_update_j"]["mean"] == 0.15
    assert summary["per_update_per_parameter_j"]["mean"] is None


def test_of_sequences_the_mean_per_token_is_told():
    summary = summary_of([window(0, 10)], mean_per=ratio_of_sums, tokens_per_example=16)
    assert summary["per_token_j"]["mean"] == summary["per_example_j"]["mean"] / 16
    assert "per_token_j" not in summary_of([window(0, 10)], mean_per=ratio_of_sums)


def test_net_total_is_null_where_idle_was_not_measured():
    energy = summary_of([window(0, 10)])["energy_j"]
    assert energy["total"] == 1.5
    assert energy["net_total"] is None
    assert "idle power of gpu:0" in energy["why"]["net_total"]


EVALUATIONS = [
    {"update": 10, "train_loss": 1.0, "validation_accuracy": 0.90},
    {"update": 20, "train_loss": 0.5, "validation_accuracy": 0.97},
    {"update": 30, "train_loss": 0.4, "validation_accuracy": 0.99},
]


def test_the_target_counts_what_was_needed_up_to_the_first_evaluation_that_reached_it():
    lines = [
        line("input", 1, 0),
        line("compile", 2, 0),
        line("idle", 500, 0),
        line("warmup", 4, 0),
        window(0, 10, 8, 0),
        line("eval", 1000, 0),
        window(10, 10, 16, 0),
        line("eval", 1000, 0),
        window(20, 10, 2000, 0),
        line("input", 4000, 0),
    ]
    config = {**CONFIG, "target_accuracy": 0.95}
    target = summary_of(lines, EVALUATIONS, config)["target"]
    assert target == {"accuracy": 0.95, "reached_at_update": 20, "energy_j": 31.0}


def test_a_stretch_of_training_between_windows_does_not_hide_the_target():
    lines = [
        line("train", 10.0, 5.0, first_update=0, updates=20),
        line("train", 0.5, 0.5, first_update=None, updates=0),
    ]
    target = summary_of(lines, EVALUATIONS, {**CONFIG, "target_accuracy": 0.95})["target"]
    assert target == {"accuracy": 0.95, "reached_at_update": 20, "energy_j": 15.0}


def test_the_target_leaves_out_what_a_rollback_undid():
    lines = [
        line("compile", 2, 0),
        window(0, 10, 8, 0),
        window(10, 5, 100, 0),
        rollback(10, 1),
        line("compile", 4, 0, attempt=1),
        window(10, 10, 16, 0, attempt=1),
    ]
    config = {**CONFIG, "target_accuracy": 0.95}
    summary = summary_of(lines, EVALUATIONS[:2], config)
    assert summary["target"]["energy_j"] == 30.0
    assert summary["attempts"] == 2


@pytest.mark.parametrize(
    ("lines", "accuracy", "reached", "reason"),
    [
        ([window(0, 30)], 0.999, None, "not reached"),
        ([window(0, 15), window(15, 15)], 0.95, 20, "no window ends at update 20"),
        ([window(0, 20, None), window(20, 10)], 0.95, 20, "gpu:0, in 1 of 1 lines"),
    ],
)
def test_an_energy_to_target_that_cannot_be_told_says_why(lines, accuracy, reached, reason):
    target = summary_of(lines, EVALUATIONS, {**CONFIG, "target_accuracy": accuracy})["target"]
    assert target["reached_at_update"] == reached
    assert target["energy_j"] is None
    assert reason in target["why"]["energy_j"]


def test_evaluations_made_again_replace_the_undone_ones():
    metrics = [*EVALUATIONS, {"update": 10, "train_loss": 0.9, "validation_accuracy": 0.91}]
    lines = [window(0, 10), window(10, 20), rollback(10, 1)]
    final = summary_of(lines, metrics)["final"]
    assert final == {"train_loss": 0.9, "validation_accuracy": 0.91, "test_accuracy": None}


def test_a_failed_run_keeps_its_windows_and_says_why():
    broken_off = line("train", 3.0, 0.0)  # by an exception: it has no counts
    summary = summary_of(
        [window(0, 10), broken_off],
        mean_per=ratio_of_sums,
        status="failed",
        why="the training loss became nan",
        final={"train_loss": math.nan},
    )
    assert summary["why"] == {"status": "the training loss became nan"}
    assert summary["final"]["train_loss"] is None
    assert summary["final"]["why"] == {"train_loss": "it was nan"}
    assert summary["energy_j"]["by_phase"] == {"train": 4.5}
    assert summary["updates"] == 10
    assert summary["per_update_j"]["windows"] == 1


@pytest.mark.parametrize("wrong", [{"status": "done"}, {"provenence": "measured"}])
def test_unknown_words_are_refused(wrong):
    with pytest.raises(UsageError, match="Allowed"):
        summary_of([], **wrong)


def test_training_that_was_broken_off_is_lost_once_it_is_redone():
    broken_off = line("train", 7.0, 0.0)
    lines = [window(0, 10), window(10, 10), broken_off, rollback(20, 1), window(20, 10, attempt=1)]
    assert [label for label, _ in label_lines(lines)] == ["train", "train", LOST, "train"]
    part = line("train", 1.0, 0.0)  # of a window that a nested phase interrupted: not broken off
    lines = [window(0, 10), part, window(10, 10), rollback(20, 1)]
    assert [label for label, _ in label_lines(lines)] == ["train"] * 3


def test_updates_count_what_a_checkpoint_held_though_a_kill_took_the_window_s_line():
    lines = [window(0, 10), rollback(30, 1), window(30, 10, attempt=1)]
    summary = summary_of(lines, [{"update": 40, "train_loss": 1.0, "validation_accuracy": 0.5}])
    assert (summary["updates"], summary["iterations"], summary["examples"]) == (40, 80, 5120)
    assert summary["final"]["validation_accuracy"] == 0.5


def test_an_evaluation_that_was_broken_off_is_lost_once_it_is_made_anew():
    whole, broken = (
        {"first_update": 20, "updates": 0, "steady": steady} for steady in (True, False)
    )
    lines = [
        window(0, 10, 100.0, 0.0),
        line("eval", 3.0, 0.0, **{**whole, "first_update": 10}),
        window(10, 10, 100.0, 0.0),
        line("eval", 1.0, 0.0, **broken),
    ]
    assert summary_of(lines)["energy_j"]["by_phase"]["eval"] == 3.0 + 1.0
    lines += [rollback(20, 1), line("eval", 5.0, 0.0, **whole, attempt=1)]
    by_phase = summary_of(lines)["energy_j"]["by_phase"]
    assert (by_phase["eval"], by_phase[LOST]) == (3.0 + 5.0, 1.0)
    # The same place again: what was whole there stands, if the checkpoint knows of it.
    by_phase = summary_of([*lines, rollback(20, 2)])["energy_j"]["by_phase"]
    assert (by_phase["eval"], by_phase[LOST]) == (3.0 + 5.0, 1.0)
    lines += [{**rollback(20, 2), "evaluated_at": 10}, line("eval", 6.0, 0.0, **whole, attempt=2)]
    by_phase = summary_of(lines)["energy_j"]["by_phase"]
    assert (by_phase["eval"], by_phase[LOST]) == (3.0 + 6.0, 1.0 + 5.0)


def evaluation(update, **others):
    return line("eval", first_update=update, updates=0, **others)


def test_where_an_attempt_had_to_begin_anew_the_summary_warns():
    lines = [window(0, 10), {**rollback(0, 1), "why": "no checkpoint is there"}]
    lines += [window(0, 10, attempt=1), rollback(10, 2), window(10, 10, attempt=2)]
    warnings = summary_of(lines)["warnings"]
    assert warnings == ["attempt 1 went on from update 0: no checkpoint is there"]


def test_evaluations_without_a_line_of_metrics_are_warned_of_unless_undone_or_the_last():
    lines = [window(0, 10), evaluation(10), window(10, 10), evaluation(20)]
    metrics = [{"update": 10, "train_loss": 0.5, "validation_accuracy": 0.9}]
    assert summary_of(lines, metrics)["warnings"] == []
    (warning,) = summary_of(lines)["warnings"]
    assert "lacks 1 of the evaluations" in warning
    assert "update 10" in warning
    lines += [rollback(0, 1), window(0, 10, attempt=1)]
    assert summary_of(lines)["warnings"] == []
