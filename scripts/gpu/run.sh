#!/usr/bin/env bash
# Everything a GPU is needed for, in one go ("make gpu"), in under ten minutes. Needs no network: torch, numpy, pytest,
# and nvcc or the NVRTC of torch.
#
#     PYTHON=.venv/bin/python OUT=results/gpu COMMIT=1234abc bash scripts/gpu/run.sh
#
# What it finds goes into $OUT as it comes: log, stages.csv (what became of each stage), benchmark.csv, metrics.json of a
# training, the profile of a kernel. $COMMIT is for a folder that is no repository. The folder .gpu/, if there is one, is
# put on Python's path: peers and gsplat for a machine without a network. $STAGES names the stages to run; all without it.
# $PATIENCE multiplies the limits.
# SMALL=1 runs every stage with tiny sizes, to see that it runs: tests/test_gpu_run.py does so on a stub of a GPU.
set -u
cd "$(dirname "$0")/../.."
python=${PYTHON:-python3}
out=${OUT:-results/gpu}
mkdir -p "$out"
export SPLAT_SSIM_GPU=1 PYTHONUNBUFFERED=1 MAX_JOBS=${MAX_JOBS:-16} OMP_NUM_THREADS=${OMP_NUM_THREADS:-8}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}:$PWD/.gpu"
small=${SMALL:+--small}
echo "stage,result,seconds" > "$out/stages.csv"
: > "$out/log"

# stage NAME LIMIT COMMAND…: what it prints is seen and kept; it ends at its limit, and the next one begins. A command
# that ends with 77 says that what it needs is not there. Stages that run at once each print when they end.
stage() {
  local name=$1 limit=$(($2 * ${PATIENCE:-1})) begin=$SECONDS result status
  shift 2
  [[ -z "${STAGES:-}" || " $STAGES " == *" $name "* ]] || return 0
  if [[ -n "${at_once:-}" ]]; then
    timeout -k 5 "$limit" "$@" > "$out/$name.tmp" 2>&1
    status=$?
    { echo "== $name, at most $limit s" && cat "$out/$name.tmp"; } | tee -a "$out/log"
    rm "$out/$name.tmp"
  else
    echo "== $name, at most $limit s" | tee -a "$out/log"
    timeout -k 5 "$limit" "$@" 2>&1 | tee -a "$out/log"
    status=${PIPESTATUS[0]}
  fi
  case $status in
    0) result=passed ;;
    77) result="not available" ;;
    124 | 137) result="ended at its limit of $limit s" ;;
    *) result="failed with $status" ;;
  esac
  echo "$name,$result,$((SECONDS - begin))" | tee -a "$out/stages.csv"
}

probe() {
  nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.mem,temperature.gpu,power.draw --format=csv || true
  "$python" - <<'PROBE'
import sys
import torch
print("torch", torch.__version__, "CUDA", torch.version.cuda)
if not torch.cuda.is_available():
    sys.exit("a CUDA device is required, and PyTorch reaches none")
print(torch.cuda.get_device_name(), torch.cuda.get_device_capability())
PROBE
}

# With nvcc the kernels are embedded; without, NVRTC compiles them at first use.
build() {
  local architecture
  architecture=$("$python" -c 'import torch; print("{}.{}+PTX".format(*torch.cuda.get_device_capability()))')
  SPLAT_SSIM_CUDA=auto TORCH_CUDA_ARCH_LIST=$architecture "$python" csrc/build.py && "$python" -m splat_ssim
}

# The pytest of other machines may lack the plugins for time limits and for several workers.
tests() {
  local options=(--tb=short -rfE --maxfail 25 -p no:cacheprovider)
  "$python" -c "import pytest_timeout" 2>/dev/null && options+=(--timeout 60 --timeout-method thread)
  "$python" -c "import xdist" 2>/dev/null && options+=(-n "${WORKERS:-6}")
  "$python" -m pytest "${options[@]}" "$@"
}

# sanitize TOOL OPTION…: our kernels alone, since torch probes the driver with calls that fail. The allocator of torch hides
# overruns inside its blocks. Some virtual machines do not let it at the device.
sanitize() {
  local tool=$1 program text
  shift
  program=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null)
  [[ -n "$program" ]] || { echo "$tool: compute-sanitizer is not installed"; return 77; }
  text=$(mktemp)
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 "$program" --tool "$tool" --error-exitcode 9 --report-api-errors no --print-limit 20 \
    --kernel-name kernel_substring=splat_ "$@" "$python" scripts/gpu/smoke.py $small 2>&1 | tee "$text"
  local status=${PIPESTATUS[0]}
  if [[ $status != 0 && $status != 9 ]] && ! grep -q "^kernels started" "$text"; then
    echo "$tool: compute-sanitizer does not run here"
    status=77
  fi
  rm -f "$text"
  return "$status"
}

# Issue slots, stalls and shared memory of the fused kernels, at 1080p and 256 cubed.
profile() {
  local program
  program=$(command -v ncu || ls /usr/local/cuda/bin/ncu 2>/dev/null)
  [[ -n "$program" ]] || { echo "ncu is not installed"; return 77; }
  "$program" --clock-control none --set full -k regex:splat_ -c 8 -f -o "$out/kernels" \
    "$python" scripts/gpu/benchmark.py $small --one || { echo "ncu does not run here"; return 77; }
  "$program" --import "$out/kernels.ncu-rep" --page details || true
}

# The trainer on gsplat's kernels, which take minutes to compile: not here.
train() {
  local steps=1000 folder status
  [[ -z "$small" ]] || steps=2
  "$python" -c "import torch, gsplat.csrc, tyro" || { echo "gsplat is not there compiled, or tyro is not installed"; return 77; }
  folder=$(mktemp -d)  # of its many files the metrics are wanted
  "$python" scripts/train.py --device cuda --steps "$steps" --result-dir "$folder/chair" --checkpoint-every 100000
  status=$?
  cp "$folder/chair/metrics.json" "$out/metrics.json" 2>/dev/null
  rm -rf "$folder"
  return $status
}

export -f probe build tests sanitize profile train
export python out small
run() { stage "$1" "$2" bash -c "${*:3}"; }
failed() { awk -F, 'NR > 1 && $2 != "passed" && $2 != "not available" { printf " %s", $1 }' "$out/stages.csv"; }

on_device="tests/test_cuda.py tests/test_determinism.py tests/test_rgba.py tests/test_prepared.py"
functions="tests/test_ops_ssim.py tests/test_loss.py tests/test_functional.py tests/test_ms_ssim.py"
functions="$functions tests/test_compat_*.py tests/test_volume_device.py tests/test_ct_device.py tests/test_rasterize_*.py"
if [[ -n "$small" ]]; then
  on_device='tests/test_cuda.py -k "test_the_upstream_value"'
  functions='tests/test_loss.py -k "test_a_retained_graph"'
fi

run machine 20 probe
[[ -z "$(failed)" ]] || exit 1
run build 60 build
run smoke 25 '"$python" scripts/gpu/smoke.py $small'
run time 85 '"$python" scripts/gpu/benchmark.py $small --csv "$out/benchmark.csv" --losses'
run ncu 30 profile
run trainer 40 train
run voxelizer 20 '"$python" scripts/gpu/benchmark.py $small --csv "$out/benchmark.csv" --voxelizer'
run projector 20 '"$python" scripts/gpu/benchmark.py $small --csv "$out/benchmark.csv" --projector'
# Nothing here is timed.
at_once=1
run tests 140 "tests -m cuda $on_device" &
run functions 140 "tests -m cuda $functions" &
run racecheck 140 sanitize racecheck &
run memcheck 140 sanitize memcheck --padding 128 &
run synccheck 140 sanitize synccheck &
wait
at_once=
run compiled 120 '"$python" scripts/gpu/benchmark.py $small --csv "$out/benchmark.csv" --compiled'

echo "== results, in $out"
cat "$out/stages.csv"
[[ -z "$(failed)" ]] || { echo "not passed:$(failed)"; exit 1; }
