"""What a process needs before jax is imported: the allocator, XLA's flags, the compilation cache.

XLA and the C library read these once, when they start, so they cannot be settings of a training
loop. Nothing happens on import: a driver calls `prepare()` before anything else, and writes what it
returns to `environment.json`, since each of these settings changes what an update costs. What the
user has set is never overridden.
"""

import contextlib
import ctypes
import os
import stat
import sys
from pathlib import Path

# XLA's CPU client takes every buffer of an update from malloc. glibc maps the large ones anew each
# time and gives them back: 26,000 page faults an update for a small CNN (batch 128), and 10-40 % of
# its time. One heap that is never trimmed keeps them: no faults once warm.
# References: mallopt(3); the parameters' numbers are those of glibc's malloc.h.
_MALLOPT = (
    ("M_ARENA_MAX", -8, 1),
    ("M_MMAP_MAX", -4, 0),
    ("M_TRIM_THRESHOLD", -1, -1),  # -1: never trim
    ("M_TOP_PAD", -2, 256 * 2**20),
)

# Flags by name, with the versions of jaxlib on which they were tried: from the first, up to and
# without the second. XLA aborts the process at a flag that it does not know, so a newer jaxlib gets
# none until somebody has tried it. A flag's name says its platform; the others pay it no heed.
_XLA_FLAGS = (
    # YNNPACK for dots and sums; not for convolutions, which XLA's own (Eigen) kernels do faster,
    # nor for elementwise operations, which it takes one by one (and not on arrays made by LAPACK).
    (
        "--xla_cpu_experimental_ynn_fusion_type",
        "LIBRARY_FUSION_TYPE_DOT,LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE",
        (0, 10, 2),
        (0, 12, 1),
    ),
)

_CACHE_VARIABLE = "JAX_COMPILATION_CACHE_DIR"

# What sets the number of XLA's threads; the first one goes before the second.
_THREADS_VARIABLES = ("PJRT_NPROC", "NPROC")


def prepare() -> dict[str, dict]:
    """Sets what has to be set before jax is imported; for drivers, as their first act.

    Where jax is imported already (a notebook, a test) it is too late, and nothing is touched.

    Returns:
        What is in force and why, for `environment.json` and `--verbose`: `allocator`, `xla_flags`,
        `compilation_cache` and `threads`, each with plain JSON values.
    """
    too_late = "jax was imported before" if "jax" in sys.modules else None
    return {
        "allocator": _prepare_allocator(too_late),
        "xla_flags": _prepare_xla_flags(too_late),
        "compilation_cache": _prepare_compilation_cache(too_late),
        "threads": _read_threads(),
    }


def _prepare_allocator(too_late: str | None) -> dict:
    """Makes glibc keep the memory it has: the `settings` made by mallopt, and `why`."""
    why = too_late or _why_leave_allocator()
    if why:
        return {"settings": {}, "why": why}
    mallopt = ctypes.CDLL(None).mallopt
    settings = {name: value for name, number, value in _MALLOPT if mallopt(number, value) == 1}
    return {"settings": settings, "why": "one heap that is kept: no page faults in an update"}


def _why_leave_allocator() -> str | None:
    """The reason not to touch the allocator; None where it is glibc's and nobody has set it."""
    for name in sorted(os.environ):
        if name.startswith("MALLOC_"):
            return f"{name} is set"
    if "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return "GLIBC_TUNABLES is set"
    if "malloc" in os.environ.get("LD_PRELOAD", ""):
        return "LD_PRELOAD names another allocator"
    try:
        os.confstr("CS_GNU_LIBC_VERSION")
    except (OSError, ValueError):  # musl knows the number and refuses; macOS does not know the name
        return "the C library is not glibc"
    return None


def _prepare_xla_flags(too_late: str | None) -> dict:
    """Appends `_XLA_FLAGS` to XLA_FLAGS: the `value` in force, the flags `added`, `why` not."""
    value = os.environ.get("XLA_FLAGS", "")
    if too_late:
        return {"value": value, "added": [], "why": {"all": too_late}}
    if value.strip() and not value.lstrip().startswith("-"):
        return {"value": value, "added": [], "why": {"all": "XLA_FLAGS names a file"}}
    version = _read_jaxlib_version()
    set_by_user = {flag.partition("=")[0] for flag in value.split()}
    added, why = [], {}
    for name, choice, first, end in _XLA_FLAGS:
        if name in set_by_user:
            why[name] = "set in XLA_FLAGS"
        elif version is None or not first <= version < end:
            why[name] = f"not tried on jaxlib {'.'.join(map(str, version or ('unknown',)))}"
        else:
            added.append(f"{name}={choice}")
    if added:
        value = " ".join([*value.split(), *added])
        os.environ["XLA_FLAGS"] = value
    return {"value": value, "added": added, "why": why}


def _read_jaxlib_version() -> tuple[int, ...] | None:
    """The installed jaxlib's version from its metadata; None where there is none to be read."""
    from importlib import metadata  # 20 ms that --help need not pay

    try:
        return tuple(int(part) for part in metadata.version("jaxlib").split("."))
    except (metadata.PackageNotFoundError, ValueError):  # not installed; a development version
        return None


def _prepare_compilation_cache(too_late: str | None) -> dict:
    """Lets jax keep compiled programs between processes: `directory`, or None; and `why`.

    A program in the cache is machine code that jax runs unasked, so the folder has to belong to the
    user and be open to nobody else.
    """
    if _CACHE_VARIABLE in os.environ:
        directory = os.environ[_CACHE_VARIABLE]
        return {"directory": directory or None, "why": f"{_CACHE_VARIABLE} is set"}
    if too_late:
        return {"directory": None, "why": too_late}
    base = os.environ.get("XDG_CACHE_HOME", "")
    try:
        # The XDG specification has relative paths ignored.
        cache = Path(base) if os.path.isabs(base) else Path.home() / ".cache"
        directory = cache / "jaxenergy" / "xla"
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = directory.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
            return {"directory": None, "why": f"{directory} is not a folder of this user's own"}
        if status.st_mode & 0o077:
            return {"directory": None, "why": f"{directory} is open to others: chmod 700 it"}
    except (OSError, RuntimeError) as error:  # RuntimeError: a user without a home
        return {"directory": None, "why": f"no folder for it: {error}"}
    os.environ[_CACHE_VARIABLE] = str(directory)
    # All programs, also quick and small ones: a run compiles dozens of those.
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
    return {"directory": str(directory), "why": "the default place"}


def _read_threads() -> dict:
    """What decides how many threads XLA's CPU client takes: our `cpus`, and what overrides them."""
    return {
        "cpus": _read_cpus(),
        **{name: os.environ.get(name) for name in (*_THREADS_VARIABLES, "OMP_NUM_THREADS")},
    }


def count_threads() -> int:
    """How many threads XLA's CPU client takes: an override where one is set, or one for each CPU.

    References:
        DefaultThreadPoolSize of xla/pjrt/utils.cc.
    """
    for name in _THREADS_VARIABLES:
        with contextlib.suppress(ValueError):
            return max(1, int(os.environ.get(name, "")))
    return _read_cpus() or 1


def _read_cpus() -> int | None:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count()
