#!/usr/bin/env bash
# Everything a GPU is needed for, in one go ("make gpu"): build, tests, compute-sanitizer, benchmark against the peers
# that can be imported. Fails where CUDA is not reached. About ten minutes; benchmarks/cuda.csv and gpu.log are written.
#
#     PYTHON=.venv/bin/python bash scripts/gpu.sh
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
export SPLAT_SSIM_GPU=1 PYTHONPATH=.

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

"$python" -m pytest -m "cuda or emulation"

sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null || true)
if [ -n "$sanitizer" ]; then
  # PyTorch's allocator hides overruns inside its blocks: without it every tensor is an allocation of its own.
  export PYTORCH_NO_CUDA_MEMORY_CACHING=1
  subset='test_weights or test_map_and_channel_means or (test_dtypes_and_layouts and float16)'
  for tool in memcheck racecheck; do
    "$sanitizer" --tool "$tool" --error-exitcode 9 --target-processes all \
      "$python" -m pytest -p no:cacheprovider tests/test_cuda.py -k "$subset"
  done
  unset PYTORCH_NO_CUDA_MEMORY_CACHING
else
  echo "compute-sanitizer is not installed: memcheck and racecheck did not run"
fi

"$python" scripts/cuda_benchmark.py --csv benchmarks/cuda.csv
