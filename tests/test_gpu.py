"""What only a real NVIDIA GPU can show; `./launch.sh test --gpu` or `benchmarks/gpu.sh tests`.

On simulated cards the same code is held to numbers. Here it is held to the card: that the joules
are those of the device that computes, that they are its counter's own, that a fence waits for it.
"""

import dataclasses
import functools
import math
import os
import subprocess
import sys
import time

import numpy as np
import pytest

from jaxenergy import data, models
from jaxenergy.config import RunConfig
from jaxenergy.energy import Ledger
from jaxenergy.meters import open_meters
from jaxenergy.models import forms
from jaxenergy.records import read_run
from jaxenergy.training.plan import make_plan

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module", autouse=True)
def jax_on_gpu():
    """JAX, computing on a GPU and leaving most of its memory to the runs these tests start."""
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # read when JAX first meets the GPU
    import jax

    device = jax.devices()[0]
    assert device.platform == "gpu", f"JAX computes on {device.platform}: {device.device_kind}"
    return jax


@pytest.fixture
def meters():
    from jaxenergy.measuring import read_jax_devices

    with open_meters("nvml", read_jax_devices()[:1]) as opened:
        yield opened


@pytest.fixture(scope="module")
def work(jax_on_gpu):
    """A compiled function that keeps the GPU busy for about a second, and its argument."""
    jax = jax_on_gpu

    @functools.partial(jax.jit, static_argnums=1)
    def multiply(matrix, times):
        def body(_, x):
            x = x @ matrix
            return x / jax.numpy.abs(x).max()

        return jax.lax.fori_loop(0, times, body, matrix)

    matrix = jax.random.normal(jax.random.key(0), (8192, 8192))
    jax.block_until_ready(multiply(matrix, 16))
    begun_s = time.perf_counter()
    jax.block_until_ready(multiply(matrix, 16))
    times = math.ceil(16 / (time.perf_counter() - begun_s))
    jax.block_until_ready(multiply(matrix, times))
    return lambda: multiply(matrix, times)


def run(out, *flags):
    """A small run in a process of its own, to its end."""
    command = [sys.executable, "-m", "experiments.run", f"--out={out}", "--name=run"]
    ended = subprocess.run(
        [*command, "--updates=400", "--idle_seconds=1", *flags],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return read_run(out / "run")


def assert_measured_on_gpu(record) -> dict:
    assert record.environment["devices"][0]["platform"] == "gpu"
    summary = record.summary
    assert summary["status"] == "completed"
    assert summary["provenance"] == "measured"
    assert "gpu:0" in summary["energy_j"]["counted_domains"]
    assert summary["energy_j"]["by_domain"]["gpu:0"] > 0
    for line in record.windows:
        assert line["energy_j"]["gpu:0"] is not None, line["why"]
    assert math.isfinite(summary["final"]["train_loss"])
    return summary


def test_a_run_ends_with_measured_joules_of_the_gpu(tmp_path):
    summary = assert_measured_on_gpu(run(tmp_path))
    assert summary["final"]["test_accuracy"] > 0.9


def test_a_run_in_bfloat16_works(tmp_path):
    assert_measured_on_gpu(run(tmp_path, "--precision=bfloat16"))


def test_phases_add_up_to_the_difference_of_the_cards_own_counter(jax_on_gpu, meters, work):
    (counter,) = meters.counters
    begin_j = counter.read_j()
    with Ledger(meters, fence=jax_on_gpu.block_until_ready) as ledger:
        for _ in range(3):
            with ledger.phase("idle"):
                time.sleep(0.4)
            with ledger.phase("train", updates=1) as phase:
                phase.fence(work())
        with ledger.phase("idle"):
            time.sleep(0.4)
        end_j = counter.read_j()
    powers_w = [
        1e9 * line["energy_j"]["gpu:0"] / (line["end_ns"] - line["start_ns"])
        for line in ledger.lines
    ]
    sum_j = math.fsum(line["energy_j"]["gpu:0"] for line in ledger.lines)
    # Each of the two readings is up to a tick old.
    assert abs(sum_j - (end_j - begin_j)) <= 2 * counter.domain.tick_s * max(powers_w)
    busy_w = [p for p, line in zip(powers_w, ledger.lines, strict=True) if line["phase"] == "train"]
    idle_w = [p for p, line in zip(powers_w, ledger.lines, strict=True) if line["phase"] == "idle"]
    assert min(busy_w) > max(idle_w)


def test_the_fence_waits_for_work_that_was_dispatched(jax_on_gpu, meters, work):
    ledger = Ledger(meters, fence=jax_on_gpu.block_until_ready)
    with ledger, ledger.phase("train", updates=1) as phase:
        output = work()
        assert not output.is_ready()  # it was dispatched, and goes on
        phase.fence(output)
        assert output.is_ready()
    (line,) = [line for line in ledger.lines if line["phase"] == "train"]
    assert line["fenced"]
    assert line["energy_j"]["gpu:0"] > 0


def test_the_card_that_is_metered_is_the_one_that_computes(jax_on_gpu, meters):
    import pynvml

    from jaxenergy.meters.nvml import list_gpus

    metered = meters.describe()["nvml"]["gpus"]["gpu:0"]
    (gpu,) = [gpu for gpu in list_gpus(pynvml) if gpu.uuid == metered["uuid"]]
    before = pynvml.nvmlDeviceGetMemoryInfo(gpu.handle).used
    numbers = jax_on_gpu.block_until_ready(jax_on_gpu.numpy.zeros(2**29))
    assert pynvml.nvmlDeviceGetMemoryInfo(gpu.handle).used - before > 0.9 * numbers.nbytes


def test_what_cublas_and_cudnn_compute_is_counted(jax_on_gpu):
    from jaxenergy.training.programs import compile_programs, transfer

    config = RunConfig(model="cnn", depth=2, width=64, optimizer="sgd", updates=1)
    plan = make_plan(config, data.load(config.dataset), "gpu")
    on_cpu = jax_on_gpu.local_devices(backend="cpu")[0]
    with jax_on_gpu.default_device(on_cpu):
        expected = compile_programs(plan, transfer(plan), "cpu").facts["flops_per_update"]
    facts = compile_programs(plan, transfer(plan), "gpu").facts
    assert facts["flops_per_update"] == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_a_program_is_the_same_in_pytorch_although_products_may_be_rounded(jax_on_gpu, model):
    pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")
    from jaxenergy import torch_twin

    config = RunConfig(model=model, depth=2, width=16, optimizer="sgd", updates=1)
    plan = make_plan(config, data.load(config.dataset), "gpu")
    variables = jax_on_gpu.jit(plan.program.model.init)(jax_on_gpu.random.key(0))
    torch_twin.check_parity(plan.program, variables, device="cuda").require()


@pytest.mark.parametrize(
    ("family", "length", "precision", "taken"),
    [
        ("convnext", None, "bfloat16", {"depthwise_small"}),
        ("lstm", 32, "bfloat16", {"deferred_products"}),
        ("lstm", 32, "float32", {"deferred_products"}),
        ("transformer_lm", 256, "bfloat16", {"flash_attention"}),
    ],
)
def test_forms_have_the_gradients_of_plain_flax(jax_on_gpu, family, length, precision, taken):
    """In bfloat16 as near to those of float32 as plain Flax's are; in float32 the same."""
    jax, jnp = jax_on_gpu, jax_on_gpu.numpy
    tokens, rng = length is not None, np.random.default_rng(0)
    shape = (length,) if tokens else (8, 8, 3)
    inputs = rng.integers(0, 5, (64, *shape)) if tokens else rng.normal(size=(64, *shape))
    inputs = jnp.asarray(inputs, jnp.int32 if tokens else jnp.float32)
    labels = rng.choice(5, inputs.shape if tokens else 64, p=[0.6, *[0.1] * 4])
    plain = models.build(
        family, input_shape=shape, classes=5, depth=1, width=32, precision=precision
    )
    formed = dataclasses.replace(plain, forms=forms.forms_of("gpu"))
    if not jax.devices()[0].compute_capability.startswith("9."):
        taken = taken - {"flash_attention"}
    assert set(formed.forms_taken(64)) == taken
    params = jax.jit(plain.init)(jax.random.key(0))["params"]

    def gradients(model, dtype):
        model = dataclasses.replace(model, module=model.module.clone(dtype=jnp.dtype(dtype)))

        def loss(params):
            logits, _ = model.apply({"params": params}, inputs, train=True)
            return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], -1).mean()

        with jax.default_matmul_precision("highest"):
            return list(map(np.asarray, jax.tree.leaves(jax.jit(jax.grad(loss))(params))))

    wanted = gradients(plain, "float32")

    def distances(found):
        return [
            float(np.linalg.norm(got - want) / np.linalg.norm(want))
            for got, want in zip(found, wanted, strict=True)
        ]

    most = 0.03 if precision == "bfloat16" else 1e-4
    assert max(distances(gradients(plain, precision))) < most
    assert max(distances(gradients(formed, precision))) < most
