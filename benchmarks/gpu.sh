#!/usr/bin/env bash
# Builds, tests, checks and measures deq_kernels on one NVIDIA GPU; `--help` says the rest.
set -uo pipefail

SELF=$(readlink -f "${BASH_SOURCE[0]}")
ROOT=$(dirname "$(dirname "$SELF")")
# What a stage ends with that could not do its work here, which says nothing about correctness.
UNAVAILABLE=77

usage() {
  cat <<'TEXT'
usage: benchmarks/gpu.sh [options] OUT

Builds this checkout on a machine with an NVIDIA GPU, runs the tests that need one, checks the
kernels with compute-sanitizer and runs the benchmark. Needs the CUDA toolkit, cmake, ninja and a
Python with a CUDA build of torch, setuptools 77, pybind11, pytest and hypothesis; no network. Writes
nothing outside the checkout (build/gpu, and what an editable install leaves) and OUT.

  OUT             folder for the results, created if needed; what an earlier run left is replaced

  --quick         the smallest selection of tests, no sanitizer, few benchmark cases
  --wheels DIR    install the wheels in DIR beside the package: torchdeq, or what PYTHON lacks
  --commit HASH   the commit that is measured, where the checkout has no git history
  --python PYTHON the interpreter that has torch (default: python3)
  --seconds N     end within N seconds (default: 570)
  --no-build      take the package as PYTHON has it, or as this checkout was built before
  --rehearse      walk through all stages on the CPU, with the smallest selection: exercises this
                  script and proves nothing about a GPU

Stages, each with a time limit; a stage that fails or runs out of time does not stop the next:
  facts           device, driver, toolkit, versions                        facts.txt
  build           pip install -e, for the architecture of this GPU alone   build.txt
                  (DEQ_KERNELS_CUDA_ARCHS chooses others)
  tests           every op, dtype and regime against float64               tests.txt
  memcheck, racecheck, synccheck   compute-sanitizer on small shapes       sanitizer.txt
  benchmark       Broyden: bench.json, bench.png (where matplotlib is), table    bench.txt
  cells           structured cells: cells.json, cells.png, table           cells.txt
  train           training steps: train.json, train.png, table             train.txt
  and summary.json: what passed, failed and was skipped, with durations and the measured targets

The exit status is 0 if everything that says something about correctness passed, 1 if not, and 2 if
the script could not begin. A benchmark after a failed test is marked so. Where time runs short, the
later stages are cut first: what they had measured until then is kept.
TEXT
}

fail() {
  echo "error: $*" >&2
  exit 2
}

# Stages that are more than one command run as `gpu.sh --stage NAME`, so that `timeout` can end
# them; their settings are in the environment.

probe() { # the program's output, or that it is not there
  echo "\$ ${*%%$'\n'*}"
  if command -v "$1" >/dev/null; then
    "$@" 2>&1
  else
    echo "$1 is not there"
  fi
  echo
}

stage_facts() {
  date -u +%FT%TZ
  probe nvidia-smi
  probe nvidia-smi --query-gpu=name,driver_version,compute_cap,memory.total,clocks.max.sm,clocks.max.memory,power.limit --format=csv
  probe nvcc --version
  probe "$SANITIZER" --version
  for program in "${CXX:-g++}" cmake ninja git; do
    probe "$program" --version
  done
  probe lscpu
  probe free -g
  probe "$PYTHON" -c '
import importlib.metadata as metadata, platform
print("python", platform.python_version())
for name in "torch triton numpy setuptools pip pybind11 cmake ninja pytest pytest-xdist hypothesis matplotlib torchdeq".split():
    try:
        print(name, metadata.version(name))
    except metadata.PackageNotFoundError:
        print(name, "is not installed")
'
}

stage_build() {
  set -e
  # An environment of its own over that of PYTHON, which may be a virtual environment itself:
  # --system-site-packages would show the packages of the interpreter underneath it.
  rm -rf "$WORK/venv"
  "$PYTHON" -m venv --without-pip "$WORK/venv"
  local packages
  packages=$("$VENV_PYTHON" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  "$PYTHON" -c '
import sys
for path in sys.path:
    if path.rstrip("/").endswith(("site-packages", "dist-packages")):
        print(f"import site; site.addsitedir({path!r})")
' >"$packages/parent.pth"
  # Without PYTHONPATH, in which pip would take the checkout for an installed package.
  local pip=(env -u PYTHONPATH "$VENV_PYTHON" -m pip --disable-pip-version-check install
    --no-index --no-deps --no-cache-dir)
  if [ -n "$WHEELS" ]; then
    "${pip[@]}" "$WHEELS"/*.whl
  fi
  "${pip[@]}" --no-build-isolation -e .
  stage_installed
}

stage_installed() {
  # The build is good if the library loads.
  "$RUN_PYTHON" -c '
import os, sys
import deq_kernels
from deq_kernels import _native
from benchmarks.broyden.cases import GPU_CASES
from benchmarks.suites import SUITES
info = deq_kernels.backend_info()
print(info)
if info.build is not None:
    print("plans of the last step of each case on this GPU, or on an H200 where there is none:")
    for case in GPU_CASES:
        plan = _native.plan_launch(batch=case.batch, dim=case.dim, rank=case.steps)
        print(" ", case.name, plan)
    print("and of structured cells:")
    for case in SUITES["cells"].cases("cuda"):
        plan = _native.plan_cells(samples=case.graphs, nodes=case.nodes, dim=case.features)
        print(" ", case.name, plan)
name = "cpu" if os.environ["DEVICE"] == "cpu" else "cuda"
absent = getattr(info, f"{name}_library_absent")
sys.exit(absent and f"there is no {name} library: {absent}")
'
}

stage_tests() {
  local workers=() selection=(python_tests/gpu python_tests/ops)
  if [ "$QUICK" = 1 ]; then
    selection=(python_tests/gpu/test_small_shapes.py)
  elif "$RUN_PYTHON" -c 'import xdist' 2>/dev/null; then
    workers=(-n "$(($(nproc) < 8 ? $(nproc) : 8))")
  fi
  # Warnings of a toolchain that is not the pinned one are shown, and are no errors here.
  "$RUN_PYTHON" -m pytest -q -rs --tb=short -W default -p no:cacheprovider --durations=10 \
    --junit-xml="$WORK/tests.xml" "${workers[@]}" "${selection[@]}"
}

stage_sanitizer() { # the tool
  echo "== compute-sanitizer --tool $1"
  # Without torch's caching every tensor is an allocation of its own, with nothing valid behind it.
  # Only kernels are asked about: torch probes the driver with calls that may fail.
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 \
    "$SANITIZER" --tool "$1" --error-exitcode 86 --report-api-errors no \
    --target-processes application-only --print-limit 20 \
    "$RUN_PYTHON" -m pytest -q --tb=short -W default -p no:cacheprovider \
    python_tests/gpu/test_small_shapes.py | tee "$WORK/$1.log"
  local status=$?
  echo "== $1 ended with status $status"
  if grep -q 'not supported' "$WORK/$1.log" || ! grep -q SUMMARY "$WORK/$1.log"; then
    echo "compute-sanitizer cannot check this device or driver: $1 says nothing"
    return $UNAVAILABLE
  fi
  return "$status"
}

stage_benchmark() { # the suite, and the name of its files
  local suite=$1 files=$OUT/$2
  local options=(--json "$files.json" --tests "$TESTS")
  if [ "$DEVICE" = cpu ]; then
    options+=(--rounds 2)
    case $suite in
      broyden) options+=(--cases 2x300x8 --providers ours,plain) ;;
      cells) options+=(--cases 2x5x8 --providers ours,plain-csr) ;;
      training) options+=(--cases ignn/chains/implicit --providers ours) ;;
    esac
  else
    options+=(--device cuda)
    [ "$suite" = broyden ] && options+=(--memory --regimes)
    if [ "$suite" = training ]; then
      options+=(--cases "$(training_cases)" --rounds "$((QUICK ? 3 : 9))")
    elif [ "$QUICK" = 1 ]; then
      options+=(--quick)
    fi
  fi
  "$RUN_PYTHON" -c 'import matplotlib' 2>/dev/null && options+=(--plot "$files.png")
  [ -n "$COMMIT" ] && options+=(--commit "$COMMIT")
  "$RUN_PYTHON" -m benchmarks "$suite" "${options[@]}" 2>"$WORK/$2.log"
  local status=$?
  [ "$status" = 0 ] && return
  # After a table, 1 means that something was refused, which the table says and the summary judges.
  [ "$status" = 1 ] && [ -s "$files.txt" ] && return
  tail -n 60 "$WORK/$2.log"
  return "$status"
}

training_cases() { # one gradient of every model first, in case that time runs out
  local models=(transformer/pydoc ignn/chains) gradients=(implicit) cases=() gradient model
  # The digits come with scikit-learn.
  "$RUN_PYTHON" -c 'import sklearn' 2>/dev/null && models=(mdeq/digits "${models[@]}")
  [ "$QUICK" = 1 ] || gradients+=(unrolled jfb)
  for gradient in "${gradients[@]}"; do
    for model in "${models[@]}"; do
      cases+=("$model/$gradient")
    done
  done
  (IFS=, && echo "${cases[*]}")
}

if [ "${1:-}" = --stage ]; then
  cd "$ROOT" || exit
  "stage_$2" "${@:3}"
  exit
fi

OUT='' QUICK=0 WHEELS='' COMMIT='' PYTHON=python3 TOTAL=570 BUILD=1 DEVICE=cuda
while [ $# -gt 0 ]; do
  case $1 in
    --help | -h) usage && exit 0 ;;
    --quick) QUICK=1 ;;
    --no-build) BUILD=0 ;;
    --rehearse) DEVICE=cpu QUICK=1 ;;
    --wheels | --commit | --python | --seconds)
      [ $# -ge 2 ] || fail "$1 takes a value; see --help"
      case $1 in
        --wheels) WHEELS=$2 ;;
        --commit) COMMIT=$2 ;;
        --python) PYTHON=$2 ;;
        --seconds) TOTAL=$2 ;;
      esac
      shift
      ;;
    -*) fail "unknown option $1; see --help" ;;
    *) [ -z "$OUT" ] || fail "one folder for the results is wanted, but got $OUT and $1"
      OUT=$1 ;;
  esac
  shift
done
[ -n "$OUT" ] || fail "name a folder for the results; see --help"
[[ $TOTAL =~ ^[1-9][0-9]*$ ]] || fail "--seconds takes a whole number, but got $TOTAL"
command -v "$PYTHON" >/dev/null || fail "$PYTHON is not there; name another with --python"
# The link that a virtual environment has for its interpreter says which environment it is.
[[ $PYTHON == */* ]] && PYTHON=$(realpath --no-symlinks "$PYTHON")
if [ -n "$WHEELS" ]; then
  [ "$BUILD" = 1 ] || fail "--wheels are installed while building; leave out --no-build"
  compgen -G "$WHEELS/*.whl" >/dev/null || fail "there is no wheel in $WHEELS"
  WHEELS=$(readlink -f "$WHEELS")
fi
if [ "$DEVICE" = cuda ]; then
  capability=$("$PYTHON" -c '
import torch
if not torch.cuda.is_available():
    raise SystemExit(f"torch {torch.__version__} sees no GPU")
print("%d%d" % torch.cuda.get_device_capability())
' 2>&1) || fail "an NVIDIA GPU that torch can use is needed, but $PYTHON says: ${capability##*$'\n'};" \
    "--rehearse walks through the stages on the CPU"
  capability=${capability##*$'\n'}
  export DEQ_KERNELS_CUDA_ARCHS=${DEQ_KERNELS_CUDA_ARCHS:-$capability} DEQ_KERNELS_CUDA=on
fi
mkdir -p "$OUT" || fail "cannot create $OUT"
OUT=$(readlink -f "$OUT")
cd "$ROOT" || fail "cannot enter $ROOT"
rm -f "$OUT"/{facts,build,tests,sanitizer}.txt "$OUT"/{bench,cells,train}.{json,png,txt} \
  "$OUT"/summary.json

WORK=$ROOT/build/gpu
mkdir -p "$WORK/tmp" || fail "cannot create $WORK"
rm -f "$WORK"/{tests.xml,{bench,cells,train}.log,stages.tsv}
VENV_PYTHON=$WORK/venv/bin/python
RUN_PYTHON=$PYTHON
[ "$BUILD" = 1 ] && RUN_PYTHON=$VENV_PYTHON
SANITIZER=$(PATH=$PATH:${CUDA_HOME:-/usr/local/cuda}/bin:/usr/local/cuda/compute-sanitizer command -v compute-sanitizer || echo compute-sanitizer)
TESTS=failed
export OUT QUICK WHEELS COMMIT PYTHON DEVICE WORK VENV_PYTHON RUN_PYTHON SANITIZER TESTS
# Everything that would be kept elsewhere.
export TMPDIR=$WORK/tmp DEQ_KERNELS_BUILD_DIR=$WORK/build XDG_CACHE_HOME=$WORK/cache
export TRITON_CACHE_DIR=$WORK/cache/triton TORCHINDUCTOR_CACHE_DIR=$WORK/cache/inductor
export CUDA_CACHE_PATH=$WORK/cache/cuda MPLCONFIGDIR=$WORK/cache/matplotlib
export PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 PYTHONPATH=$ROOT:$ROOT/zoo

say() { echo "[$SECONDS s] $*"; }

record() { # name, status, seconds, detail
  printf '%s\t%s\t%s\t%s\n' "$@" >>"$WORK/stages.tsv"
  say "$1: $2${4:+ ($4)}"
}

# Runs a stage for at most `limit` seconds, and until `share` percent of the total are over.
# DEQ_KERNELS_STAGE_SECONDS lowers every limit, for the tests of this script.
stage() { # name, limit, share, log, command...
  local name=$1 limit=$2 room=$((TOTAL * $3 / 100 - SECONDS)) log=$4
  shift 4
  ((room > ${DEQ_KERNELS_STAGE_SECONDS:-room})) && room=$DEQ_KERNELS_STAGE_SECONDS
  ((limit > room)) && limit=$room
  if ((limit < 2)); then
    record "$name" skipped 0 "no time left"
    return 1
  fi
  say "$name: begins, at most $limit s"
  local began=$SECONDS
  timeout --kill-after=10 "$limit" "$@" >>"$log" 2>&1
  local status=$?
  local took=$((SECONDS - began))
  case $status in
    0) record "$name" passed $took "" ;;
    124 | 137) record "$name" "timed out" $took "after $limit s" ;;
    "$UNAVAILABLE") record "$name" skipped $took "not possible here, see $(basename "$log")" ;;
    *) record "$name" failed $took "status $status" ;;
  esac
  return $status
}

say "deq_kernels on $DEVICE; results go to $OUT"
stage facts 30 100 "$OUT/facts.txt" "$BASH" "$SELF" --stage facts
if [ "$BUILD" = 1 ]; then
  stage build 240 42 "$OUT/build.txt" "$BASH" "$SELF" --stage build
else
  stage installed 60 42 "$OUT/build.txt" "$BASH" "$SELF" --stage installed
fi
BUILT=$?
if [ "$BUILT" = 0 ]; then
  export DEQ_KERNELS_BACKEND=native
else
  [ -s "$OUT/build.txt" ] && tail -n 40 "$OUT/build.txt"
  # What is left of the package still gives data.
  export DEQ_KERNELS_BACKEND=triton
  [ "$DEVICE" = cpu ] && export DEQ_KERNELS_BACKEND=reference
  [ -x "$RUN_PYTHON" ] || export RUN_PYTHON=$PYTHON
fi
if stage tests 270 65 "$OUT/tests.txt" "$BASH" "$SELF" --stage tests; then
  [ "$BUILT" = 0 ] && TESTS=passed
elif [ -s "$OUT/tests.txt" ]; then
  grep -E '^(FAILED|ERROR)|^E  ' "$OUT/tests.txt" | head -n 40
fi
[ -s "$OUT/tests.txt" ] && tail -n 1 "$OUT/tests.txt"
for tool in memcheck racecheck synccheck; do
  if [ "$QUICK$DEVICE" = 1cuda ]; then
    record "$tool" skipped 0 "a quick run leaves it out"
  elif ! command -v "$SANITIZER" >/dev/null; then
    echo "compute-sanitizer is not there: $tool was not run" >>"$OUT/sanitizer.txt"
    record "$tool" skipped 0 "compute-sanitizer is not there"
  else
    stage "$tool" 90 74 "$OUT/sanitizer.txt" "$BASH" "$SELF" --stage sanitizer "$tool"
  fi
done
stage benchmark 300 88 "$OUT/bench.txt" "$BASH" "$SELF" --stage benchmark broyden bench
stage cells 90 94 "$OUT/cells.txt" "$BASH" "$SELF" --stage benchmark cells cells
stage train 120 98 "$OUT/train.txt" "$BASH" "$SELF" --stage benchmark training train
rm -f "$OUT"/*.tmp
for name in bench cells train; do
  if [ ! -s "$OUT/$name.txt" ] && [ -s "$OUT/$name.json" ]; then # cut short: what there is so far
    "$RUN_PYTHON" -m benchmarks --render "$OUT/$name.json" >"$OUT/$name.txt"
  fi
  [ -s "$OUT/$name.txt" ] && cat "$OUT/$name.txt"
done

"$PYTHON" benchmarks/gpu_summary.py "$OUT" --work "$WORK" --device "$DEVICE" --seconds "$SECONDS"
CORRECT=$?
say "done: $OUT/summary.json"
exit "$CORRECT"
