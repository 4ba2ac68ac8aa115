# Each target is complete on a fresh machine: it makes its own virtual environment with pinned versions first.
PYTHON ?= python3
VENV ?= .venv
# Extra arguments: make train ARGS="--loss ssim", make test ARGS="-k ssim3d".
ARGS ?=
# How long `make fuzz` goes on, from which seed, in how many processes.
SECONDS ?= 600
SEED ?= 0
WORKERS ?= 1
# How many rounds `make kill-rounds` has, and how many files `make fuzz-files` reads.
ROUNDS ?= 50
COUNT ?= 100000
# On a machine without a GPU, PyTorch's own CPU package index saves gigabytes: see docs/start/install.md.
PIP_ARGS ?=

# Where nvcc is found, kernels are built for these; other GPUs compile theirs at first use. `make wheel` builds all.
export TORCH_CUDA_ARCH_LIST ?= 7.5;8.9;9.0+PTX

# Files whose tests take a few seconds each: what `make test-fast` runs.
FAST := benchmarks_curve benchmarks_volume build compat_fused_ssim compat_fussim compat_gsplat compat_kornia_losses \
  compat_monai compat_skimage config_ranges ct data definition doctests finite format_files formats \
  full_disk high_opacity house_bugs loss observing optim oracle photos platforms ply progressive rasterize_cuda \
  registry report scene_checks seeing strategy_capped theirs volume_formats volume_io volume_itk volume_memory \
  volume_models volume_readers volume_strategies voxelize xray

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt $(PIP_ARGS)
NATIVE := setup.py $(wildcard csrc/*.py csrc/*.h csrc/*/*)
.DELETE_ON_ERROR:
.PHONY: train test test-fast test-long docs gallery test-pythons theirs fuzz fuzz-files kill-rounds sanitize check gpu cross arm windows wheel wheel-check \
  install-rounds pins clean

## train: the main job, a trained Gaussian scene of the chair in results/
train: $(VENV)/train.done
	$(BIN)/python scripts/train.py $(ARGS)

## test: the test suite, in as many processes as there are processors
test: $(VENV)/test.done
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not long" $(ARGS)

## test-long: the tests that 'make test' leaves out, since each takes half a minute or more
test-long: $(VENV)/test.done
	$(BIN)/python -m pytest -n auto --dist worksteal -m long $(ARGS)

## test-fast: the loss, readers, formats and drop-ins in less than a minute; no long training, no compiler
test-fast: $(VENV)/test.done
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not slow and not long and not emulation" $(FAST:%=tests/test_%.py) $(ARGS)

## docs: the documentation site in build/docs/html, its short examples run; any warning or broken link is an error
docs: $(VENV)/docs.done
	OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -a -b html -W --keep-going -q docs build/docs/html $(ARGS)

## gallery: the same with the long examples of the gallery run too, which take minutes
gallery: $(VENV)/docs.done
	SPLAT_SSIM_GALLERY=all $(MAKE) docs

## test-pythons: the test suite with each of several Pythons: make test-pythons PYTHONS="3.10 path/to/python"
test-pythons:
	@# 3.10 stands for python3.10, or for pyenv's newest. Each Python gets an environment of its own, .venv-3.10.
	@set -e; for name in $(or $(PYTHONS),3.10 3.13); do \
	  python=; version=; \
	  for candidate in $$name python$$name $$(ls -d $${PYENV_ROOT:-$$HOME/.pyenv}/versions/$$name.*/bin/python 2>/dev/null | sort -rV); do \
	    if version=$$($$candidate -c "import sys; print('%d.%d' % sys.version_info[:2])" 2>/dev/null); then \
	      python=$$candidate; break; fi; \
	  done; \
	  if [ -z "$$python" ]; then echo "Python $$name is not installed: give its path in PYTHONS" >&2; exit 1; fi; \
	  echo "Python $$version: $$python"; \
	  $(MAKE) test PYTHON=$$python VENV=$(VENV)-$$version; \
	done

## theirs: our renderer and loss in gsplat's and nerfstudio's own code (docs/theirs.md): make theirs THEIRS=FOLDER
theirs: $(VENV)/test.done
	@# FOLDER holds copies, of which nothing enters this project:
	@#   git clone -b v1.5.3 https://github.com/nerfstudio-project/gsplat FOLDER/gsplat-1.5.3
	@#   git clone https://github.com/nerfstudio-project/gsplat FOLDER/gsplat-main && git -C FOLDER/gsplat-main checkout 90d7b4b
	@#   git clone https://github.com/nerfstudio-project/nerfstudio FOLDER/nerfstudio && git -C FOLDER/nerfstudio checkout 50e0e3c
	@#   git clone https://github.com/rmbrualla/pycolmap FOLDER/pycolmap && git -C FOLDER/pycolmap checkout cc7ea4b
	@# The packages that they import are installed beside them, without dependencies; "old" is for gsplat 1.5.3 alone.
	@test -d "$(THEIRS)/gsplat-1.5.3" || { echo "make theirs THEIRS=FOLDER: the Makefile says what FOLDER must hold" >&2; exit 1; }
	test -d "$(THEIRS)/packages" || $(BIN)/python -m pip install --disable-pip-version-check -q --no-deps \
	  --target "$(THEIRS)/packages" -r tests/theirs-requirements.txt
	test -d "$(THEIRS)/old" || $(BIN)/python -m pip install --disable-pip-version-check -q --no-deps --target "$(THEIRS)/old" numpy==1.26.4
	SPLAT_SSIM_THEIRS="$(abspath $(THEIRS))" $(BIN)/python -m pytest tests/test_theirs.py $(ARGS)

## fuzz: random calls against the tests' float64 oracle: make fuzz SECONDS=600 SEED=1 WORKERS=2 ARGS=--emulation
fuzz: $(VENV)/test.done
	$(BIN)/python -m tests.fuzz --seconds $(SECONDS) --seed $(SEED) --workers $(WORKERS) $(ARGS)

## kill-rounds: trainings killed, stopped or without disk at random moments, then resumed: make kill-rounds ROUNDS=50 SEED=0
kill-rounds: $(VENV)/test.done
	$(BIN)/python -m tests.kill_rounds --rounds $(ROUNDS) --seed $(SEED) $(ARGS)

## fuzz-files: damaged scenes, clouds, configs and checkpoints: make fuzz-files COUNT=100000 SEED=0
fuzz-files: $(VENV)/test.done
	$(BIN)/python -m tests.fuzz_files --count $(COUNT) --seed $(SEED) $(ARGS)

## check: formatting, lint and types, of Python and of C++
check: $(VENV)/test.done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(wildcard csrc/*.h csrc/*/*.h csrc/*/*.cpp csrc/*/*.cu)
	$(BIN)/mypy

## sanitize: the CPU kernels under the address, undefined-behaviour and thread sanitizers of g++
sanitize: $(VENV)/test.done
	$(BIN)/python scripts/sanitize.py $(ARGS)

## gpu: everything that needs a GPU, in under ten minutes, into results/gpu: tests, sanitizers, benchmark, training
gpu:
	@# A Python whose torch reaches the GPU is used as it is: no network is needed then.
	if $(PYTHON) -c "import numpy, pytest, torch; torch.cuda.init()" 2>/dev/null; then PYTHON=$(PYTHON) bash scripts/gpu/run.sh; \
	else $(MAKE) $(VENV)/test.done && PYTHON=$(BIN)/python bash scripts/gpu/run.sh; fi

## cross: the library for every system that a compiler is found for, and what it exports; zig is for all of them
cross:
	$(PYTHON) -m venv $(VENV)-zig
	$(VENV)-zig/bin/python -m pip install --disable-pip-version-check -q ziglang $(PIP_ARGS)
	SPLAT_SSIM_CUDA=0 $(VENV)-zig/bin/python scripts/cross_build.py $(ARGS)

## arm: the NEON kernels under qemu against float64 (Debian: g++-aarch64-linux-gnu, qemu-user)
arm:
	$(PYTHON) scripts/run_vectors.py --target linux-aarch64

## windows: the kernels of the DLL under wine against float64 (Debian: g++-mingw-w64-x86-64, wine)
windows:
	$(PYTHON) scripts/run_vectors.py --target windows-x86_64

## wheel: one wheel for every Python and torch, in dist/
wheel: $(VENV)/torch.done
	$(PIP) build
	TORCH_CUDA_ARCH_LIST= $(BIN)/python -m build --wheel -o dist .

## wheel-check: the wheel with the Pythons that have torch: make wheel-check PYTHONS="a/bin/python b/bin/python"
wheel-check: wheel
	set -e; for python in $(or $(PYTHONS),$(BIN)/python); do $$python scripts/check_wheel.py $$(ls -t dist/*.whl | head -1); done

## install-rounds: fresh environments with and without a compiler, by sdist, folder and editable (gigabytes of torch)
install-rounds:
	$(PYTHON) scripts/install_rounds.py $(ARGS)

## pins: resolve constraints.txt anew for Python 3.10 and newer
pins: $(VENV)/torch.done
	$(PIP) uv
	echo "torch==2.13.0" > $(VENV)/torch.in
	{ echo "# Pinned versions for 'make train' and 'make test', Python 3.10 and newer: 'make pins' writes this file."; \
	  $(BIN)/uv pip compile -q --universal --python-version 3.10 --all-extras --constraint $(VENV)/torch.in --no-header \
	    --no-annotate pyproject.toml | grep -v -E '^(nvidia-cu|nvidia-n|cuda-|triton)'; } > constraints.tmp
	mv constraints.tmp constraints.txt

clean:
	rm -rf build dist docs/generated $(VENV) $(VENV)-zig splat_ssim/*.so splat_ssim/*.dylib splat_ssim/*.dll *.egg-info

$(VENV)/torch.done: constraints.txt
	$(PYTHON) -c "import sys; sys.exit('Python 3.10 or newer is required, got ' + sys.version) if sys.version_info < (3, 10) else 0"
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch==2.13.0
	touch $@

$(VENV)/train.done: $(VENV)/torch.done pyproject.toml $(NATIVE)
	$(PIP) -e ".[train]"
	touch $@

$(VENV)/docs.done: $(VENV)/torch.done pyproject.toml $(NATIVE)
	$(BIN)/python -c "import sys; sys.exit('make docs requires Python 3.11 or newer') if sys.version_info < (3, 11) else 0"
	$(PIP) -e ".[train,volume,docs]"
	touch $@

$(VENV)/test.done: $(VENV)/torch.done pyproject.toml $(NATIVE)
	$(PIP) -e ".[train,volume,test,dev]"
	touch $@
