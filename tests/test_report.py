"""Reports: what is read, compared and said of runs, and the files that come of it."""

import csv
import io
import itertools
import json
import math
import os
import re
import signal
import struct
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import made_up_runs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up_runs import HOSTILE_NAMES, make_run

from jaxenergy.config import RunConfig, parse_setting
from jaxenergy.errors import UsageError
from jaxenergy.records import read_run
from jaxenergy.report import groups, tables
from jaxenergy.report.answer import Rates, make_answer
from jaxenergy.report.build import build_report, read_report
from jaxenergy.report.documents import read_documents
from jaxenergy.report.export import to_tensorboard
from jaxenergy.report.figures import make_figures, make_power
from jaxenergy.report.index import build_index, choose_page_names, command_of, make_record

pytest.importorskip("vl_convert", reason="needs the extra report, for drawing")
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def report(demo_report: Path) -> Path:
    return demo_report


@pytest.fixture(scope="module")
def demo(report: Path) -> Path:
    return report.parent / "runs"


def index_of(root: Path):
    return build_index(root, {})[0]


def report_process(*arguments: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "experiments.report", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        **options,
    )


# ------------------------------------------------------------------------------------- reading


def test_a_record_says_what_the_folder_says(tmp_path):
    make_run(tmp_path / "a", depth=4, update_j=2.0, provenance="measured", domains=("gpu:0", "x"))
    record = make_record(read_run(tmp_path / "a"), "a", "a.html")
    assert (record["state"], record["provenance"]) == ("completed", "measured")
    assert (record["depth"], record["per_update_j"]) == (4, 2.0)
    assert record["device"] == "a made-up GPU"
    assert record["command"] == (
        "python -m experiments.run --model=mlp --depth=4 --activation=relu --meters=simulated"
    )
    whole = sum(joules for joules, _ in record["by_phase"].values())
    assert whole == pytest.approx(sum(joules for joules, _ in record["by_domain"].values()))
    assert record["curve"][-1][2] == pytest.approx(record["validation_accuracy"])


def test_the_error_of_a_sum_has_no_inner_edges(tmp_path):
    make_run(tmp_path / "a", windows=9, update_j=1.0)
    record = make_record(read_run(tmp_path / "a"), "a", "a.html")
    # Nine windows in a row, of error 0.02 each: half a variance at either end.
    assert record["by_phase"]["train"][1] == pytest.approx(0.02)
    # Without idle, what comes before and after it: two stretches.
    assert record["energy_se_j"] == pytest.approx(0.02 * math.sqrt(2))


def test_only_what_changed_is_read_again(tmp_path):
    root = tmp_path / "runs"
    for name in ("a", "b"):
        make_run(root / name)
    index, cache = build_index(root, {})
    assert index.changed == {"a", "b"}
    index, cache = build_index(root, json.loads(json.dumps(cache)))
    assert index.changed == set()
    assert [run["name"] for run in index.runs] == ["a", "b"]
    with (root / "b" / "metrics.jsonl").open("a") as file:
        file.write('{"update": 900, "validation_accuracy": 1.0, "energy_j": 9.0}\n')
    index, cache = build_index(root, cache)
    assert index.changed == {"b"}
    assert index.runs[1]["curve"][-1][0] == 900
    assert build_index(root, cache, is_fresh=lambda record: False)[0].changed == {"a", "b"}


def test_many_runs_are_read_by_several_processes(tmp_path):
    root = tmp_path / "runs"
    for number in range(110):
        make_run(root / f"r{number}", windows=1, evaluations=1)
    index = index_of(root)
    assert len(index.runs) == 110
    assert index.runs == build_index(root, build_index(root, {})[1])[0].runs


def test_folders_that_are_no_finished_run_are_listed_with_the_reason(demo):
    states = {run["path"]: (run["state"], run["why"]) for run in index_of(demo).runs}
    assert states["failed"] == ("failed", "the loss became nan at update 12")
    assert states["stopped"][0] == states["running"][0] == "unfinished"
    assert "no summary.json" in states["running"][1]
    assert states["notes"] == ("foreign", "it holds no file of a run")
    assert "not strict JSON" in states["broken"][1]
    assert "newer" in states["newer"][1]
    assert states["damaged-lines"][0] == "completed"
    assert "windows.jsonl: line 1" in states["damaged-lines"][1]
    # What lies below a sweep or a comparison is its own.
    assert not any(path.startswith(("sweeps", "compare/")) for path in states)


def test_a_single_run_is_a_folder_of_runs(tmp_path):
    make_run(tmp_path / "alone")
    (run,) = index_of(tmp_path / "alone").runs
    assert (run["name"], run["page"]) == ("alone", "alone.html")


NAMES = st.lists(
    st.text(st.characters(exclude_characters="/\0"), min_size=1, max_size=120), unique=True
)


@given(NAMES)
def test_page_names_are_safe_and_differ(names):
    pages = choose_page_names(names).values()
    assert len({page.casefold() for page in pages}) == len(names)
    assert all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,130}\.html", page) for page in pages)


def test_a_plain_name_is_kept():
    assert choose_page_names(["a-1.x", "sub/a"])["a-1.x"] == "a-1.x.html"


def test_the_command_of_a_config_quotes_what_a_shell_would_take():
    assert command_of({"model": "a b;rm -rf", "epochs": 3.0, "augment": True, "name": "x"}) == (
        "python -m experiments.run --model='a b;rm -rf' --augment --epochs=3.0"
    )


@pytest.mark.parametrize("rate", [0.1, 1 / 3, 0.00123456789, 1e-30])
def test_the_command_of_a_config_is_that_of_no_other_run(rate):
    flag = command_of(RunConfig(learning_rate=rate).to_json()).split()[-1]
    assert parse_setting("learning_rate", flag.partition("=")[2]) == rate


# ------------------------------------------------------------------------------------ comparing

POINTS = st.lists(st.tuples(st.integers(1, 50), st.integers(0, 50)), min_size=1, max_size=30)


@given(POINTS)
def test_the_front_is_what_none_beats(points):
    runs = [{"without_compiling_j": e, "test_accuracy": a} for e, a in points]
    front = {
        (run["without_compiling_j"], run["test_accuracy"]) for run in groups.pareto_front(runs)
    }
    assert front == {
        (e, a)
        for e, a in points
        if not any((x <= e and y >= a) and (x, y) != (e, a) for x, y in points)
    }


def test_runs_are_compared_without_what_the_cache_saved_some_of_them(tmp_path):
    root = tmp_path / "runs"
    make_run(root / "compiled-anew", update_j=1.0, accuracy=0.9)
    make_run(root / "of-the-cache", update_j=1.02, accuracy=0.9, seed=1, compile_j=2.0)
    make_run(root / "unknown", update_j=0.1, accuracy=0.99, seed=2)
    summary = json.loads((root / "unknown" / "summary.json").read_text())
    summary["compiled"]["compile_j"] = None
    (root / "unknown" / "summary.json").write_text(json.dumps(summary))
    index = index_of(root)
    anew, cached, unknown = index.runs
    assert anew["energy_j"] > cached["energy_j"]  # each run's own account is left as it is
    assert anew["without_compiling_j"] == pytest.approx(anew["energy_j"] - 60.0)
    assert unknown["energy_j"] is not None
    assert unknown["without_compiling_j"] is None
    (compared,) = groups.comparable(index.runs).values()
    assert [run["name"] for run in compared] == ["compiled-anew", "of-the-cache"]
    assert groups.pareto_front(index.runs) == [anew]
    assert [run["name"] for run in sorted(index.runs, key=groups.rank_of)][-1] == "unknown"
    documents = read_documents([])
    best = next(
        item.text for item in make_answer(index, documents, Rates()) if item.label == "best"
    )
    assert "by compiled-anew for" in best
    assert "without idle and compiling (simulated)" in best
    accuracy, curves, *_ = make_figures(index, documents, "")
    assert "without idle and compiling" in str(accuracy.spec)
    assert [row["front"] for row in accuracy.rows] == [True, False]
    assert "without compiling" in str(curves.spec)
    last_j = [row["energy_j"] for row in curves.rows if row["run"] == anew["name"]][-1]
    assert last_j == pytest.approx(anew["without_compiling_j"])


def test_a_curve_is_without_the_compiling_of_each_attempt_so_far(tmp_path):
    make_run(tmp_path / "a", windows=4, evaluations=4, update_j=1.0)
    path = tmp_path / "a" / "windows.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    before = make_record(read_run(tmp_path / "a"), "a", "a.html")["curve"]
    second = next(position for position, line in enumerate(lines) if line["first_update"] == 40)
    again = {**next(line for line in lines if line["phase"] == "compile"), "attempt": 1}
    lines.insert(second, again)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    after = make_record(read_run(tmp_path / "a"), "a", "a.html")["curve"]
    saved = [old[1] - new[1] for old, new in zip(before, after, strict=True)]
    assert saved == pytest.approx([0.0, 0.0, 60.0, 60.0])


def test_a_factor_is_compared_with_all_else_equal(tmp_path):
    for seed in range(3):
        make_run(tmp_path / f"sgd-{seed}", update_j=1.0 + 0.1 * seed, seed=seed)
    make_run(tmp_path / "adam", optimizer="adam", update_j=2.0)
    make_run(tmp_path / "deep-adam", optimizer="adam", depth=8, update_j=9.0)
    make_run(tmp_path / "guess-lion", optimizer="lion", provenance="estimated")
    (stratum,) = groups.find_strata(index_of(tmp_path).runs, "optimizer")
    sgd, adam = stratum.levels
    assert (sgd.name, sgd.runs, sgd.interval) == ("sgd", 3, "runs")
    assert sgd.mean_j == pytest.approx(1.1)
    # Student's t with 2 degrees of freedom is 4.303; the standard error is 0.1 / sqrt(3).
    assert sgd.high_j - sgd.mean_j == pytest.approx(4.303 * 0.1 / math.sqrt(3), rel=1e-3)
    assert (adam.name, adam.runs, adam.interval) == ("adam", 1, "windows")
    assert (adam.low_j, adam.high_j) == pytest.approx((1.96, 2.04))
    assert groups.find_strata(index_of(tmp_path).runs, "activation") == []


OF_ANOTHER_KIND = (
    {"domains": ("gpu:0", "cpu:package-0")},
    {"jaxlib": "0.1.1"},
    {"digest": "sha256:fedcba"},
    {"device": "another made-up GPU"},
)


@pytest.mark.parametrize("other", OF_ANOTHER_KIND, ids=lambda other: next(iter(other)))
def test_joules_of_another_kind_are_never_put_together(tmp_path, other):
    make_run(tmp_path / "sgd", update_j=1.0, accuracy=0.8)
    make_run(tmp_path / "adam", optimizer="adam", update_j=2.0, accuracy=0.9)
    make_run(tmp_path / "other", optimizer="adam", seed=1, update_j=5.0, accuracy=0.95, **other)
    index = index_of(tmp_path)
    sizes = [len(runs) for runs in groups.comparable(index.runs).values()]
    assert sizes == [2, 1]
    (stratum,) = groups.find_strata(index.runs, "optimizer")
    assert [(level.name, level.mean_j) for level in stratum.levels] == [("sgd", 1.0), ("adam", 2.0)]
    documents = read_documents(index.documents)
    figures = {figure.name: figure for figure in make_figures(index, documents, "")}
    for name in ("phases", "domains"):
        ours, theirs = figures[name], figures[f"{name}-2"]
        assert max(row["runs"] for row in ours.rows) == 2
        assert max(row["runs"] for row in theirs.rows) == 1
        assert ours.title != theirs.title
    assert "counting gpu:0" in figures["optimizer"].caption
    costs = [item.text for item in make_answer(index, documents, Rates()) if item.label == "cost"]
    assert ["(2 runs)" in text for text in costs] == [True, False]
    assert costs[0].partition(" J ")[0] != costs[1].partition(" J ")[0]


def test_runs_of_other_forms_share_no_level(tmp_path):
    make_run(tmp_path / "sgd", update_j=1.0)
    make_run(tmp_path / "adam", optimizer="adam", update_j=2.0)
    make_run(tmp_path / "formed", optimizer="adam", update_j=1.5, forms=("attention",))
    (stratum,) = groups.find_strata(index_of(tmp_path).runs, "optimizer")
    assert [level.runs for level in stratum.levels] == [1, 1]


def test_a_depth_that_is_no_number_comes_last(tmp_path):
    for depth in (10, 4, "four"):
        make_run(tmp_path / f"{depth}", depth=depth)  # pyright: ignore[reportArgumentType]
    (stratum,) = groups.find_strata(index_of(tmp_path).runs, "depth")
    assert [level.name for level in stratum.levels] == ["4", "10", "four"]


def test_many_kinds_are_told_for_the_largest_few(tmp_path):
    for number in range(7):
        make_run(tmp_path / f"r{number}", jaxlib=f"0.{number}")
    index = index_of(tmp_path)
    answer = make_answer(index, read_documents(index.documents), Rates())
    costs = [item.text for item in answer if item.label == "cost"]
    assert len(costs) == 5
    assert costs[0].startswith("digits, by jaxlib 0.0: ")
    assert "3 further sets of runs (simulated)" in costs[-1]


def test_documents_are_read_by_their_schema(demo):
    documents = read_documents(index_of(demo).documents)
    (study,) = documents.studies
    assert [verdict.verdict for verdict in study.verdicts] == [
        "supported",
        "undecided",
        "refuted",
        "void",
    ]
    assert (study.verdicts[0].low, study.verdicts[0].high) == (7.0, 11.3)
    assert documents.sweeps[0].runs == [("completed", 27), ("failed", 1), ("waiting", 2)]
    resnet, vit = documents.comparisons
    assert resnet.pairs[0].crossover.value == 1250.0
    assert (vit.status, vit.why) == ("refused", "parity fails at block 2")
    reasons = dict(documents.refused)
    assert len(reasons) == 2
    assert "schema is 99" in reasons["elsewhere/study.json"]
    assert "no JSON object" in reasons["compare-old/compare.json"]


@settings(max_examples=30)
@given(st.recursive(st.none() | st.integers() | st.text(max_size=5), st.lists, max_leaves=5))
def test_documents_of_any_shape_harm_nobody(value):
    keys = ("verdicts", "cells", "models", "frameworks", "pairs", "axes", "runs", "command")
    for kind in ("verdicts", "cells"):
        content = {"schema": 1, **dict.fromkeys(keys, value), kind: [value]}
        content.pop("models")
        read_documents([("study.json", content)])
    read_documents([("compare.json", {"schema": 1, "models": {"a": dict.fromkeys(keys, value)}})])
    read_documents([("study.json", {"schema": value})])


def test_the_answer_keeps_provenances_apart(demo):
    index = index_of(demo)
    answer = make_answer(index, read_documents(index.documents), Rates(carbon_g_per_kwh=400.0))
    cost = {item.provenance: item.text for item in answer if item.label == "cost"}
    assert set(cost) == {"measured", "estimated", "simulated"}
    assert "27 runs" in cost["measured"]
    assert "CO2e" in cost["measured"]
    assert "CO2e" not in cost["simulated"]
    labels = [item.label for item in answer]
    assert labels[0] == "trained"
    claims = next(item.text for item in answer if item.label == "claims")
    assert claims.startswith("4 statements of 1 study tested: 1 supported, 1 refuted")
    assert "1 failed" in answer[-1].text


def test_a_ratio_of_frameworks_says_of_what_and_how_sure_it_is(tmp_path):
    def sentences():
        index = index_of(tmp_path)
        answer = make_answer(index, read_documents(index.documents), Rates())
        return [item.text for item in answer if item.label == "frameworks"]

    made_up_runs.make_documents(tmp_path)
    (sentence,) = sentences()
    assert sentence == (
        "resnet 8 x 16, measured: torch takes 1.4 times the joules of jax an update (95 %: 1.33 to"
        " 1.47; 5 processes each); torch_compile takes 1.13 times the joules of jax an update"
        " (95 %: 1.07 to 1.19; 5 processes each). Warning: other programs kept up to 1.6 cores"
        " busy."
    )
    document = json.loads((tmp_path / "compare" / "compare.json").read_text())
    entry = document["models"]["resnet"]
    entry["provenance"] = "estimated"
    entry["frameworks"]["torch"]["processes"] = 2
    entry["pairs"][0]["energy_ratio"] = {"ratio": 153.2, "ci95": None, "why": "needs two"}
    del entry["warnings"]
    (tmp_path / "tried").mkdir()
    (tmp_path / "tried" / "compare.json").write_text(json.dumps({**document, "name": "tried"}))
    first, second = sentences()
    assert first.startswith("resnet 8 x 16 (resnet), measured: ")
    assert second.startswith(
        "resnet 8 x 16 (tried), estimated: torch takes 153 times the joules of jax an update (no"
        " interval: 2 processes each); "
    )
    assert "Warning" not in second
    build_report(tmp_path, tmp_path / "report")
    page = (tmp_path / "report" / "index.html").read_text()
    assert "153 (no interval)" in page
    warning = "resnet 8 x 16 (resnet): other programs kept up to 1.6 cores busy"
    assert f"<li>warning: {warning}</li>" in page
    done = report_process(str(tmp_path), f"--out={tmp_path / 'report'}", "--summary")
    assert f"warning: {warning}" in " ".join(done.stdout.split())


def test_a_wide_interval_has_no_exponent(tmp_path):
    make_run(tmp_path / "a", update_j=1.0)
    summary = json.loads((tmp_path / "a" / "summary.json").read_text())
    summary["per_update_j"]["ci95"] = [-0.5, 2.5]
    (tmp_path / "a" / "summary.json").write_text(json.dumps(summary))
    answer = make_answer(index_of(tmp_path), read_documents([]), Rates())
    assert "± 150 % in" in next(item.text for item in answer if item.label == "how sure")


def test_nothing_at_all_is_an_answer_too(tmp_path):
    root, out = tmp_path / "runs", tmp_path / "report"
    root.mkdir()
    assert str(build_report(root, out)) == f"{out}/index.html: no run was found in {root}"
    assert f"No run was found in {root}." in (out / "index.html").read_text()
    made_up_runs.make_documents(root)
    assert f"no run was found in {root}, but 6 documents" in str(build_report(root, out))


# -------------------------------------------------------------------------------------- figures


def test_every_bar_has_an_interval_and_every_axis_a_unit(demo):
    index = index_of(demo)
    figures = make_figures(index, read_documents(index.documents), "make it")
    drawn = [figure for figure in figures if figure.spec is not None]
    assert {figure.name for figure in drawn} >= {
        *("accuracy", "curves", "phases", "domains", "optimizer", "activation", "depth"),
        *("frameworks", "crossover"),
    }
    for figure in drawn:
        assert figure.command
        assert {key for key, _ in figure.columns} <= set().union(*figure.rows) | {"page"}
        if '"type": "bar"' in json.dumps(figure.spec):
            assert all(row["low_j"] <= row["high_j"] for row in figure.rows)
        for axis in find_all(figure.spec, "x"):
            if isinstance(axis, dict) and "title" in axis:
                described = str(axis)
                assert "J" in described or "updates" in described


def test_joules_beside_a_figure_say_where_they_are_from(demo):
    index = index_of(demo)
    figures = make_figures(index, read_documents(index.documents), "make it")
    run = next(run for run in index.runs if run.get("provenance") == "measured")
    read = read_run(run["folder"])
    drawn = [figure for figure in figures if figure.spec is not None]
    for figure in [*drawn, make_power(run, read.windows, read.environment)]:
        if any("(J)" in heading for _, heading in figure.columns):
            assert "provenance" in dict(figure.columns), figure.name
        for row in figure.rows:
            if any(row.get(key) is not None for key in row if key.endswith("_j")):
                assert row["provenance"] in ("measured", "estimated", "simulated"), figure.name


def crossover_figure(tmp_path, found):
    """The figure of a comparison whose pair of torch and jax crosses as given."""
    made_up_runs.make_demo(tmp_path)
    path = tmp_path / "compare" / "compare.json"
    document = json.loads(path.read_text())
    document["models"]["resnet"]["pairs"] = [
        {"framework": "torch", "reference": "jax", "energy_crossover": found}
    ]
    path.write_text(json.dumps(document))
    documents = read_documents(index_of(tmp_path).documents)
    figures = make_figures(index_of(tmp_path), documents, "")
    return next(figure for figure in figures if figure.name == "crossover")


@pytest.mark.parametrize(
    ("found", "drawn", "words"),
    [
        ({"updates": 1250.0, "set95": [[1100.0, 1420.0]]}, [(1100, 1420)], "1,100 to 1,420"),
        ({"updates": 1250.0, "set95": [[400.0, None]]}, [(400, 2500)], "from 400 on, without end"),
        (
            {"updates": 1250.0, "set95": [[0.0, 20.0], [900.0, None]]},
            [(0, 20), (900, 2500)],
            "0 to 20 or from 900 on",
        ),
        ({"updates": 1250.0, "set95": None, "why": "one block"}, [], "updates (no interval)"),
        ({"updates": None, "set95": [[3e5, None]]}, [], "is not excluded: 95 %: from 300,000 on"),
        ({"updates": None, "why": "no cold start"}, [], "is not known (no cold start)"),
        ({"updates": None, "set95": [], "verdict": "never"}, [], "do not cross at any length"),
    ],
    ids=["bounded", "unbounded", "two pieces", "no interval", "not excluded", "unknown", "never"],
)
def test_a_crossover_is_drawn_and_told_as_far_as_it_is_known(tmp_path, found, drawn, words):
    figure = crossover_figure(tmp_path, found)
    pieces = [row for row in figure.rows if row["kind"] == "interval"]
    assert [(row["low"], row["drawn_high"]) for row in pieces] == drawn
    assert words in figure.caption
    assert ("do not cross at any length" in figure.caption) == (found.get("verdict") == "never")


def test_a_run_of_many_evaluations_is_thinned_over_its_whole_length(tmp_path):
    make_run(tmp_path / "a", windows=3000)
    run = read_run(tmp_path / "a")
    windows = []
    for line in run.windows:  # an evaluation behind every window: no neighbours to put together
        middle = line["end_ns"] - 1_000_000
        windows.append({**line, "end_ns": middle})
        if line["phase"] == "train":
            windows.append({**line, "phase": "eval", "updates": 0, "start_ns": middle})
    figure = make_power(make_record(run, "a", "a.html"), windows, run.environment)
    powers = [row for row in figure.rows if row["kind"] == "power"]
    assert len(powers) <= 1500
    whole_s = (windows[-1]["end_ns"] - windows[0]["start_ns"]) / 1e9
    assert powers[-1]["end_s"] == pytest.approx(whole_s)
    train = [row["start_s"] for row in powers if row["phase"] == "train"]
    assert max(b - a for a, b in itertools.pairwise(train)) < 0.01 * whole_s
    assert {row["phase"] for row in powers} == {"input", "compile", "idle", "train", "eval"}
    assert "left out, evenly" in figure.caption


def find_all(value, key):
    if isinstance(value, dict):
        for name, item in value.items():
            if name == key:
                yield item
            yield from find_all(item, key)
    elif isinstance(value, list):
        for item in value:
            yield from find_all(item, key)


def test_power_over_time_adds_up_and_shows_ticks(tmp_path):
    make_run(tmp_path / "a", windows=3000)
    run = read_run(tmp_path / "a")
    record = make_record(run, "a", "a.html")
    figure = make_power(record, run.windows[:200], run.environment)
    powers = [row for row in figure.rows if row["kind"] == "power"]
    joules = sum(row["power_w"] * (row["end_s"] - row["start_s"]) for row in powers)
    assert joules == pytest.approx(sum(line["energy_j"]["gpu:0"] for line in run.windows[:200]))
    ticks = [row["start_s"] for row in figure.rows if row["kind"] == "tick"]
    assert ticks[0] == pytest.approx(0.03)
    assert "gpu:0 ticks every 100 ms" in figure.caption
    # Three thousand windows are too many to draw: they are put together, and no joule is lost.
    whole = make_power(record, run.windows, run.environment)
    powers = [row for row in whole.rows if row["kind"] == "power"]
    assert len(powers) <= 1500
    assert sum(row["energy_j"] for row in powers) == pytest.approx(record["metered_j"])


def test_windows_that_were_undone_are_drawn_as_lost(tmp_path):
    make_run(tmp_path / "a", windows=4)
    with (tmp_path / "a" / "windows.jsonl").open("a") as file:
        file.write('{"event": "rollback", "to_update": 40, "attempt": 1}\n')
    run = read_run(tmp_path / "a")
    figure = make_power(make_record(run, "a", "a.html"), run.windows, run.environment)
    phases = [row["phase"] for row in figure.rows if row["kind"] == "phase"]
    assert phases.count("lost") == phases.count("train") == 2


# --------------------------------------------------------------------------------------- tables

CELLS = st.one_of(st.none(), st.integers(-(10**6), 10**6), st.text(max_size=12))


@given(st.lists(CELLS, min_size=1, max_size=5))
def test_csv_can_be_read_back_and_holds_no_formula(values):
    text = tables.to_csv([("a", "a (J)"), ("b", "b")], [{"a": value, "b": 1} for value in values])
    rows = list(csv.reader(io.StringIO(text, newline="")))
    assert rows[0] == ["a (J)", "b"]
    for value, (cell, other) in zip(values, rows[1:], strict=True):
        assert other == "1"
        if isinstance(value, str):
            assert not cell.startswith(("=", "+", "-", "@", "\t", "\r"))
            assert cell.removeprefix("'") == value.removeprefix("'")
        else:
            assert cell == ("" if value is None else str(value))


def test_markup_is_escaped():
    rows = [{"a": "50 % of a_b & <c> | $x$ \\ ~^{}", "b": 0.123456}]
    columns = [("a", "a"), ("b", "energy (J)")]
    latex = tables.to_latex(columns, rows, "50 %")
    body = latex.split("\\midrule\n")[1].split("\\bottomrule")[0]
    assert body == (
        "50 \\% of a\\_b \\& \\textless{}c\\textgreater{} \\textbar{} \\$x\\$ \\textbackslash{}"
        " \\textasciitilde{}\\textasciicircum{}\\{\\} & 0.1235 \\\\\n"
    )
    assert "\\begin{tabular}{lr}" in latex
    assert latex.count("\\toprule") == latex.count("\\bottomrule") == 1
    markdown = tables.to_markdown(columns, rows).splitlines()
    assert len(markdown) == 3
    assert markdown[1] == "| --- | ---: |"
    assert "\\<c\\> \\|" in markdown[2]


# ------------------------------------------------------------------------------------ the folder


def test_a_report_is_page_figures_tables_and_json(report):
    page = (report / "index.html").read_text()
    assert len(page) < 2_500_000
    document = json.loads((report / "report.json").read_text())
    assert document["schema"] == 1
    assert len(document["runs"]) == 27 + 10 + len(HOSTILE_NAMES) + 4
    assert document["runs"][0].keys() >= {"energy_j", "provenance", "carbon_g", "price"}
    assert "Runs are ranked by joules" in page
    for figure in document["figures"]:
        if figure["data"]:
            assert len((report / figure["data"]).read_text().splitlines()) > 1
            svg = report / "figures" / f"{figure['name']}.svg"
            assert ElementTree.parse(svg).getroot().tag.endswith("svg")
            assert "var(--" not in svg.read_text()
            pdf = (report / "figures" / f"{figure['name']}.pdf").read_bytes()
            assert pdf.startswith(b"%PDF")
    for name in ("runs", "verdicts", "problems", "pairs"):
        for ending in ("csv", "md", "tex"):
            assert (report / "tables" / f"{name}.{ending}").stat().st_size > 0
    (row, *_) = csv.DictReader((report / "tables" / "runs.csv").read_text().splitlines())
    assert float(row["CO2e (g)"]) == pytest.approx(float(row["energy (J)"]) / 3.6e6 * 300)


def test_names_that_mean_harm_are_text_and_stay_in_their_folder(demo, report):
    page = (report / "index.html").read_text()
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    assert "{{ 7*7 }}" in page
    pages = {path.name for path in (report / "runs").iterdir()}
    runs = [run for run in index_of(demo).runs if run["page"]]
    assert pages == {run["page"] for run in runs}
    evil = next(run["page"] for run in runs if run["name"].startswith("<script>"))
    text = (report / "runs" / evil).read_text()
    assert "<h1>&lt;script&gt;alert(1)</h1>" in text
    assert "<script>alert" not in text
    assert {path.name for path in demo.parent.iterdir()} == {"runs", "report"}


def test_a_run_has_its_config_environment_and_windows_on_its_page(report):
    text = (report / "runs" / "stopped.html").read_text()
    for words in ("batch_size", "a made-up GPU", "recorded_at", "simulated", "preempted"):
        assert words in text
    data = json.loads(re.search(r'id="data">(.*?)</script>', text).group(1))  # type: ignore[union-attr]
    assert len(data["tables"]["windows"]["rows"]) == 44
    assert len(data["tables"]["metrics"]["rows"]) == 20


def test_what_did_not_change_is_left_as_it_is(tmp_path):
    root, out = tmp_path / "runs", tmp_path / "report"
    for name in ("a", "b", "c"):
        make_run(root / name)
    assert build_report(root, out).changed
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    outcome = build_report(root, out)
    assert (outcome.changed, outcome.read) == (False, 0)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    (root / "a" / "summary.json").unlink()
    for file in (root / "b").iterdir():
        file.unlink()
    (out / "runs" / "c.html").unlink()
    outcome = build_report(root, out)
    assert (outcome.changed, outcome.read) == (True, 2)
    assert {path.name for path in (out / "runs").iterdir()} == {"a.html", "c.html"}
    assert build_report(root, out, Rates(price_per_kwh=1.0)).changed


def test_a_folder_of_something_else_is_not_written_to(tmp_path):
    root = tmp_path / "runs"
    make_run(root / "a")
    with pytest.raises(UsageError, match="holds something that is no report"):
        build_report(root, root)
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is a file"):
        build_report(root, tmp_path / "file")
    with pytest.raises(UsageError, match="is no folder"):
        build_report(tmp_path / "absent", tmp_path / "out")
    assert [path.name for path in root.iterdir()] == ["a"]


def test_a_report_inside_the_runs_folder_does_not_report_itself(tmp_path):
    make_run(tmp_path / "a")
    assert build_report(tmp_path, tmp_path / "report").runs == 1
    outcome = build_report(tmp_path, tmp_path / "report")
    assert (outcome.runs, outcome.changed) == (1, False)
    # Nor does one that goes elsewhere report it; what else lies about is still told.
    (tmp_path / "notes").mkdir()
    index = index_of(tmp_path)
    assert [run["path"] for run in index.runs] == ["a", "notes"]
    # A run in a report's folder is a run all the same.
    make_run(tmp_path / "report" / "b")
    assert [run["path"] for run in index_of(tmp_path).runs] == ["a", "notes", "report/b"]


def test_only_runs_are_counted_as_runs(tmp_path):
    root, out = tmp_path / "runs", tmp_path / "report"
    make_run(root / "a")
    for name in ("notes", "figs"):
        (root / name).mkdir()
    (root / "broken").mkdir()
    (root / "broken" / "config.json").write_text("{")
    done = report_process(str(root), f"--out={out}")
    assert done.stdout == (
        f"{out}/index.html: 1 run, 1 read anew; 3 folders without a readable run\n"
    )
    outcome = build_report(root, out)
    assert (outcome.runs, outcome.foreign) == (1, 3)


# ------------------------------------------------------------------------------------ the driver


def test_the_summary_says_the_same_without_drawing(demo):
    done = report_process(str(demo), f"--out={demo.parent / 'none'}", "--summary")
    assert done.returncode == 0, done.stderr
    assert "measured by hardware counters (27" in " ".join(done.stdout.split())
    assert "supported" in done.stdout
    assert not (demo.parent / "none").exists()
    code = f"""
import sys
from pathlib import Path
from jaxenergy.report.build import read_report
from jaxenergy.report.overview import print_overview
read_report(Path({str(demo)!r}), Path("none"))
print(sorted(sys.modules.keys() & {{"jax", "numpy", "scipy", "vl_convert", "jinja2"}}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["absent"], "absent is no folder"),
        (["--carbon_intensity=-1"], "at least 0"),
        (["--to=tensorbord"], "Did you mean 'tensorboard'"),
        (["--summary", "--watch"], "one of them"),
        (["a", "b"], "is not a flag"),
    ],
)
def test_bad_flags_are_refused_in_a_few_lines(tmp_path, flags, words):
    done = report_process(*flags, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr
    assert len(done.stderr.splitlines()) <= 3
    assert list(tmp_path.iterdir()) == []


def test_watching_follows_what_runs_do(tmp_path):
    root, out = tmp_path / "runs", tmp_path / "report"
    make_run(root / "a", windows=1)
    # A shell's background job ignores SIGINT, and so would what the tests start there.
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from experiments.report import main; main()"
    )
    command = [sys.executable, "-c", code, str(root), f"--out={out}", "--watch"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [*command, "--watch_seconds=0.1"],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert "1 run, 1 read anew" in process.stdout.readline()
        assert '"reload_s":0.1' in (out / "index.html").read_text()
        make_run(root / "b", windows=1)
        # The folder may be seen half made: what follows it is the whole.
        deadline = time.monotonic() + 60
        while "2 runs" not in process.stdout.readline():
            assert time.monotonic() < deadline
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    assert '"reload_s":null' in (out / "index.html").read_text()


# ------------------------------------------------------------------------------- other programs


def read_events(path: Path):
    """The events of a TensorBoard file: length, its checksum, the event, its checksum."""
    from tensorboardX.proto import event_pb2

    content, at = path.read_bytes(), 0
    while at < len(content):
        (length,) = struct.unpack_from("<Q", content, at)
        event = event_pb2.Event()  # type: ignore[attr-defined]
        event.ParseFromString(content[at + 12 : at + 12 + length])
        yield event
        at += 16 + length


def test_metrics_go_to_tensorboard(tmp_path):
    pytest.importorskip("tensorboardX", reason="needs the extra tensorboard")
    root, out = tmp_path / "runs", tmp_path / "report"
    make_run(root / "a", provenance="estimated", windows=5, evaluations=4)
    make_run(root / "<b>")
    done = report_process(str(root), f"--out={out}", "--to=tensorboard")
    assert done.returncode == 0, done.stderr
    assert "2 runs" in done.stdout
    to_tensorboard(root, out)  # a second time replaces the first
    (file,) = (out / "tensorboard" / "a").iterdir()
    values = [
        (value.tag, event.step, value.simple_value)
        for event in read_events(file)
        for value in event.summary.value
    ]
    accuracies = [value for value in values if value[0] == "metrics/validation_accuracy"]
    assert [step for _, step, _ in accuracies] == [25, 50, 75, 100]
    assert accuracies[-1][2] == pytest.approx(0.9)
    assert sum(tag == "power_w/gpu_0" for tag, _, _ in values) == 5
    assert any(b"provenance: estimated" in event.SerializeToString() for event in read_events(file))
    # The report is made in the same folder afterwards.
    assert build_report(root, out).runs == 2


@pytest.mark.slow
def test_metrics_go_to_wandb(tmp_path):
    pytest.importorskip("wandb", reason="needs the extra wandb")
    root, out = tmp_path / "runs", tmp_path / "report"
    make_run(root / "a", windows=5, evaluations=4)
    command = [sys.executable, "-m", "experiments.report", str(root), f"--out={out}", "--to=wandb"]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "WANDB_MODE": "offline", "WANDB_SILENT": "true", "HOME": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    assert "1 runs handed to wandb" in done.stdout
    (file,) = (out / "wandb").glob("offline-run-*/run-*.wandb")
    content = file.read_bytes()
    assert b"metrics/validation_accuracy" in content
    assert b"simulated" in content


def test_reading_a_report_writes_nothing(tmp_path):
    make_run(tmp_path / "runs" / "a")
    assert len(read_report(tmp_path / "runs", tmp_path / "out").index.runs) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
