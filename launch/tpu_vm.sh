#!/usr/bin/env bash
# Runs a config on every worker of a Cloud TPU VM slice, of one host or many.
# usage: launch/tpu_vm.sh [--dry_run] NAME ZONE ACCELERATOR WORKDIR [main flags ...]
#   e.g. launch/tpu_vm.sh eagrl us-west4-a v5litepod-16 /mnt/shared/first --config=configs/rl.py
# WORKDIR is a folder on the workers, an absolute path; with several hosts it must be shared: TPU_MOUNT='command', run
# on each worker first, mounts it (e.g. Filestore). Creates the slice by a queued resource, installs, runs on all
# workers, fetches the results and the log, also of a run that failed or was stopped, deletes the slice. Where the fetch
# fails the slice is kept, and the commands that remain are printed. gcloud must be logged in.
set -euo pipefail
usage() { sed -n '2,8s/^# \{0,1\}//p' "$0"; exit "$1"; }
[ "${1:-}" = --help ] && usage 0
dry=false; [ "${1:-}" = --dry_run ] && { dry=true; shift; }
[ $# -ge 4 ] || usage 2
name=$1 zone=$2 accelerator=$3 workdir=$4; shift 4
[[ $workdir = /* ]] || { echo "WORKDIR must be an absolute path on the workers, got $workdir" >&2; exit 2; }
repo=$(cd "$(dirname "$0")/.." && pwd)
version=${TPU_RUNTIME:-v2-alpha-tpuv5-lite}
create=(gcloud compute tpus queued-resources create "$name" --node-id="$name" --zone="$zone"
  --accelerator-type="$accelerator" --runtime-version="$version")
delete=(gcloud compute tpus queued-resources delete "$name" --zone="$zone" --force --quiet)
results=(gcloud compute tpus tpu-vm scp --recurse "$name:$workdir" . --zone="$zone" --worker=0)
log=(gcloud compute tpus tpu-vm scp "$name:eagrl/run.log" "$name.log" --zone="$zone" --worker=0)
show() { printf '%q ' "$@"; echo; }
say() { show "$@"; $dry || { "$@" <&0 & wait $!; }; }  # a signal is acted on during `wait`, not after the command
on_all() { say gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="$1"; }
# A command is halted while its children are looked for: one that it starts in between would outlive it.
end() {
  local child
  kill -STOP "$1" 2>/dev/null || return 0
  for child in $(pgrep -P "$1"); do end "$child"; done
  kill "$1" && kill -CONT "$1" || true
} 2>/dev/null
end_commands() { local job; for job in $(jobs -rp); do end "$job"; done; }

private=  # its owner alone can look into it, as into eagrl/ on the workers
running=false  # whether the disk may hold results
finish() {
  local code=$?
  set +e
  trap '' PIPE
  trap end_commands HUP INT TERM  # a second signal ends the command that runs: a fetch so ended keeps the slice
  end_commands
  rm -rf "$private"
  if $running; then
    # What still runs behind a lost connection saves, as at a preemption, before its files are read.
    [ "$code" = 0 ] || on_all 'pkill -TERM -f "[e]agrl_jax.main"; for _ in {1..300}; do pgrep -f "[e]agrl_jax.main" >/dev/null || break; sleep 1; done'
    if ! { say "${results[@]}" && say "${log[@]}"; }; then
      {
        echo "$name was kept, and costs money: not all could be fetched. Fetch again, then delete it:"
        show "${results[@]}"; show "${log[@]}"; show "${delete[@]}"
      } >&2
      exit $((code ? code : 1))
    fi
  fi
  say "${delete[@]}" && return
  { echo "$name could not be deleted, and may cost money. Delete it:"; show "${delete[@]}"; } >&2
  exit $((code ? code : 1))
}

stopped=false  # a signal waits for the answer: only then is it known whether there is something to delete
trap 'stopped=true' HUP INT TERM
show "${create[@]}"
$dry || "${create[@]}" || {
  code=$?
  $stopped && { echo "stopped while $name was asked for. If it is listed, delete it:"; show "${delete[@]}"; } >&2
  exit "$code"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' HUP TERM
$stopped && exit 143

unanswered=0
$dry || while true; do
  if answer=$(gcloud compute tpus queued-resources describe "$name" --zone="$zone" \
      --format='value(state.state,state.failedData.error.message)'); then
    unanswered=0
  elif ((++unanswered == 20)); then  # ten minutes: no hiccup, and a slice that comes unseen costs money
    echo "no slice: gcloud does not say what has become of $name" >&2; exit 1
  fi
  read -r state why <<<"$answer"
  case $state in
    ACTIVE) break ;;
    FAILED | SUSPEND* | DELETING) echo "no slice: $name is $state${why:+, $why}" >&2; exit 1 ;;
  esac
  echo "waiting for the slice: ${state:-unknown}"
  sleep 30 & wait $!
done
private=$(mktemp -d)
say git -C "$repo" archive --format=tar.gz --output="$private/eagrl_jax.tar.gz" HEAD
on_all 'umask 077 && mkdir -p eagrl && chmod 700 eagrl'
say gcloud compute tpus tpu-vm scp "$private/eagrl_jax.tar.gz" "$name:eagrl/" --zone="$zone" --worker=all
[ -z "${TPU_MOUNT:-}" ] || on_all "$TPU_MOUNT"
on_all "umask 077 && mkdir -p $(printf '%q' "$workdir")"  # so that a run refused at once, too, leaves what can be fetched
# The images' own Python is 3.10: uv brings 3.12.
on_all 'cd eagrl && tar -xzf eagrl_jax.tar.gz && PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install -q --user uv && python3 -m uv venv -q --python 3.12 && python3 -m uv pip install -q --python .venv/bin/python -c constraints/py312.txt ".[tpu]"'
running=true
on_all "cd eagrl && set -o pipefail && .venv/bin/python -m eagrl_jax.main --distributed --workdir=$(printf '%q' "$workdir") $(printf '%q ' "$@")2>&1 | tee run.log"
