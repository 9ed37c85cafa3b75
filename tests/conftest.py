"""What all tests share: which of them run, on what platform, one store of compiled programs."""

import os
from pathlib import Path

import hypothesis
import pytest

# A machine that is busy with other work is no failure.
hypothesis.settings.register_profile(
    "unhurried", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("unhurried")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--slow", action="store_true", help="run the tests marked slow, and only those"
    )
    parser.addoption("--gpu", action="store_true", help="run the tests marked gpu, and only those")


def pytest_configure(config: pytest.Config) -> None:
    """Chooses the tests, and sets what jax reads when it is imported, here and in subprocesses."""
    if not config.option.markexpr:
        if config.option.gpu:
            config.option.markexpr = "gpu"
        else:
            config.option.markexpr = "slow" if config.option.slow else "not slow"
    if not config.option.gpu:
        os.environ["JAX_PLATFORMS"] = "cpu"
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        # Compiling is most of what the tests do. In the cache lies machine code: for us alone.
        cache = config.rootpath / ".cache" / "xla"
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        cache.chmod(0o700)
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(cache)
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Two; 0, this one alone, where tests share a GPU or a cluster or need the machine."""
    return 0 if config.option.slow or config.option.gpu else 2


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.option.gpu:
        return
    skip = pytest.mark.skip(reason="needs an NVIDIA GPU: ./launch.sh test --gpu")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(scope="session")
def demo_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of the runs beside it, in `runs`, which have something of everything."""
    from made_up_runs import make_demo

    from jaxenergy.report.answer import Rates
    from jaxenergy.report.build import build_report

    home = tmp_path_factory.mktemp("demo")
    make_demo(home / "runs")
    build_report(home / "runs", home / "report", Rates(carbon_g_per_kwh=300.0, price_per_kwh=0.25))
    return home / "report"
