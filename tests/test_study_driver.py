"""`python -m experiments.study` as a user meets it."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import powercap_tree
import pytest
import simulated_nvml
from rich.console import Console

from jaxenergy import sweeps
from jaxenergy.errors import UsageError
from jaxenergy.report.verdicts import print_designs, print_totals
from jaxenergy.studies import STUDIES, Context, running
from jaxenergy.studies.core import UNDECIDED, VERDICTS, judge
from jaxenergy.studies.table import Table


def study(*arguments, cwd, **environment):
    locks = f"--lock_dir={cwd}/locks"  # of its own: a real sweep of this machine is not waited for
    return subprocess.run(
        [sys.executable, "-m", "experiments.study", *arguments, locks],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)


def test_the_list_of_studies(tmp_path):
    ended = study("--list", cwd=tmp_path)
    assert ended.returncode == 0
    for name in STUDIES:
        assert f"\n{name} " in f"\n{ended.stdout}"


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    ended = study("depth", "--budget=smoke", "--out=file", cwd=tmp_path)
    assert ended.returncode == 2, ended.stderr
    assert "file/studies cannot be made" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["dpeth"], "Did you mean 'depth'?"),
        ([], "NAME is missing"),
        (["all", "--budget=huge"], "Allowed: full, gpu, small, smoke."),
        (["all", "--seeds=0"], "--seeds=0"),
        (["depth", "--from_csv=absent.csv"], "absent.csv"),
        (["hardware", "--machines=absent"], "absent is no folder"),
        (["hardware", "--machines=.,."], "2 folders are named"),
        (["depth", "--budget=smoke", "--write_findings=no/f.md"], "no folder no"),
        (["depth", "--budget=smoke", "--write_findings=."], "--write_findings=. is a folder"),
        (["depth", "--budget=smoke", "--meters=nvml2"], "nvml2"),
        (["depth", "extra"], "'extra' is not a flag"),
    ],
)
def test_bad_input(tmp_path, arguments, said):
    ended = study(*arguments, cwd=tmp_path)
    assert ended.returncode == 2, ended.stderr
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr
    assert len(ended.stderr.strip().splitlines()) <= 3


def printed_by(show, *arguments):
    """What a function of the report prints."""
    written = io.StringIO()
    show(*arguments, Console(file=written, width=200, color_system=None))
    return written.getvalue()


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        ([], "2 runs in all, since studies share them; 0 left\n"),
        ([None, None], "; 2 left, of unknown length\n"),
        ([30.0, 60.0], "; 2 left, about 1 min 30 s\n"),
        ([30.0, None], "; 2 left, about 30.0 s and 1 of unknown length\n"),
    ],
    ids=["done", "unknown", "known", "some"],
)
def test_a_dry_run_gives_no_time_where_none_is_known(tmp_path, seconds, said):
    configs = Context("smoke").run(seed=0), Context("smoke").run(seed=1)
    planned = sweeps.plan(configs)
    cells = [sweeps.CellResult(c, "waiting", "", None, c.run_id) for c in planned.cells]
    predictions = {str(n): sweeps.Prediction(value, "") for n, value in enumerate(seconds)}
    forecast = sweeps.Forecast(sweeps.SweepResult(planned, tuple(cells), tmp_path), predictions)
    assert said in printed_by(print_designs, {"depth": configs}, forecast)


def test_the_end_names_the_file_or_the_folder():
    records = [{"provenance": "none", "verdicts": []}] * 2
    files = [Path("runs/studies/depth.json"), Path("runs/studies/flops.json")]
    one = printed_by(print_totals, records[:1], files[:1])
    assert one.endswith("energy: none; runs/studies/depth.json\n")
    assert printed_by(print_totals, records, files).endswith("; 2 files in runs/studies\n")


def test_others_measurements(tmp_path):
    header = (
        "config.model,config.seed,config.depth,config.width,updates,provenance,per_update_j.mean"
    )
    lines = [f"mlp,{s},{d},64,100,measured,{d + 0.01 * s}" for s in range(3) for d in (2, 4, 8)]
    (tmp_path / "runs.csv").write_text("\n".join([header, *lines]))
    own = tmp_path / "runs/studies/depth.json"
    own.parent.mkdir(parents=True)
    own.write_text("{}")
    ended = study("depth", "--from_csv=runs.csv", "--write_findings=findings.md", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert own.read_text() == "{}"
    record = json.loads((tmp_path / "runs/studies/depth-csv.json").read_text())
    assert record["budget"] == "csv"
    assert record["provenance"] == "measured"
    assert record["verdicts"][0]["verdict"] == "supported"
    assert record["command"] == "python -m experiments.study depth --from_csv=runs.csv"
    text = (tmp_path / "findings.md").read_text()
    assert "MEASURED" in text.splitlines()[0]
    assert "](" not in text  # no link to what is not there


def test_the_command_that_findings_show_says_that_a_folder_was_given(tmp_path):
    header = "config.model,config.seed,config.depth,updates,provenance,per_update_j.mean"
    (tmp_path / "runs.csv").write_text(f"{header}\nmlp,0,2,100,measured,1\n")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/studies.md").write_text("")
    flags = ["--from_csv=runs.csv", "--out=mine", "--write_findings=docs/findings.md"]
    ended = study("depth", *flags, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    text = (tmp_path / "docs/findings.md").read_text()
    assert "python -m experiments.study depth --from_csv=runs.csv --out=OUT\n" in text
    assert "](studies.md)" in text


def test_runs_are_done_once_and_joules_are_not_judged(tmp_path):
    ended = study("iterations", "--budget=smoke", "--meters=estimate", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr + ended.stdout
    record = json.loads((tmp_path / "runs/studies/iterations.json").read_text())
    assert record["provenance"] == "estimated"
    for verdict in record["verdicts"]:
        assert verdict["verdict"] == ("void" if verdict["quantity"] == "energy" else "undecided")
    runs = sorted(path.parent.name for path in (tmp_path / "runs").glob("*/summary.json"))
    assert sorted(name.partition("-")[0] for name in runs) == sorted(record["runs"])
    assert oct((tmp_path / "runs/studies/compiled").stat().st_mode)[-3:] == "700"
    written = [(tmp_path / "runs" / name / "summary.json").stat().st_mtime_ns for name in runs]
    again = study("iterations", "--budget=smoke", "--meters=estimate", cwd=tmp_path)
    assert again.returncode == 0
    assert written == [
        (tmp_path / "runs" / name / "summary.json").stat().st_mtime_ns for name in runs
    ]


def run_with(monkeypatch, folder, name, probe, outcome=("completed", "")):
    """A study of which nothing is run but `probe`, and whose runs have `outcome`: state and why."""

    def swept(planned, *, out, **_):
        state, why = outcome
        cells = [sweeps.CellResult(c, state, why, None, c.run_id) for c in planned.cells]
        return sweeps.SweepResult(planned, tuple(cells), out)

    monkeypatch.setattr(sweeps, "run", swept)
    monkeypatch.setattr(sweeps, "find_devices", lambda *_: ("cpu",))
    monkeypatch.setattr(running, "run_probe", probe)
    request = running.Request(
        names=(name,),
        context=Context("smoke", settings={"meters": "none", "out": str(folder)}),
        out=folder,
        meters="none",
        powercap_root="/sys/class/powercap",
        lock_dir=str(folder / "locks"),
        command="",
    )
    return running.run(request, sweeps.SilentObserver())


def nothing_probed(*_):
    return {"provenance": "none", "rows": [], "why": "no counter"}


def test_the_probe_has_its_device_to_itself(monkeypatch, tmp_path):
    refusals = []

    def probe(*_):
        with pytest.raises(UsageError) as error:
            sweeps.DeviceLocks(["cpu"], tmp_path / "locks", who="another", wait=False)
        refusals.append(str(error.value))
        return nothing_probed()

    run_with(monkeypatch, tmp_path, "instrument", probe)
    assert "a study that measures into" in refusals[0]
    sweeps.DeviceLocks(["cpu"], tmp_path / "locks", who="another", wait=False).release()


@pytest.mark.parametrize(
    ("outcome", "status"),
    [
        (("failed", "the training loss became nan within update 7"), 0),
        (("failed", "the network's output is not finite after update 7"), 0),
        (("failed", "out of memory"), 1),
        (("unfinished", "its process was ended by SIGKILL"), 1),
    ],
)
def test_set_ups_that_diverge_are_no_fault(monkeypatch, tmp_path, outcome, status):
    result = run_with(monkeypatch, tmp_path, "iterations", nothing_probed, outcome)
    assert result.failed
    assert result.exit_status == status


def test_the_probe_on_a_simulated_counter():
    from jaxenergy.studies.probe import probe

    record = probe("simulated", "/sys/class/powercap", rounds=1, seconds=0.15)
    assert record["provenance"] == "simulated"
    assert {row["probe"] for row in record["rows"]} == {"idle", "random", "zeros", "square"}
    square = next(row for row in record["rows"] if row["probe"] == "square")
    assert 0.2 < square["duty"] <= 1
    assert all(row["power_w"] is not None and row["power_w"] > 0 for row in record["rows"])


@pytest.mark.slow
def test_the_probe_holds_an_energy_counter_against_integrated_power(tmp_path, monkeypatch):
    from jaxenergy.studies.probe import run_probe

    card = simulated_nvml.Card(power_w=300.0, counter_scale=0.5)
    simulated_nvml.Cards(tmp_path / "state", [card]).write()
    library = simulated_nvml.build(tmp_path)
    for name, value in simulated_nvml.environment(library, tmp_path / "state").items():
        monkeypatch.setenv(name, value)
    record = run_probe(tmp_path / "probe.json", "nvml", "/sys/class/powercap", 1, 1.0)
    assert len(record["rows"]) == 4
    for row in record["rows"]:
        assert row["counter_j"] / row["integral_j"] == pytest.approx(0.5, rel=0.05)


def test_the_same_counter_read_twice_is_no_check_of_it(tmp_path, monkeypatch):
    from jaxenergy.studies import probe

    monkeypatch.setattr(probe, "_SETTLE_S", 0.02)
    tree = powercap_tree.intel_mmio(tmp_path / "powercap")
    with powercap_tree.Writer(tree):
        record = probe.probe("rapl", str(tree.root), rounds=5, seconds=0.1)
    assert record["provenance"] == "measured"
    *_, integral = judge(STUDIES["instrument"], Table(record["rows"]))
    assert "integrated power" in integral.statement
    assert integral.verdict == UNDECIDED
    assert "readings of power beside it" in integral.why


@pytest.mark.slow
def test_all_at_the_smoke_budget(tmp_path):
    ended = study(
        "all", "--budget=smoke", "--meters=simulated", "--write_findings=f.md", cwd=tmp_path
    )
    assert ended.returncode == 0, ended.stderr + ended.stdout
    for name in STUDIES:
        record = json.loads((tmp_path / f"runs/studies/{name}.json").read_text())
        assert record["verdicts"]
        assert {v["verdict"] for v in record["verdicts"]} <= {*VERDICTS} - {"supported"}, name
    assert "SIMULATED" in (tmp_path / "f.md").read_text().splitlines()[0]
