#!/usr/bin/env bash
# Decoding, update and search on one GPU, random weights in the shapes of Qwen2.5-1.5B and 7B, bfloat16.
# usage: bash benchmarks/gpu.sh [results.jsonl]     on a machine that has Python >= 3.11 and jax for CUDA
#        bash benchmarks/gpu.sh --collect DIR       on one with a package index: wheels for Python 3.12, Linux x86_64
#        bash benchmarks/gpu.sh --smoke [smoke.jsonl]  every step at a size for a CPU
# Lines are added to those that the file holds. Paths are of the folder that it is called from.
# environment: PYTHON (python3), WHEELS (a folder from --collect; without it the index is asked), SITE (where missing
#   packages go, a passing folder by default; jax and what is already there are left alone), SHAPES (qwen2.5-1.5b
#   qwen2.5-7b), CASES (decode update search), LIMIT (seconds a case may take, 420)
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
export PYTHONSAFEPATH=1  # what lies where it is called from is not imported
# What the benchmarks import beyond jax: package and module.
needs=(absl-py:absl chex:chex flax:flax jinja2:jinja2 markdown-it-py:markdown_it markupsafe:markupsafe mdurl:mdurl
       msgpack:msgpack optax:optax pygments:pygments pyyaml:yaml rich:rich tokenizers:tokenizers toolz:toolz
       typing-extensions:typing_extensions)
smoke=false
file=results.jsonl
case ${1:-} in
  --help) sed -n '2,9s/^# \{0,1\}//p' "$0"; exit 0 ;;
  --collect)
    folder=${2:?usage: bash benchmarks/gpu.sh --collect DIR}
    platforms=(manylinux_2_28_x86_64 manylinux_2_17_x86_64 manylinux2014_x86_64 manylinux_2_5_x86_64 manylinux1_x86_64)
    "$python" -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
      "${platforms[@]/#/--platform=}" --constraint "$root/constraints/py312.txt" --dest "$folder" "${needs[@]%%:*}"
    du -sh "$folder"
    exit 0 ;;
  --smoke) smoke=true; file=smoke.jsonl; shift ;;
  -*) echo "unknown flag $1; see --help" >&2; exit 2 ;;
esac
results=${1:-$file}

if $smoke; then
  export JAX_PLATFORMS=cpu
  shapes=(micro)
  common=(--no_peer --reps 1)
  dtype=(--compute_dtype float32)
  sizes=(--length 16 --group 2)
  decode=(--prompts 2 --new 4)
  update=(--prompts 2 --new 4)
  search=(--trees 2 --rollouts 2 --siblings 2 --prompt 16 --step 4 --depth 2)
else
  read -ra shapes <<< "${SHAPES:-qwen2.5-1.5b qwen2.5-7b}"
  common=(--no_peer --reps 3)
  dtype=(--compute_dtype bfloat16)
  sizes=(--length 512 --group 8)
  decode=(--prompts 8 --new 128)
  update=(--prompts 8 --new 256)
  search=(--trees 8)
  export XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-.92}
fi
read -ra cases <<< "${CASES:-decode update search}"

"$python" - "$smoke" <<'PROBE' || exit 1
import sys
if sys.version_info < (3, 11):
  sys.exit(f'Python {sys.version.split()[0]} is too old: PYTHON= must name 3.11 or later')
try:
  import jax
except ImportError:
  sys.exit('this Python has no jax: PYTHON= must name one with jax for CUDA')
if sys.argv[1] == 'false' and jax.default_backend() != 'gpu':
  sys.exit(f'jax sees no GPU, only {jax.default_backend()}: PYTHON= must name a Python with jax for CUDA')
print(f'Python {sys.version.split()[0]}, jax {jax.__version__}, {jax.devices()[0].device_kind}', file=sys.stderr)
PROBE

site=${SITE:-}
if [ -z "$site" ]; then
  site=$(mktemp -d)
  trap 'rm -rf "$site"' EXIT
fi
export PYTHONPATH=$root:$site${PYTHONPATH:+:$PYTHONPATH}
absent=$("$python" - "${needs[@]}" <<'PROBE'
import importlib.util
import sys
print(*(need.split(':')[0] for need in sys.argv[1:] if importlib.util.find_spec(need.split(':')[1]) is None))
PROBE
)
if [ -n "$absent" ]; then
  pins=$("$python" -c 'import sys; print("py311" if sys.version_info < (3, 12) else "py312")')
  source=(--constraint "$root/constraints/$pins.txt")
  [ -z "${WHEELS:-}" ] || source=(--no-index --find-links "$WHEELS")
  read -ra packages <<< "$absent"
  echo "installing into $site: $absent" >&2
  "$python" -m pip install --quiet --no-deps --target "$site" "${source[@]}" "${packages[@]}"
fi

: >> "$results"
failed=0
bench() {  # prints and keeps the lines of one case; one that fails is named there and does not stop the others
  echo "benchmarks.$*" >&2
  timeout "${LIMIT:-420}" "$python" -m "benchmarks.$1" "${@:2}" | tee -a "$results" && return
  printf '{"name": "%s", "error": "failed: see above"}\n' "$*" | tee -a "$results"
  return 1
}

for shape in "${shapes[@]}"; do
  for case in "${cases[@]}"; do
    flags=(--shape "$shape" "${common[@]}")
    case $case in
      decode) bench decode "${flags[@]}" "${dtype[@]}" "${sizes[@]}" "${decode[@]}" || failed=1 ;;
      search) bench search "${flags[@]}" "${dtype[@]}" "${search[@]}" --no_growth || failed=1 ;;
      update)
        # Weights, gradients and moments in float32 of 7B do not fit one GPU: adapters there, every weight below.
        flags+=("${dtype[@]}" "${sizes[@]}" "${update[@]}")
        case $shape in
          *7b) flags+=(--lora_rank 16 --micro_batch 2) ;;
          *) flags+=(--micro_batch "$($smoke && echo 1 || echo 4)") ;;
        esac
        # Recomputing all but the products is faster, where what it keeps fits.
        bench update "${flags[@]}" --remat dots || bench update "${flags[@]}" --remat full || failed=1 ;;
      *) echo "unknown case $case: decode, update or search" >&2; exit 2 ;;
    esac
  done
done
exit "$failed"
