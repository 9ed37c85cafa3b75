"""Inference: what is predicted, what it costs, and when it has cost as much as the training."""

import dataclasses
import json
import re
import sys

import jax
import numpy as np
import pytest

from jaxenergy.config import RunConfig
from jaxenergy.errors import UsageError
from jaxenergy.inference import Case, Inference, make_predict, measure_inference
from jaxenergy.measuring import Measurement
from jaxenergy.meters import open_meters
from jaxenergy.training import session
from jaxenergy.training.progress import SilentObserver
from jaxenergy.training.trained import load_trained

CONFIG = RunConfig(
    model="mlp", depth=1, width=32, updates=60, batch_size=64, meters="estimate", idle_seconds=0
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    config = dataclasses.replace(CONFIG, out=str(tmp_path_factory.mktemp("runs")), name="trained")
    return session.run(config, SilentObserver(), {}).path


@pytest.fixture(scope="module")
def trained(folder):
    return load_trained(folder, platform="cpu")


@pytest.fixture(scope="module")
def inference(trained):
    with open_meters("estimate") as meters:
        return measure_inference(
            trained,
            meters,
            batch_sizes=(1, 32),
            precisions=("float32",),
            target_relative_ci=0.5,
            max_seconds=15,
        )


def test_the_network_predicts_as_it_did_when_its_run_evaluated_it(trained, inference):
    final = trained.run.summary["final"]
    assert trained.update == 60
    for case in inference.cases:
        assert case.validation_accuracy == pytest.approx(final["validation_accuracy"])


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_predictions_are_the_largest_logits(trained, precision):
    predict, variables = make_predict(trained, precision)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(variables)} == {precision}
    split = trained.dataset.validation
    predicted = np.asarray(predict(variables, split.inputs))
    assert predicted.shape == split.labels.shape
    assert np.mean(predicted == split.labels) > 0.6


def test_each_case_has_its_joules_and_its_latency(inference):
    single, batch = inference.cases
    for case in inference.cases:
        low_j, high_j = case.ci95_j
        assert 0 < low_j <= case.per_prediction_j <= high_j
        assert case.flops_per_call == pytest.approx(2 * case.batch_size * (64 * 32 + 320), rel=0.3)
        assert 0 < case.latency_median_s <= case.latency_p95_s
    assert batch.per_prediction_j < single.per_prediction_j  # 32 at once share the call's own cost
    assert inference.provenance == "estimated"
    json.dumps(inference.to_json(), allow_nan=False)


def test_after_so_many_predictions_they_have_taken_what_the_training_did(trained, inference):
    case = inference.cases[0]
    found = inference.break_even(case)
    training_j = trained.run.summary["energy_j"]["total"]
    assert found.training_j == training_j
    assert found.predictions * case.per_prediction_j == pytest.approx(training_j)
    assert found.ci95[0] <= found.predictions <= found.ci95[1]


def made_up(trained, per_call_j, ci95_j, **changes) -> tuple[Inference, Case]:
    measurement = Measurement(
        per_call_j=per_call_j,
        ci95_j=ci95_j,
        net_per_call_j=None,
        net_ci95_j=None,
        power_w=None,
        idle_w=None,
        seconds_per_call=0.001,
        first_call_j=None,
        first_call_s=None,
        calls=10,
        windows=10,
        domains=("cpu:estimate",),
        provenance="estimated",
        target_relative_ci=0.02,
        reached_target=True,
        why={} if per_call_j else {"per_call_j": "the counter stood still"},
    )
    case = Case(1, "float32", measurement, 1e6, 0.001, 0.002, 10, 0.9)
    whole = Inference(trained, (case,), ("cpu:estimate",), "estimated", ())
    return dataclasses.replace(whole, **changes), case


@pytest.mark.parametrize(
    ("per_call_j", "ci95_j", "changes", "why"),
    [
        (1.0, (0.9, 1.1), {"provenance": "measured"}, "the training's joules are estimated"),
        (1.0, (0.9, 1.1), {"domains": ("gpu:0",)}, r"these of \['gpu:0'\]"),
        (None, None, {}, "the counter stood still"),
        (1.0, (-0.1, 2.1), {}, "holds zero"),
    ],
)
def test_joules_of_another_kind_give_no_break_even(trained, per_call_j, ci95_j, changes, why):
    inference, case = made_up(trained, per_call_j, ci95_j, **changes)
    found = inference.break_even(case)
    assert found.predictions is found.ci95 is None
    assert re.search(why, found.why)


@pytest.mark.parametrize("device", ["Another CPU", None])
def test_another_cpu_is_another_machine(trained, device):
    config = {**trained.run.config, "resolved": {"device": device}}
    run = dataclasses.replace(trained.run, config=config)
    inference, case = made_up(dataclasses.replace(trained, run=run), 1.0, (0.9, 1.1))
    found = inference.break_even(case)
    assert found.predictions is None
    assert f"ran on {device}, this on" in found.why


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_sizes": (0,)}, "allowed: 1 to"),
        ({"batch_sizes": (1, 1)}, "comes twice"),
        ({"precisions": ("float23",)}, "Did you mean 'float32'"),
    ],
)
def test_impossible_cases_are_refused(trained, settings, message):
    with open_meters("none") as meters, pytest.raises(UsageError, match=message):
        measure_inference(trained, meters, **settings)


def test_a_folder_without_a_trained_network_is_refused(folder, tmp_path):
    with pytest.raises(UsageError, match="no folder"):
        load_trained(tmp_path / "absent", platform="cpu")
    with pytest.raises(UsageError, match="no run"):
        load_trained(tmp_path, platform="cpu")
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(UsageError, match="no checkpoint"):
        load_trained(bare, platform="cpu")
    (bare / "checkpoints").mkdir()
    with pytest.raises(UsageError, match="no checkpoint"):
        load_trained(bare, platform="cpu")


def with_config(folder, tmp_path, **changes):
    copy = tmp_path / "copy"
    copy.mkdir()
    config = json.loads((folder / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, **changes}))
    (copy / "checkpoints").symlink_to(folder / "checkpoints")
    return copy


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "evil:optimizer"},
        {"optimizer": "lookahead", "optimizer_args": "base=evil:optimizer"},
    ],
)
def test_a_plug_in_is_imported_only_where_it_is_named(folder, tmp_path, changes, monkeypatch):
    (tmp_path / "evil.py").write_text("raise SystemExit('it was imported')")
    monkeypatch.syspath_prepend(tmp_path)
    copy = with_config(folder, tmp_path, **changes)
    with pytest.raises(UsageError, match="=evil:optimizer"):
        load_trained(copy, platform="cpu")
    assert "evil" not in sys.modules


def test_other_data_is_refused(folder, tmp_path):
    copy = with_config(folder, tmp_path, resolved={"dataset": {"digest": "sha256:0"}})
    with pytest.raises(UsageError, match="other data"):
        load_trained(copy, platform="cpu")
