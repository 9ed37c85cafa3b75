#!/usr/bin/env bash
# The checks and measurements that need a real NVIDIA GPU. It uses the Python it finds, installs
# nothing, needs no network, and changes no setting of the card. Each stage takes under 8 minutes,
# or what --seconds says, and goes on where it was when it is called again.
set -euo pipefail

root=$(dirname "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")")
stages="instrument run tests measure zoo frameworks studies"
stage_s=475 # --seconds; the stages keep to less themselves, and this ends one that hangs
again="call it again to go on"

# What each stage imports, with the package that brings it where the names differ.
declare -A modules=(
  [instrument]="jax numpy scipy pynvml=nvidia-ml-py"
  [run]="absl=absl-py jax flax optax orbax.checkpoint=orbax-checkpoint numpy scipy rich pynvml=nvidia-ml-py"
  [tests]="absl=absl-py jax flax optax orbax.checkpoint=orbax-checkpoint numpy scipy rich pynvml=nvidia-ml-py pytest"
  [measure]="jax numpy scipy pynvml=nvidia-ml-py"
  [studies]="absl=absl-py jax flax optax orbax.checkpoint=orbax-checkpoint numpy scipy rich pynvml=nvidia-ml-py"
  [frameworks]="absl=absl-py jax flax optax numpy scipy rich torch pynvml=nvidia-ml-py"
  [zoo]="jax flax optax numpy scipy pynvml=nvidia-ml-py"
)

usage() {
  cat <<USAGE
Usage: benchmarks/gpu.sh STAGE [--data_dir=DIR] [--results=DIR] [--only=CHECK,…] [--fresh]
                              [--commit=HASH] [--seconds=N] [--budget=smoke]
STAGE: instrument  what the card's sensors do, and what attribution makes of them
       run         runs of experiments.run: the default one, a residual network, CIFAR-10 with --data_dir
       tests       the tests marked gpu
       measure     joules of single kernels
       frameworks  JAX against PyTorch, the ten families; takes about ten calls
       zoo         joules, time and share of the peak of every family's update, beside torch.compile
       studies     the published claims, with verdicts on measured joules; takes about eight calls
       all         all of them, in this order
Results are written to results/GPU/STAGE.json, check by check; a finished check is not done again.
Status: 0 done, 1 a check failed, 2 cannot begin (the message says why), 75 call it again to go on.
A call takes $stage_s s at most, or what --seconds says.
--budget=smoke tries everything in seconds, into runs/smoke; PYTHON=/path/to/python chooses the Python.
USAGE
}

find_python() {
  local candidate
  for candidate in ${PYTHON:+"$PYTHON"} "$root/.venv/bin/python" python3 python; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      python=$candidate
      return
    fi
    [[ $candidate != "${PYTHON-}" ]] || break
  done
  echo "gpu.sh: no Python >= 3.11 was found (looked for ${PYTHON:-.venv/bin/python, python3, python})." >&2
  exit 2
}

refuse_stage() {
  local nearest
  # shellcheck disable=SC2086 # the list is to be split
  nearest=$("$python" -c 'import difflib, sys
for name in difflib.get_close_matches(sys.argv[1], sys.argv[2:], 1, 0.5): print(f" Did you mean {name}?")
' "$1" $stages all)
  echo "gpu.sh: STAGE=$1 is unknown.$nearest" >&2
  echo "Allowed: $stages all." >&2
  exit 2
}

# Names every missing package at once.
check_modules() {
  # shellcheck disable=SC2086 # the list is to be split
  "$python" - $1 <<'PYTHON'
import importlib.util
import platform
import sys


def is_there(module):
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package around it is missing
        return False


needed = [name.partition("=") for name in sys.argv[1:]]
missing = [package or module for module, _, package in needed if not is_there(module)]
if missing:
    sys.exit(
        f"gpu.sh: Python {platform.python_version()} ({sys.executable}) lacks: "
        f"{', '.join(missing)}.\nNothing is installed here. Name another Python "
        "(PYTHON=/path/to/python), or a folder that has them (PYTHONPATH)."
    )
PYTHON
}

run_stage() {
  local status=0
  check_modules "${modules[$1]}" || return 2
  # In the background, so that whoever ends this script ends the stage with it: bash would wait.
  timeout --kill-after=15 "$stage_s" "$python" "$root/benchmarks/gpu_$1.py" "${@:2}" &
  trap "kill $! 2>/dev/null" EXIT
  trap 'exit 143' TERM
  trap 'exit 130' INT
  wait "$!" || status=$?
  trap - EXIT TERM INT
  if ((status == 124 || status == 137)); then
    echo "gpu.sh: $1 was ended after $stage_s s; $again." >&2
    status=75
  fi
  return "$status"
}

case ${1-} in
  -h | --help | help)
    usage
    exit 0
    ;;
  "")
    usage >&2
    exit 2
    ;;
esac
stage=$1
shift
find_python
[[ " $stages all " == *" $stage "* ]] || refuse_stage "$stage"
for argument; do
  case $argument in
    --fresh) again="call it again, without --fresh, to go on" ;;
    --seconds)
      echo "gpu.sh: --seconds needs its number behind an equals sign, e.g. --seconds=580." >&2
      exit 2
      ;;
    --seconds=*)
      stage_s=${argument#*=}
      if [[ ! $stage_s =~ ^[1-9][0-9]*$ ]]; then
        echo "gpu.sh: $argument is no number of seconds. Allowed: whole numbers." >&2
        exit 2
      fi
      ;;
  esac
done
# Arguments that are paths are relative to where you are; this project comes before others.
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1

if [[ $stage != all ]]; then
  run_stage "$stage" "$@"
  exit
fi
worst=0
for stage in $stages; do
  run_stage "$stage" "$@" || { status=$?; ((status <= worst)) || worst=$status; }
done
exit "$worst"
