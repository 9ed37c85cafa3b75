#!/usr/bin/env bash
# The one command of a fresh machine: installs what is missing into .venv, then runs a driver or the tests.
# `./launch.sh` alone says how it is used. What it reports of itself goes to stderr, and a driver's
# own output to stdout; paths among the arguments are relative to where you are.
set -euo pipefail

root=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
venv=$root/.venv
state=$venv/launch # our own folder in it: says that we made this venv, and how far we got
stamp=$state/installed
log=$state/pip.log

say() { printf 'launch.sh: %s\n' "$*" >&2; }

fail() {
  local status=$1
  shift
  say "$@"
  exit "$status"
}

# A driver is a file in experiments/ with a main().
is_driver() { [[ $1 != */* ]] && grep -q '^def main(' "$root/experiments/$1.py" 2>/dev/null; }

list_drivers() {
  local file name
  for file in "$root"/experiments/*.py; do
    name=$(basename "$file" .py)
    ! is_driver "$name" || printf '%s ' "$name"
  done
}

usage() {
  cat <<USAGE
Usage: ./launch.sh DRIVER [FLAGS]         runs python -m experiments.DRIVER
       ./launch.sh sweep --grid=optimizer=sgd,adam --grid=depth=2,4,8 --seeds=5
                                          runs a grid here, one run at a time; the same command
                                          goes on. --dry_run: what and how long; on a cluster,
                                          --launcher=slurm: as a job array (docs/sweeps.md)
       ./launch.sh test [ARGS]            runs the tests; ARGS are pytest's, and --slow: those
                                          marked slow, --gpu: those marked gpu
DRIVER: $(list_drivers)
The first call makes .venv and installs the project into it, from constraints.txt.
PYTHON=/path/to/python ./launch.sh ... chooses the Python (3.11 or later).
USAGE
}

# By asking it, not by its name: version managers put names on the PATH that only print an error.
is_usable_python() {
  "$1" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

version_of() { "$1" -c 'import platform; print(platform.python_version())' 2>/dev/null; }

# 3.11 comes first because the project is tested most on it.
find_python() {
  local candidate
  if [[ -n ${PYTHON-} ]]; then
    is_usable_python "$PYTHON" && python=$PYTHON && return
    fail 2 "PYTHON=$PYTHON is not a working Python >= 3.11 with the modules venv and ensurepip."
  fi
  for candidate in python3.11 python3.12 python3.13 python3; do
    is_usable_python "$candidate" && python=$candidate && return
  done
  fail 2 "no Python >= 3.11 with the modules venv and ensurepip was found (looked for python3.11," \
    "python3.12, python3.13, python3). On Debian or Ubuntu: apt-get install python3-venv." \
    "Another place: PYTHON=/path/to/python ./launch.sh ..."
}

refuse_driver() {
  local nearest=""
  if [[ -n $1 ]]; then
    find_python
    # shellcheck disable=SC2046 # the list is to be split
    nearest=$("$python" -c 'import difflib, sys
for name in difflib.get_close_matches(sys.argv[1], sys.argv[2:], 1, 0.5): print(f" Did you mean {name}?")
' "$1" $(list_drivers) test)
  fi
  say "DRIVER=$1 is unknown.$nearest"
  fail 2 "Allowed: $(list_drivers)test."
}

# The NVIDIA driver's version decides which CUDA it can serve.
# https://docs.nvidia.com/cuda/cuda-toolkit-release-notes/: CUDA 13 needs 580, CUDA 12 needs 525.
cuda_extra() {
  local text="" major
  if [[ -r /proc/driver/nvidia/version ]]; then
    read -r text </proc/driver/nvidia/version || true
  elif command -v nvidia-smi >/dev/null; then # WSL has no such file in /proc
    text=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null | head -n 1) || true
  fi
  [[ $text =~ ([0-9]+)\.[0-9]+(\.[0-9]+)? ]] || return 0
  major=${BASH_REMATCH[1]}
  if ((major >= 580)); then
    echo cuda13
  elif ((major >= 525)); then
    echo cuda12
  else
    say "NVIDIA driver ${BASH_REMATCH[0]} is older than 525, which jax needs: installing for the CPU."
  fi
}

# Reads the stamp into have_*; false where no installation was finished.
read_stamp() {
  [[ -x $venv/bin/python && -r $stamp ]] || return 1
  { read -r have_inputs && read -r have_version && read -r have_extras; } <"$stamp"
}

is_complete() {
  local extra
  read_stamp || return 1
  [[ $have_inputs == "$inputs" ]] || return 1
  [[ -z ${PYTHON-} || $have_version == "$(version_of "$PYTHON")" ]] || return 1
  for extra in $extras; do
    [[ " $have_extras " == *" $extra "* ]] || return 1
  done
}

# A finished venv can be added to, unless it has another Python or another CUDA. One that was cut off
# is made anew: what pip downloaded is in its cache, and half a package is not told from a whole one.
can_be_extended() {
  local extra
  read_stamp || return 1
  [[ $have_version == "$(version_of "$python")" ]] || return 1
  for extra in $have_extras; do
    [[ $extra != cuda* || " $extras " == *" $extra "* ]] || return 1
  done
}

make_venv() {
  if [[ -n $(ls -A "$venv" 2>/dev/null) && ! -d $state ]]; then
    fail 1 "$venv was not made by launch.sh. Move it away, or use it: python -m experiments.run"
  fi
  rm -rf "$venv"
  mkdir -p "$state"
  say "making $venv with Python $(version_of "$python")"
  "$python" -m venv "$venv" >"$log" 2>&1 || explain_failure "making the venv"
}

explain_failure() {
  tail -n 15 "$log" >&2
  fail 1 "$1 failed; the lines above are the last of $log"
}

install() {
  local extra
  SECONDS=0 # not the time spent waiting for another one
  find_python
  if can_be_extended; then
    for extra in $have_extras; do
      [[ " $extras " == *" $extra "* ]] || extras="$extras $extra"
    done
    rm "$stamp"
  else
    make_venv
  fi
  say "installing jaxenergy[${extras// /,}] and what it needs (minutes, the first time)"
  (cd "$root" && "$venv/bin/python" -m pip install --no-input --disable-pip-version-check \
    --constraint constraints.txt --editable ".[${extras// /,}]" >"$log" 2>&1 </dev/null) ||
    explain_failure "pip install"
  printf '%s\n' "$inputs" "$(version_of "$venv/bin/python")" "$extras" >"$stamp.new"
  mv "$stamp.new" "$stamp" # last, and whole: whatever is cut off before has no stamp
  say "installed in $SECONDS s"
}

ensure_installed() {
  inputs="$(cat "$root/pyproject.toml" "$root/constraints.txt" | cksum) $root"
  is_complete && return
  [[ -w $root && (! -e $root/.launch.lock || -w $root/.launch.lock) ]] ||
    fail 1 "$root is not yours to write, and .venv is made in it. Clone it to a place of your own."
  exec 9>>"$root/.launch.lock"
  if command -v flock >/dev/null && ! flock --nonblock 9; then
    say "waiting for another launch.sh that is installing"
    flock 9
  fi
  is_complete || install
  exec 9>&-
}

command=${1-}
case $command in
  -h | --help | help)
    usage
    exit 0
    ;;
  "")
    usage >&2
    exit 2
    ;;
  test) extras="rapl report rl tensorboard test tfds torch" ;;
  *)
    is_driver "$command" || refuse_driver "$command"
    extras="rapl tfds"
    [[ $command != compare ]] || extras="$extras torch"
    [[ $command != report ]] || extras="report"
    # However it is written: --dataset=cartpole, --dataset cartpole, --grid='dataset=digits; acrobot'.
    [[ "$*" != *dataset*cartpole* && "$*" != *dataset*acrobot* ]] || extras="$extras rl"
    ;;
esac
shift
extras="$(cuda_extra) $extras"
extras=${extras# }
ensure_installed

unset PYTHONHOME
if [[ $command == test ]]; then
  cd "$root"
  # A file of tests at a time in each of as many processes as tests/conftest.py says.
  exec "$venv/bin/python" -m pytest --numprocesses=auto --dist=loadfile "$@"
fi
# Where you are may hold folders of the same names: this project comes first, then what you named
# yourself, then where you are (plug-ins).
export PYTHONSAFEPATH=1 PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}:$PWD"
exec "$venv/bin/python" -m "experiments.$command" "$@"
