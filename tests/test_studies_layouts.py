"""Others' measurements as CSV: what is read from them, and what is said of what cannot be."""

import csv
import math

import pytest

from jaxenergy.errors import UsageError
from jaxenergy.studies import STUDIES, Table, judge
from jaxenergy.studies.core import SUPPORTED
from jaxenergy.studies.layouts import EPOCHS, ZEUS_POWER, ZEUS_TRAIN, read_csv_rows
from jaxenergy.studies.table import ENERGY


def write(path, columns, lines):
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([columns, *lines])
    return path


def zeus(folder, *, dataset="cifar100"):
    """Five batch sizes of which the middle one needs least, four runs each, as Zeus publishes."""
    train, power = [], []
    for size, epochs, seconds, watts in (
        (16, 18, 125.9, 42.0),
        (64, 18, 33.2, 88.7),
        (256, 20, 10.1, 178.3),
        (1024, 60, 7.6, 187.7),
        (4096, 200, 8.4, 171.3),
    ):
        for run in range(1, 5):
            for metric, share in ((0.5, 0.4), (0.6, 1.0), (0.65, math.nan)):
                at = epochs * share * (1 + 0.02 * run)
                line = (dataset, "shufflenetv2", size, "adadelta", "1e-1", run, metric, at)
                train.append(line)
        for limit, slower in ((100, 1.3), (250, 1.0)):
            line = (
                dataset,
                "shufflenetv2",
                size,
                "adadelta",
                limit,
                seconds * slower,
                watts / slower,
            )
            power.append(line)
    return (
        write(folder / "summary_train.csv", ZEUS_TRAIN, train),
        write(folder / "summary_power_v100.csv", ZEUS_POWER, power),
    )


def test_zeus(tmp_path):
    rows = read_csv_rows(zeus(tmp_path))
    assert len(rows) == 20
    assert {row["target.accuracy"] for row in rows} == {0.6}  # nobody reaches 0.65
    first = next(r for r in rows if r["config.batch_size"] == 16 and r["config.seed"] == "1")
    # Epochs x seconds x watts at the highest power limit.
    assert first["energy_j.by_phase.train"] == pytest.approx(18 * 1.02 * 125.9 * 42.0)
    assert first["duration_s"] == pytest.approx(18 * 1.02 * 125.9)
    verdicts = judge(STUDIES["batch_size"], Table(rows))
    u_shape = next(v for v in verdicts if v.quantity == "energy" and "U-shaped" in v.statement)
    assert u_shape.verdict == SUPPORTED
    assert "256" in u_shape.why


def test_a_run_that_did_not_reach_the_metric_is_censored_where_it_was_last_seen(tmp_path):
    train, power = zeus(tmp_path)
    lines = train.read_text().splitlines()
    lines = [
        line.rsplit(",", 1)[0] + ",nan" if ",16,adadelta,1e-1,1,0.6," in line else line
        for line in lines
    ]
    train.write_text("\n".join(lines))
    table = Table(read_csv_rows([train, power]))
    cost, reached = table.to_accuracy(ENERGY)
    assert (~reached).sum() == 1
    assert cost[~reached] == pytest.approx(18 * 0.4 * 1.02 * 125.9 * 42.0)


def optimizers(folder):
    """Two optimizers, three seeds, accuracies by epoch, kilowatt-hours by experiment."""
    epochs, emissions = [], []
    for optimizer, gain in (("SGD", 0.1), ("Adam", 0.2)):
        for seed in range(3):
            name = f"CIFAR10_{optimizer}_seed{seed:02}"
            for epoch in range(1, 6):
                accuracy = min(0.9, gain * epoch + 0.01 * seed)
                epochs.append((name, "CIFAR10", optimizer, seed, epoch, accuracy, 2.0))
            emissions.append((name, 10.0, 1e-4))
    columns = ("experiment_id", "dataset", "optimizer", "seed", "epoch", "val_acc", "epoch_time")
    assert columns == EPOCHS
    return (
        write(folder / "epoch_details.csv", columns, epochs),
        write(folder / "emissions.csv", ("project_name", "duration", "energy_consumed"), emissions),
    )


def test_optimizer_energy_study(tmp_path):
    rows = read_csv_rows(optimizers(tmp_path))
    assert len(rows) == 6
    adam = next(r for r in rows if r["config.optimizer"] == "adam" and r["config.seed"] == "0")
    assert adam["energy_j.total"] == pytest.approx(360.0)  # 1e-4 kWh
    assert adam["provenance"] == "estimated"
    # 80 % of the runs reach 0.51: all but the worst.
    assert adam["target.accuracy"] == 0.51
    assert adam["target.reached_at_update"] == 3
    verdicts = judge(STUDIES["optimizer"], Table(rows))
    assert {v.verdict for v in verdicts if v.quantity == "energy"} == {"void"}
    assert any(v.quantity == "time" and v.effect is not None for v in verdicts)


def test_a_table_of_runs(tmp_path):
    columns = ("config.model", "config.seed", "config.depth", "config.width", "updates")
    columns += ("provenance", "per_update_j.mean", "compiled.cache_hit")
    lines = [
        ("mlp", seed, depth, 64, 100, "measured", depth * (1 + 0.01 * seed), "false")
        for seed in range(3)
        for depth in (2, 4, 8)
    ]
    rows = read_csv_rows([write(tmp_path / "runs.csv", columns, lines)])
    assert rows[0]["compiled.cache_hit"] is False
    assert rows[0]["updates"] == 100
    first = judge(STUDIES["depth"], Table(rows))[0]
    assert (first.verdict, first.quantity) == (SUPPORTED, "energy")


def test_what_is_wrong_is_said(tmp_path):
    train, _ = zeus(tmp_path)
    with pytest.raises(UsageError, match=r"summary_train and Zeus, summary_power"):
        read_csv_rows([train])
    with pytest.raises(UsageError, match="two files"):
        read_csv_rows([train, train])
    with pytest.raises(UsageError, match="No such file"):
        read_csv_rows([tmp_path / "absent.csv"])
    other = write(tmp_path / "other.csv", ("dataset", "network", "batch_size"), [("a", "b", 1)])
    with pytest.raises(UsageError, match=r"no known layout(.|\n)*lacks optimizer"):
        read_csv_rows([other])
    empty = write(tmp_path / "empty.csv", ZEUS_POWER, [])
    with pytest.raises(UsageError, match="no line"):
        read_csv_rows([train, empty])
    line = ("cifar100", "shufflenetv2", 16, "adadelta", 250, "fast", 42)
    wrong = write(tmp_path / "wrong.csv", ZEUS_POWER, [line])
    with pytest.raises(UsageError, match=r"wrong.csv:2: time_per_epoch=fast is no number"):
        read_csv_rows([train, wrong])
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(UsageError, match="no CSV file"):
        read_csv_rows([tmp_path / "binary.csv"])


def test_of_several_data_sets_one_is_named(tmp_path):
    train, power = zeus(tmp_path)
    (tmp_path / "b").mkdir()
    second = zeus(tmp_path / "b", dataset="imagenet")
    for path, more in zip((train, power), second, strict=True):
        path.write_text(path.read_text() + more.read_text().split("\n", 1)[1])
    with pytest.raises(UsageError, match="--dataset=cifar100 or --dataset=imagenet"):
        read_csv_rows([train, power])
    assert len(read_csv_rows([train, power], "imagenet")) == 20
    with pytest.raises(UsageError, match="Did you mean 'imagenet'"):
        read_csv_rows([train, power], "imagenet1k")


def test_runs_without_a_counterpart_are_counted_and_said(tmp_path):
    train, power = zeus(tmp_path)
    lines = power.read_text().splitlines()
    power.write_text("\n".join(line for line in lines if ",4096," not in line))
    said = []
    assert len(read_csv_rows([train, power], say=said.append)) == 16
    assert said == [
        "4 of 20 runs are left out: summary_power lacks their network, batch size and optimizer at "
        "its highest power limit"
    ]
    epochs, emissions = optimizers(tmp_path)
    lines = emissions.read_text().splitlines()
    emissions.write_text("\n".join(lines[:-1]))
    said.clear()
    rows = read_csv_rows([epochs, emissions], say=said.append)
    assert said == [
        f"1 of {len(rows) + 1} experiments are left out: emissions has no project_name of theirs"
    ]


def test_the_hardest_metric_is_told_by_the_runs_that_reach_it(tmp_path):
    # 0.62 takes 10 % more epochs than 0.6, and a fifth of the runs never reach it.
    train, power = zeus(tmp_path)
    with open(train, newline="") as file:
        columns, *lines = list(csv.reader(file))
    for line in [line for line in lines if line[-2] == "0.6"]:
        at = "nan" if line[-3] == "1" and line[2] != "16" else str(1.1 * float(line[-1]))
        lines.append([*line[:-2], "0.62", at])
    rows = read_csv_rows([write(train, columns, lines), power])
    assert {row["target.accuracy"] for row in rows} == {0.62}
