#!/usr/bin/env bash
# Everything a GPU is needed for, in one go ("make gpu"): build, tests, the benchmark against the peers that can be
# imported, compute-sanitizer. Fails where CUDA is not reached. Under ten minutes; benchmarks/cuda.csv is written. Needs
# no network: torch, numpy, pytest (with pytest-timeout), and nvcc or the NVRTC of torch.
#
#     PYTHON=.venv/bin/python COMMIT=1234abc bash scripts/gpu.sh     # COMMIT where the files are no repository
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
export SPLAT_SSIM_GPU=1 PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"

"$python" - <<'PROBE'
import sys
import torch
if not torch.cuda.is_available():
    sys.exit(f"PyTorch {torch.__version__} reaches no CUDA device")
print(torch.__version__, torch.cuda.get_device_name(), torch.cuda.get_device_capability())
PROBE
capability=$("$python" -c 'import torch; print("{}.{}".format(*torch.cuda.get_device_capability()))')
# With nvcc the kernels are embedded; without, NVRTC compiles them at first use.
SPLAT_SSIM_CUDA=auto TORCH_CUDA_ARCH_LIST="$capability+PTX" "$python" csrc/build.py
"$python" -m splat_ssim

# What fails is told at the end: the machine is not lent for long.
failed=""
stage() {
  local name=$1
  shift
  echo "== $name"
  "$@" || failed="$failed $name"
}

# These files alone: others import packages that a machine without a network may lack.
stage tests "$python" -m pytest -m "cuda or (emulation and not slow)" tests/test_cuda*.py tests/test_voxelize_cuda.py
stage functions "$python" -m pytest -m cuda tests/test_functional.py tests/test_loss.py tests/test_ops_ssim.py

stage benchmark "$python" scripts/cuda_benchmark.py --csv benchmarks/cuda.csv

# Last: some virtual machines refuse it the device.
sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null || true)
if [ -n "$sanitizer" ]; then
  # PyTorch's allocator hides overruns inside its blocks: without it every tensor is an allocation of its own.
  export PYTORCH_NO_CUDA_MEMORY_CACHING=1
  subset='(test_weights and same) or (test_map_and_channel_means and valid) or (test_dtypes_and_layouts and float16)'
  for tool in memcheck racecheck; do
    # Our kernels alone: PyTorch's take most of the time, and it probes the driver with calls that fail.
    stage "$tool" timeout 150 "$sanitizer" --tool "$tool" --error-exitcode 9 --target-processes all \
      --report-api-errors no --kernel-name kernel_substring=splat_ \
      "$python" -m pytest -p no:cacheprovider tests/test_cuda.py -k "$subset"
  done
else
  echo "compute-sanitizer is not installed: memcheck and racecheck did not run"
fi
[ -z "$failed" ] || { echo "failed:$failed"; exit 1; }
