# make demo | make test | make prefect | make ui | make lint
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: install demo test lint prefect ui

install: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "make: Python 3.11 or newer is needed, $(PYTHON) is older; try make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@echo "installing into $(VENV), a few minutes"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@

# DVC starts `python`: let that be the one of the environment
demo: $(READY)
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/actionzoo demo

test: $(READY)
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m ruff check .
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest

lint: $(READY)
	@$(BIN)/python -m ruff check .

# Prefect server, work pool, deployments and worker on 127.0.0.1; Ctrl-C stops them. Another port: make prefect PORT=4201
PORT ?= 4200
prefect: $(READY)
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m flows.local --port $(PORT)

# MLflow's pages on 127.0.0.1:5000
ui: $(READY)
	@$(BIN)/actionzoo ui
