ifneq ($(wildcard pyproject.toml flows/local.py),pyproject.toml flows/local.py)
$(error run this in the checkout: make -C $(patsubst %/,%,$(dir $(abspath $(firstword $(MAKEFILE_LIST))))) $(MAKECMDGOALS))
endif

# make demo | make test | make prefect | make worker | make ui | make lint | make lock
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: install demo test lint lock prefect worker ui

install: $(READY)

$(READY): pyproject.toml constraints.txt constraints-torch.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "make: Python 3.11 or newer is needed, $(PYTHON) is older; try make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@echo "installing into $(VENV), a few minutes"
	$(PYTHON) -m venv $(VENV)
	@$(PIP) --require-hashes --no-deps -r constraints.txt
	@$(PIP) -r constraints-torch.txt
	@$(PIP) --no-deps --no-build-isolation -e .
	@$(BIN)/python -m pip --disable-pip-version-check check
	@touch $@

# DVC starts `python`; PATH makes it the environment's
demo: $(READY)
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/actionzoo demo

test: $(READY)
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

lint: $(READY)
	@$(BIN)/python -m ruff check .
	@$(BIN)/python -m ruff format --check --quiet .
	@$(BIN)/python -m mypy

# Packages of PyTorch's CUDA builds. constraints.txt leaves them out; its header says why
CUDA := $(addprefix cuda-,bindings pathfinder toolkit) triton \
	$(addprefix nvidia-,cublas cuda-cupti cuda-nvrtc cuda-runtime cudnn-cu13 cufft cufile curand cusolver cusparse cusparselt-cu13 nccl-cu13 nvjitlink nvshmem-cu13 nvtx)

# Updates constraints.txt with uv (https://docs.astral.sh/uv); versions that it lists stay
lock:
	@sed '/^[^#]/d' constraints.txt > constraints.head && cp constraints.txt constraints.new
	uv pip compile --quiet --no-config pyproject.toml --extra test --universal --python-version 3.11 --generate-hashes \
		--no-annotate --no-header -c constraints-torch.txt $(addprefix --no-emit-package ,torch $(CUDA)) -o constraints.new
	@cat constraints.head constraints.new > constraints.txt && rm constraints.head constraints.new

# Prefect server, work pool, deployments and worker on 127.0.0.1; Ctrl-C stops all. Another port: make prefect PORT=4201
PORT ?= 4200
prefect: $(READY)
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m flows.local --port $(PORT)

# A worker on this machine for a Prefect server elsewhere, which PREFECT_API_URL names (docs/machines.md)
worker: $(READY)
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m flows.worker $(if $(LIMIT),--limit $(LIMIT))

# MLflow's pages on 127.0.0.1:5000
ui: $(READY)
	@$(BIN)/actionzoo ui
