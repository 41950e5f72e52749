#!/usr/bin/env bash
# Runs a config on every worker of a Cloud TPU VM slice, of one host or many.
# usage: launch/tpu_vm.sh [--dry_run] NAME ZONE ACCELERATOR WORKDIR [main flags ...]
#   e.g. launch/tpu_vm.sh eagrl us-west4-a v5litepod-16 /mnt/shared/first --config=configs/rl.py
# WORKDIR is a folder on the workers; with several hosts it must be shared: TPU_MOUNT='command', run on each worker
# first, mounts it (e.g. Filestore). Creates the slice by a queued resource, installs, runs on all workers, fetches
# the log and the results, deletes it. gcloud must be logged in.
set -euo pipefail
usage() { sed -n '2,7s/^# \{0,1\}//p' "$0"; exit "$1"; }
[ "${1:-}" = --help ] && usage 0
dry=false; [ "${1:-}" = --dry_run ] && { dry=true; shift; }
[ $# -ge 4 ] || usage 2
name=$1 zone=$2 accelerator=$3 workdir=$4; shift 4
repo=$(cd "$(dirname "$0")/.." && pwd)
version=${TPU_RUNTIME:-v2-alpha-tpuv5-lite}
say() { printf '%q ' "$@"; echo; $dry || "$@"; }
on_all() { say gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="$1"; }

say gcloud compute tpus queued-resources create "$name" --node-id="$name" --zone="$zone" \
  --accelerator-type="$accelerator" --runtime-version="$version"
$dry || until gcloud compute tpus queued-resources describe "$name" --zone="$zone" --format='value(state.state)' \
  | grep -q ACTIVE; do echo 'waiting for the slice'; sleep 30; done
private=$(mktemp -d)  # its owner alone can look into it, as into eagrl/ on the workers
trap 'rm -rf "$private"; say gcloud compute tpus queued-resources delete "$name" --zone="$zone" --force --quiet' EXIT
say git -C "$repo" archive --format=tar.gz --output="$private/eagrl_jax.tar.gz" HEAD
on_all 'umask 077 && mkdir -p eagrl && chmod 700 eagrl'
say gcloud compute tpus tpu-vm scp "$private/eagrl_jax.tar.gz" "$name:eagrl/" --zone="$zone" --worker=all
[ -z "${TPU_MOUNT:-}" ] || on_all "$TPU_MOUNT"
on_all 'cd eagrl && tar -xzf eagrl_jax.tar.gz && python3 -m venv .venv && .venv/bin/pip install -q ".[tpu]"'
status=0
on_all "cd eagrl && set -o pipefail && .venv/bin/python -m eagrl_jax.main --distributed --workdir=$(printf '%q' "$workdir") $(printf '%q ' "$@")2>&1 | tee run.log" || status=$?
say gcloud compute tpus tpu-vm scp "$name:eagrl/run.log" "$name.log" --zone="$zone" --worker=0 || true
say gcloud compute tpus tpu-vm scp --recurse "$name:$workdir" . --zone="$zone" --worker=0
exit "$status"
