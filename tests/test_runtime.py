"""`runtime.prepare` as drivers have it: in a process for each case, since its settings stay."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxenergy import runtime

PREPARE = "import json; from jaxenergy import runtime; print(json.dumps(runtime.prepare()))"
YNN = "--xla_cpu_experimental_ynn_fusion_type"


def run_python(code: str, home: Path, **variables: str) -> str:
    """Runs code where `variables` are all that `prepare` finds in the environment."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("JAX_", "XLA_", "MALLOC_", "XDG_", "GLIBC_", "LD_PRELOAD"))
    }
    environment = {**kept, "HOME": str(home), "JAX_PLATFORMS": "cpu", **variables}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def prepare(home: Path, **variables: str) -> dict:
    return json.loads(run_python(PREPARE, home, **variables))


def test_import_sets_nothing(tmp_path):
    code = "import os; old = dict(os.environ); import jaxenergy.runtime; print(old == os.environ)"
    assert run_python(code, tmp_path) == "True\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MALLOC_ARENA_MAX", "2"),
        ("GLIBC_TUNABLES", "glibc.malloc.trim_threshold=128"),
    ],
)
def test_allocator_chosen_by_the_user_is_left_alone(tmp_path, name, value):
    allocator = prepare(tmp_path, **{name: value})["allocator"]
    assert allocator["settings"] == {}
    assert name in allocator["why"]


# An update that makes new buffers of 40 MB, more than glibc keeps of itself. The heap takes its
# form in the first dozen updates.
COUNT_FAULTS = """
import resource
from jaxenergy import runtime
{prepare}
import jax, jax.numpy as jnp
update = jax.jit(lambda x: jnp.tanh(x) + 1)
x = jnp.ones((10, 2**20))
for _ in range(15):
    x = update(x).block_until_ready()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    x = update(x).block_until_ready()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="sets glibc's malloc")
def test_a_warm_update_costs_no_page_faults(tmp_path):
    plain = int(run_python(COUNT_FAULTS.format(prepare=""), tmp_path))
    prepared = int(run_python(COUNT_FAULTS.format(prepare="runtime.prepare()"), tmp_path))
    assert prepared < plain / 4


def test_flags_are_added_to_those_of_the_user_and_xla_takes_them(tmp_path):
    code = f"{PREPARE}; import os, jax; print(os.environ['XLA_FLAGS']); jax.devices()"
    answer, in_force = run_python(
        code, tmp_path, XLA_FLAGS="--xla_cpu_use_xnnpack=false"
    ).splitlines()
    flags = json.loads(answer)["xla_flags"]
    assert in_force == flags["value"]
    assert in_force.split() == ["--xla_cpu_use_xnnpack=false", *flags["added"]]
    assert [flag.partition("=")[0] for flag in flags["added"]] == [YNN]


def test_flag_set_by_the_user_stays(tmp_path):
    value = f"{YNN}=LIBRARY_FUSION_TYPE_DOT"
    flags = prepare(tmp_path, XLA_FLAGS=value)["xla_flags"]
    assert flags == {"value": value, "added": [], "why": {YNN: "set in XLA_FLAGS"}}


def test_a_file_of_flags_stays(tmp_path):
    flags = prepare(tmp_path, XLA_FLAGS="flags.txt")["xla_flags"]
    assert (flags["value"], flags["added"]) == ("flags.txt", [])


@pytest.mark.parametrize("version", ["0.9.2", "0.13.0", "0.10.3.dev20260101"])
def test_untried_jaxlib_gets_no_flag(tmp_path, version):
    installed = tmp_path / "site" / f"jaxlib-{version}.dist-info"
    installed.mkdir(parents=True)
    (installed / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: jaxlib\nVersion: {version}\n"
    )
    search_path = os.pathsep.join([str(installed.parent), *sys.path])
    flags = prepare(tmp_path, PYTHONPATH=search_path)["xla_flags"]
    assert flags["added"] == []
    assert "not tried on jaxlib" in flags["why"][YNN]


def test_compiled_programs_are_kept_for_the_user_alone(tmp_path):
    code = f"""
{PREPARE}
import jax, jax.monitoring
events = []
jax.monitoring.register_event_listener(lambda event, **_: events.append(event.split("/")[-1]))
jax.jit(lambda x: x * 2 + 1)(1.0)
print("cache_hits" in events, "cache_misses" in events)
"""
    first, second = run_python(code, tmp_path), run_python(code, tmp_path)
    cache = tmp_path / ".cache" / "jaxenergy" / "xla"
    assert json.loads(first.splitlines()[0])["compilation_cache"]["directory"] == str(cache)
    assert first.splitlines()[1] == "False True"
    assert second.splitlines()[1] == "True False"
    assert cache.stat().st_mode & 0o777 == 0o700


def test_place_of_the_cache_follows_xdg(tmp_path):
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    cache = prepare(home, XDG_CACHE_HOME=str(elsewhere))["compilation_cache"]
    assert cache["directory"] == str(elsewhere / "jaxenergy" / "xla")


def test_cache_chosen_by_the_user_stays(tmp_path):
    chosen = str(tmp_path / "chosen")
    cache = prepare(tmp_path, JAX_COMPILATION_CACHE_DIR=chosen)["compilation_cache"]
    assert cache == {"directory": chosen, "why": "JAX_COMPILATION_CACHE_DIR is set"}


def test_cache_open_to_others_is_not_used(tmp_path):
    cache = tmp_path / ".cache" / "jaxenergy" / "xla"
    cache.mkdir(parents=True)
    cache.chmod(0o770)
    answer = prepare(tmp_path)["compilation_cache"]
    assert answer == {"directory": None, "why": f"{cache} is open to others: chmod 700 it"}


def test_cache_that_is_a_link_is_not_used(tmp_path):
    target = tmp_path / "target"
    target.mkdir(mode=0o700)
    cache = tmp_path / ".cache" / "jaxenergy" / "xla"
    cache.parent.mkdir(parents=True)
    cache.symlink_to(target)
    answer = prepare(tmp_path)["compilation_cache"]
    assert answer["directory"] is None
    assert "not a folder of this user's own" in answer["why"]


def test_no_place_for_a_cache(tmp_path):
    (tmp_path / ".cache").write_text("a file where the folder should be")
    answer = prepare(tmp_path)["compilation_cache"]
    assert answer["directory"] is None
    assert "no folder for it" in answer["why"]


def test_after_jax_it_is_too_late_and_nothing_is_touched(tmp_path):
    code = f"import os, jax; before = dict(os.environ)\n{PREPARE}\nprint(before == os.environ)"
    answer, same = run_python(code, tmp_path).splitlines()
    prepared = json.loads(answer)
    assert same == "True"
    assert prepared["allocator"] == {"settings": {}, "why": "jax was imported before"}
    assert prepared["xla_flags"]["added"] == []
    assert prepared["compilation_cache"]["directory"] is None


@pytest.mark.parametrize(
    ("variables", "threads"),
    [
        ({}, len(os.sched_getaffinity(0))),
        ({"NPROC": "3"}, 3),
        ({"NPROC": "3", "PJRT_NPROC": "5"}, 5),
        ({"NPROC": "3", "PJRT_NPROC": "many"}, 3),
        ({"NPROC": "0"}, 1),
    ],
)
def test_threads_are_counted_as_xla_counts_them(monkeypatch, variables, threads):
    for name in ("NPROC", "PJRT_NPROC"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert runtime.count_threads() == threads


def test_a_child_process_finds_the_same_flags_and_cache(tmp_path):
    code = f"""
import subprocess, sys
{PREPARE}
sys.stdout.flush()
subprocess.run([sys.executable, "-c", {PREPARE!r}], check=True)
"""
    parent, child = map(json.loads, run_python(code, tmp_path).splitlines())
    assert child["xla_flags"]["value"] == parent["xla_flags"]["value"]
    assert child["compilation_cache"]["directory"] == parent["compilation_cache"]["directory"]
    assert child["allocator"] == parent["allocator"]


LINEAR_ALGEBRA = """
from jaxenergy import runtime
runtime.prepare()
import jax, jax.numpy as jnp
matrix = jax.random.normal(jax.random.key(0), (128, 64))
q, r = jax.jit(jnp.linalg.qr)(matrix)
assert jnp.allclose(q @ r, matrix, atol=1e-4)
jax.jit(lambda x: jnp.linalg.svd(x, full_matrices=False))(matrix)[0].block_until_ready()
orthogonal = jax.jit(lambda key: jax.nn.initializers.orthogonal()(key, (128, 64)))
columns = orthogonal(jax.random.key(1))
print(jnp.allclose(columns.T @ columns, jnp.eye(64), atol=1e-4))
"""


def test_what_lapack_gives_can_be_computed_with_under_our_flags(tmp_path):
    """YNNPACK's elementwise operations refuse its column-major arrays, as `orthogonal` has them."""
    assert run_python(LINEAR_ALGEBRA, tmp_path) == "True\n"
