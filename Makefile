# Each target is complete on a fresh machine: it makes its own virtual environment with pinned versions first.
PYTHON ?= python3
VENV ?= .venv
# Extra arguments: make train ARGS="--loss ssim", make test ARGS="-k ssim3d".
ARGS ?=
# On a machine without a GPU, PyTorch's own CPU package index saves gigabytes: see the README.
PIP_ARGS ?=

# Where nvcc is found, kernels are built for these; other GPUs compile theirs at first use. `make wheel` builds all.
export TORCH_CUDA_ARCH_LIST ?= 7.5;8.9;9.0+PTX

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt $(PIP_ARGS)
NATIVE := setup.py $(wildcard csrc/*.py csrc/*/*)
.DELETE_ON_ERROR:
.PHONY: train test check gpu wheel pins clean

## train: the main job, a trained Gaussian scene of the chair in results/
train: $(VENV)/train.done
	$(BIN)/python scripts/train.py $(ARGS)

## test: the test suite
test: $(VENV)/test.done
	$(BIN)/python -m pytest $(ARGS)

## check: formatting, lint and types
check: $(VENV)/test.done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

## gpu: everything that needs a GPU: build, tests, compute-sanitizer, benchmark; fails where CUDA is not reached
gpu: $(VENV)/test.done
	PYTHON=$(BIN)/python bash scripts/gpu.sh

## wheel: one wheel for every Python and torch, in dist/
wheel: $(VENV)/torch.done
	$(PIP) build
	TORCH_CUDA_ARCH_LIST= $(BIN)/python -m build --wheel -o dist .

## pins: resolve constraints.txt anew for Python 3.10 and newer
pins: $(VENV)/torch.done
	$(PIP) uv
	echo "torch==2.13.0" > $(VENV)/torch.in
	{ echo "# Pinned versions for 'make train' and 'make test', Python 3.10 and newer: 'make pins' writes this file."; \
	  $(BIN)/uv pip compile -q --universal --python-version 3.10 --all-extras --constraint $(VENV)/torch.in --no-header \
	    --no-annotate pyproject.toml | grep -v -E '^(nvidia-cu|nvidia-n|cuda-|triton)'; } > constraints.tmp
	mv constraints.tmp constraints.txt

clean:
	rm -rf build dist $(VENV) splat_ssim/*.so *.egg-info

$(VENV)/torch.done: constraints.txt
	$(PYTHON) -c "import sys; sys.exit('Python 3.10 or newer is required, got ' + sys.version) if sys.version_info < (3, 10) else 0"
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch==2.13.0
	touch $@

$(VENV)/train.done: $(VENV)/torch.done pyproject.toml $(NATIVE)
	$(PIP) -e ".[train]"
	touch $@

$(VENV)/test.done: $(VENV)/torch.done pyproject.toml $(NATIVE)
	$(PIP) -e ".[train,volume,test,dev]"
	touch $@
