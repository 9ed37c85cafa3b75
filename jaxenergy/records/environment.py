"""What a measurement was made on and with: versions, host, devices, meters, for `environment.json`.

Two results can be compared only if this says the same, so it holds all that is known to move
energy or time, and reads it where the operating system has it. Frameworks are not imported to ask
for their version, and the devices are passed in by whoever computes on them.
"""

import dataclasses
import datetime
import hashlib
import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jaxenergy
from jaxenergy.meters.base import Device, Domain

_PACKAGES = (
    "jax",
    "jaxlib",
    "jax-cuda12-plugin",
    "jax-cuda13-plugin",
    "flax",
    "optax",
    "orbax-checkpoint",
    "numpy",
    "scipy",
    "nvidia-ml-py",
    "nvidia-cudnn-cu12",
    "nvidia-cudnn-cu13",
    "pyRAPL",
    "tensorflow-datasets",
    "torch",
)
_GIT_TIMEOUT_S = 5


class _Metered(Protocol):
    """The part of `Meters` that is described."""

    @property
    def domains(self) -> Sequence[Domain]: ...

    @property
    def notes(self) -> Sequence[str]: ...

    def describe(self) -> Mapping[str, Any]: ...


def read_environment(
    *, devices: Sequence[Device], meters: _Metered, runtime: Mapping[str, Any]
) -> dict[str, Any]:
    """Describes this process and this machine.

    Args:
        devices: what is computed on.
        meters: the open meters.
        runtime: what was set up before jax was imported, from `jaxenergy.runtime.prepare`.

    Returns:
        A JSON-able dict; what is not there on this machine is None.
    """
    return {
        "recorded_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "versions": _read_versions(),
        "host": platform.node(),
        "os": platform.platform(),
        "boot_id": read_boot_id(),
        "cpu": {
            "model": _read_cpu_model(),
            "logical_cores": os.cpu_count(),
            "usable_cores": len(os.sched_getaffinity(0)),
        },
        "devices": [dataclasses.asdict(device) for device in devices],
        "nvidia_driver": _read_text("/proc/driver/nvidia/version"),
        "nvml_library": _read_loaded_library("libnvidia-ml.so"),
        "meters": [dataclasses.asdict(domain) for domain in meters.domains],
        "meter_facts": meters.describe(),
        "meter_notes": list(meters.notes),
        "git": _read_git(Path(__file__).parent),
        "command": sys.argv,
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "runtime": dict(runtime),
    }


def read_device_name(device: Device) -> str:
    """The model of what computes: the device's own name, or the CPU's model."""
    return (_read_cpu_model() if device.platform == "cpu" else None) or device.name


def read_boot_id() -> str | None:
    """The id of this boot of the machine: counters and monotonic clocks restart with it."""
    return _read_text("/proc/sys/kernel/random/boot_id")


def _read_versions() -> dict[str, str]:
    versions = {"jaxenergy": jaxenergy.__version__}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _read_text(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None


def _read_cpu_model() -> str | None:
    for line in (_read_text("/proc/cpuinfo") or "").splitlines():
        if line.lower().startswith(("model name", "cpu model")):
            return line.partition(":")[2].strip()
    return platform.processor() or None


def _read_loaded_library(name: str) -> dict[str, str] | None:
    """Path and SHA-256 of a library loaded into this process: which NVML was read decides all."""
    for line in (_read_text("/proc/self/maps") or "").splitlines():
        path = line.partition("/")[1] + line.partition("/")[2]
        if Path(path).name.startswith(name):
            try:
                digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
            except OSError:
                digest = "unreadable"
            return {"path": path, "sha256": digest}
    return None


def _read_git(folder: Path) -> dict[str, Any] | None:
    """The commit of the code, where it is a git checkout and git is there."""

    def ask(*arguments: str) -> str | None:
        try:
            answer = subprocess.run(
                ["git", "-C", str(folder), *arguments],
                capture_output=True,
                text=True,
                timeout=_GIT_TIMEOUT_S,
                check=True,
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return answer.stdout.strip()

    # An installed package may lie below some other project's checkout.
    if (
        ask("ls-files", "--error-unmatch", Path(__file__).name) is None
        and ask("ls-files", "--error-unmatch", __file__) is None
    ):
        return None
    commit = ask("rev-parse", "HEAD")
    status = ask("status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "modified": bool(status)} if commit else None
