"""Reading runs: flat rows, states with reasons, and folders that were made to do harm."""

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxenergy.errors import UsageError
from jaxenergy.records import RecordError, read_run, read_runs
from jaxenergy.records.files import MAX_DEPTH, dump_json, parse_json, plain_text
from jaxenergy.records.schema import SCHEMA, STATES

CONFIG = {"id": "0123456789", "optimizer": "sgd", "updates": 80, "name": None, "plan": {"calls": 2}}
SUMMARY = {
    "schema": SCHEMA,
    "status": "completed",
    "updates": 60,
    "target": None,
    "energy_j": {
        "counted_domains": ["gpu:0", "cpu:package-0"],
        "total": 12.5,
        "by_phase": {"train": 12.5, "eval": None},
    },
    "per_update_j": {"mean": 0.5, "ci95": [0.4, 0.6], "windows": 12},
    "per_example_j": {"mean": None, "why": "two windows are needed"},
}
WINDOW = {"phase": "train", "start_ns": 0, "end_ns": 1, "energy_j": {"gpu:0": 1.0}}


def make_run(folder, config=CONFIG, summary=SUMMARY):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    if summary is not None:
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def test_a_row_is_flat_and_keeps_config_and_result_apart(tmp_path):
    path = make_run(tmp_path / "sweep" / "a")
    (row,) = read_runs(tmp_path)
    assert row == {
        "path": str(path),
        "name": "a",
        "state": "completed",
        "why": "",
        "config.id": "0123456789",
        "config.optimizer": "sgd",
        "config.updates": 80,
        "config.name": None,
        "config.plan.calls": 2,
        "schema": SCHEMA,
        "status": "completed",
        "updates": 60,
        "target": None,
        "energy_j.counted_domains": "gpu:0, cpu:package-0",
        "energy_j.total": 12.5,
        "energy_j.by_phase.train": 12.5,
        "energy_j.by_phase.eval": None,
        "per_update_j.mean": 0.5,
        "per_update_j.ci95_low": 0.4,
        "per_update_j.ci95_high": 0.6,
        "per_update_j.windows": 12,
        "per_example_j.mean": None,
        "per_example_j.why": "two windows are needed",
    }
    assert read_runs(path) == [row]


def test_states_and_the_order_of_rows(tmp_path):
    make_run(tmp_path / "e")
    make_run(tmp_path / "d", summary={**SUMMARY, "status": "target_reached"})
    make_run(tmp_path / "c", summary={**SUMMARY, "status": "preempted"})
    failed = {**SUMMARY, "status": "failed", "why": {"status": "the loss became nan"}}
    make_run(tmp_path / "b", summary=failed)
    make_run(tmp_path / "a" / "deep", summary=None)
    make_run(tmp_path / "e.old-1")
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("")
    rows = read_runs(tmp_path)
    assert [(row["name"], row["state"]) for row in rows] == [
        ("deep", "unfinished"),
        ("b", "failed"),
        ("c", "unfinished"),
        ("d", "completed"),
        ("e", "completed"),
    ]
    assert [bool(row["why"]) for row in rows] == [True, True, True, False, False]
    assert rows[1]["why"] == "the loss became nan"
    assert read_runs(tmp_path, superseded=True)[-1]["name"] == "e.old-1"


def test_a_run_in_progress_is_read_without_the_line_being_written(tmp_path):
    path = make_run(tmp_path / "a", summary=None)
    (path / "windows.jsonl").write_text(json.dumps(WINDOW) + '\n{"phase": "tr')
    run = read_run(path)
    assert run.windows == [WINDOW]
    assert run.metrics == []
    assert run.environment is None
    assert (run.state, run.name) == ("unfinished", "a")


def test_what_is_no_folder_is_refused(tmp_path):
    for read in (read_run, read_runs):
        with pytest.raises(UsageError, match="is no folder"):
            read(tmp_path / "absent")


NESTED = "[" * 100_000 + "]" * 100_000
HOSTILE = {
    "deep": ('{"schema": 1, "status": ' + NESTED + "}", "nested too deeply"),
    "rather deep": ('{"a": ' + "[" * 40 + "]" * 40 + "}", "nested deeper"),
    "huge integer": ('{"schema": 1, "updates": ' + "9" * 100_000 + "}", "out of range"),
    "large integer": ('{"updates": 18446744073709551616}', "out of range"),
    "huge float": ('{"updates": 1e999}', "out of range"),
    "NaN": ('{"updates": NaN}', "NaN is no JSON number"),
    "giant": (" " * (2 << 20), "larger than"),
    "array": ("[1]", "no JSON object"),
    "empty": ("", "not strict JSON"),
    "binary": ("\udcff\udcfe\x00", "not strict JSON"),
    "newer": ('{"schema": 2, "status": "completed"}', "newer than 1"),
    "no schema": ('{"status": "completed"}', "no schema number"),
    "text schema": ('{"schema": "1", "status": "completed"}', "no schema number"),
    "odd status": ('{"schema": 1, "status": "\\u001b[2Jgone"}', "unknown status"),
    "status list": ('{"schema": 1, "status": ["completed"]}', "unknown status"),
    "wide": (json.dumps({**SUMMARY, **{f"k{i}": i for i in range(5000)}}), "at most 2000"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_summary_gives_a_row_with_the_reason_and_leaves_the_others(tmp_path, case):
    text, reason = HOSTILE[case]
    make_run(tmp_path / "good")
    bad = make_run(tmp_path / "bad", summary=None)
    (bad / "summary.json").write_text(text, errors="surrogateescape")
    row, good = read_runs(tmp_path)
    assert row["state"] == "foreign"
    assert reason in row["why"]
    assert row["why"].isprintable()
    assert len(row["why"]) < 400
    assert good["state"] == "completed"


@pytest.mark.parametrize(
    ("config", "reason"),
    [("{", "strict JSON"), ("{}", "no id"), ('{"id": 7}', "no id"), ('{"id":"a","schema":9}', "9")],
)
def test_a_corrupt_config_gives_the_reason(tmp_path, config, reason):
    path = make_run(tmp_path / "a")
    (path / "config.json").write_text(config)
    (row,) = read_runs(tmp_path)
    assert row["state"] == "foreign"
    assert reason in row["why"]


def test_a_folder_of_lines_without_a_config_is_said(tmp_path):
    (tmp_path / "windows.jsonl").write_text("")
    assert read_run(tmp_path).why == "it has no config.json"


def test_files_that_would_hang_or_lead_away_are_not_read(tmp_path):
    secret = make_run(tmp_path / "outside" / "secret")
    runs = tmp_path / "runs"
    for name in ("fifo", "link", "folder"):
        (make_run(runs / name) / "summary.json").unlink()
    os.mkfifo(runs / "fifo" / "summary.json")
    (runs / "link" / "summary.json").symlink_to(secret / "summary.json")
    (runs / "folder" / "summary.json").mkdir()
    (runs / "out").symlink_to(tmp_path / "outside")
    (runs / "latest").symlink_to("link")  # within the tree: the run is found once, by itself
    (runs / "circle").symlink_to("circle")
    (runs / "nowhere").symlink_to("absent")
    rows = {row["name"]: row for row in read_runs(runs)}
    assert set(rows) == {"fifo", "link", "folder", "out"}
    assert {row["state"] for row in rows.values()} == {"foreign"}
    assert "no plain file" in rows["fifo"]["why"]
    assert "symbolic link" in rows["link"]["why"]
    assert "no plain file" in rows["folder"]["why"]
    assert "leads out" in rows["out"]["why"]


def test_folders_nested_without_end_are_given_up(tmp_path):
    path = tmp_path
    for _ in range(100):
        path = path / "x"
    make_run(path)
    (row,) = read_runs(tmp_path)
    assert "nested deeper" in row["why"]


def test_script_stays_text_and_control_characters_are_escaped(tmp_path):
    name = "<img src=x onerror=alert(1)>\x1b[2J"
    make_run(tmp_path / name, {**CONFIG, "optimizer": "a\x1b]0;b\x07\ud800", "x\x1by": "é" * 5000})
    (row,) = read_runs(tmp_path)
    assert row["name"] == r"<img src=x onerror=alert(1)>\x1b[2J"
    assert row["config.optimizer"] == r"a\x1b]0;b\x07\ud800"
    assert row[r"config.x\x1by"] == "é" * 999 + "…"


def test_a_file_cannot_take_the_place_of_a_rows_own_columns(tmp_path):
    path = make_run(tmp_path / "a", summary={**SUMMARY, "path": "/etc", "state": "x", "name": "b"})
    (row,) = read_runs(tmp_path)
    assert (row["path"], row["state"], row["name"]) == (str(path), "completed", "a")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"phase": "train"', "line 2 is not strict JSON"),
        ('{"phase": 1}', "line 2: it has neither phase nor event"),
        ('{"event": "rollback", "to_update": -1}', "line 2: to_update is -1"),
        (
            '{"event": "rollback", "to_update": 2, "evaluated_at": null}',
            "line 2: evaluated_at is None",
        ),
        ('{"phase": "train", "start_ns": 0.5, "end_ns": 1, "energy_j": {}}', "line 2: start_ns"),
        (
            '{"phase": "train", "start_ns": 0, "end_ns": 1, "energy_j": {"a": "1"}}',
            "line 2: energy_j",
        ),
        ('{"phase": "train", "start_ns": 0, "end_ns": 1}', "line 2: energy_j"),
        ('{"phase": "train", "updates": true}', "line 2: updates is True"),
        ('{"phase": "train", "start_ns": 0, "end_ns": 1, "energy_j": {}, "why": 1}', "line 2: why"),
        ("x" * 100_000, "line 2 is longer than"),
        ("", "line 2 is not strict JSON"),
    ],
)
def test_a_line_that_no_run_writes_is_refused_by_its_number(tmp_path, line, reason):
    path = make_run(tmp_path / "a")
    (path / "windows.jsonl").write_text(json.dumps(WINDOW) + "\n" + line + "\n")
    with pytest.raises(RecordError, match=reason):
        _ = read_run(path).windows


@pytest.mark.parametrize("line", ["{}", '{"update": 1, "train_loss": "low"}', '{"update": -1}'])
def test_a_line_of_metrics_is_checked_too(tmp_path, line):
    path = make_run(tmp_path / "a")
    (path / "metrics.jsonl").write_text(line + "\n")
    with pytest.raises(RecordError, match=r"metrics\.jsonl: line 1"):
        _ = read_run(path).metrics


def test_a_giant_sparse_file_is_not_read(tmp_path):
    path = make_run(tmp_path / "a")
    with open(path / "windows.jsonl", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(RecordError, match="larger than"):
        _ = read_run(path).windows


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(st.text(), json_values, max_size=6))
def test_what_is_written_is_read_back(value):
    assert parse_json(dump_json(value, "x").encode(), "x") == value


@given(st.binary(max_size=200) | json_values.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_parsed_or_refused(content):
    try:
        value, refusal = parse_json(content, "x"), ""
    except RecordError as error:
        value, refusal = {}, str(error)
    assert isinstance(value, dict)
    assert refusal.isprintable()


@given(st.text(st.characters(exclude_categories=()), max_size=50), st.integers(1, 60))
def test_plain_text_can_be_printed_and_is_bounded(text, limit):
    plain = plain_text(text, limit)
    assert plain.isprintable()
    plain.encode()
    assert len(plain) <= 10 * limit
    if text.isprintable() and len(text) <= limit:
        assert plain == text


def test_depth_is_allowed_up_to_the_bound():
    def nested(levels):
        return b'{"a": ' + b"[" * levels + b"]" * levels + b"}"

    assert parse_json(nested(MAX_DEPTH), "x")
    with pytest.raises(RecordError, match="nested deeper"):
        parse_json(nested(MAX_DEPTH + 1), "x")


@given(config=json_values, summary=json_values)
def test_no_content_of_the_two_files_stops_the_reader(tmp_path_factory, config, summary):
    folder = tmp_path_factory.getbasetemp() / "any"
    folder.mkdir(exist_ok=True)
    if isinstance(config, dict):
        config["id"] = "a"
    if isinstance(summary, dict):
        summary |= {"schema": SCHEMA, "status": "failed"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "summary.json").write_text(json.dumps(summary))
    (row,) = read_runs(folder)
    assert row["state"] in STATES
    assert all(value is None or isinstance(value, str | int | float) for value in row.values())
    assert all(isinstance(key, str) and key.isprintable() for key in row)
