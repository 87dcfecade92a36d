# Everything is set up by the two commands themselves: a virtual environment from the lock file, then the work.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
DATA   ?= .outbox

.DEFAULT_GOAL := help
.PHONY: help run test coverage lint types unit faults bench bench-quick lock clean

help:  ## list what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

run: $(VENV)/.run  ## the main job on real input, embedded: no server, no Docker
	@$(BIN)/outbox --data-dir $(DATA) demo

test: $(VENV)/.dev  ## everything, on real servers started for the run
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(PYTEST)
PYTEST = $(BIN)/python -m pytest --reruns 2 --reruns-delay 1 -rR -n 2 --dist loadfile --no-loadscope-reorder tests

coverage: $(VENV)/.dev  ## the same tests, and what they reach; takes half as long again
	@$(PYTEST) --cov --cov-report=term

lint: $(VENV)/.dev  ## style, format, import direction
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/lint-imports

types: $(VENV)/.dev  ## mypy, strict
	@$(BIN)/mypy

unit: $(VENV)/.dev  ## the tests that need no server
	@$(BIN)/python -m pytest tests/unit

faults: $(VENV)/.dev  ## the fault matrix, into docs/guarantees.md (RUNS=40 of each, or MINUTES=60)
	@$(BIN)/python -m tests.faults $(if $(RUNS),--runs $(RUNS)) $(if $(MINUTES),--minutes $(MINUTES)) \
		$(if $(LANES),--lanes $(LANES)) $(if $(RESUME),--resume)

bench: $(VENV)/.bench  ## every figure beside its reference, into benchmarks/results (half an hour)
	@$(BIN)/python -m benchmarks $(NAMES)

bench-quick: $(VENV)/.bench  ## the same with tiny sizes: proves that they run
	@$(BIN)/python -m benchmarks --quick $(NAMES)

lock: $(VENV)/.uv  ## resolve the dependencies anew
	@$(LOCK) --extra embedded -o requirements.lock
	@$(LOCK) --extra embedded --extra servers --extra confluent --extra django --extra asyncpg --group dev \
		-o requirements-dev.lock
	@$(BIN)/uv pip compile $(LOCKING) --group bench -c requirements-dev.lock -o requirements-bench.lock
LOCKING = -q --universal --python-version 3.11 --no-emit-index-url --no-emit-find-links --no-header --no-annotate
LOCK = $(BIN)/uv pip compile $(LOCKING) pyproject.toml

clean:  ## remove the environment and the demo's data
	rm -rf $(VENV) $(DATA)

$(VENV)/.uv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -q --disable-pip-version-check 'uv>=0.5'
	@touch $@

$(VENV)/.run: requirements.lock pyproject.toml | $(VENV)/.uv
	@$(BIN)/uv pip install -q --python $(BIN)/python -r requirements.lock
	@$(BIN)/uv pip install -q --python $(BIN)/python --no-deps -e .
	@touch $@

$(VENV)/.dev: requirements-dev.lock pyproject.toml | $(VENV)/.uv
	@$(BIN)/uv pip install -q --python $(BIN)/python -r requirements-dev.lock
	@$(BIN)/uv pip install -q --python $(BIN)/python --no-deps -e .
	@touch $@ $(VENV)/.run

$(VENV)/.bench: requirements-bench.lock $(VENV)/.dev
	@$(BIN)/uv pip install -q --python $(BIN)/python -r requirements-bench.lock
	@touch $@
