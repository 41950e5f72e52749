#!/usr/bin/env bash
# Runs a config in N processes on this machine: one GPU each, or on a CPU to try what many hosts will do.
# usage: launch/local_processes.sh [--dry_run] N [main flags ...]
#   e.g. launch/local_processes.sh 2 --config=configs/rl.py --workdir=runs/two
# EAGRL_PYTHON names the interpreter, EAGRL_PORT the port on which they meet. When one process fails, all end.
set -euo pipefail
usage() { sed -n '2,5s/^# \{0,1\}//p' "$0"; exit "$1"; }
[ "${1:-}" = --help ] && usage 0
dry=false; [ "${1:-}" = --dry_run ] && { dry=true; shift; }
[[ "${1:-}" =~ ^[1-9][0-9]*$ ]] || usage 2
n=$1; shift
python=${EAGRL_PYTHON:-$(cd "$(dirname "$0")/.." && pwd)/.venv/bin/python}
port=${EAGRL_PORT:-$((20000 + RANDOM % 12000))}
pids=()
trap '[ ${#pids[@]} -eq 0 ] || { kill "${pids[@]}" 2>/dev/null || true; wait; }' EXIT
trap '[ ${#pids[@]} -eq 0 ] || { kill "${pids[@]}" 2>/dev/null || true; wait; pids=(); }; exit 0' TERM  # all save and stop
for ((i = 0; i < n; i++)); do
  command=(env JAX_LOCAL_DEVICE_IDS="$i" "$python" -m eagrl_jax.main --distributed --coordinator="127.0.0.1:$port"
    --processes="$n" --process="$i" "$@")
  printf '%q ' "${command[@]}"; echo
  $dry || { "${command[@]}" & pids+=($!); }
done
for _ in "${pids[@]}"; do wait -n; done
