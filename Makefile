# Every target sets up what it needs: the first run makes .venv and takes a few minutes and about 7 GB, mostly for torch.

PYTHON ?= python3
PYTHON_OLDEST ?= python3.10
PYTEST_ARGS ?=
# A process may take up to 2.5 GB, for the largest networks; `PYTEST_ARGS="-n 0"` runs all tests in one.
PARALLEL := -n auto --maxprocesses 4 --dist worksteal

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
# The bindings of several TensorRT versions, each in a folder of its own: tests check the project's calls against them.
BINDINGS := $(wildcard tests/engines/bindings/requirements-*.txt)
OLDEST := .venv-oldest
OLDEST_READY := $(OLDEST)/ready

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup test lint types format check-tensorrt-headers test-oldest quickstart clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s  %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY)  ## make .venv with everything for working on the project

test: lint types  ## check style, types and behaviour, as CI does
	$(BIN)/python -m pytest $(PARALLEL) $(PYTEST_ARGS)

lint: $(READY)  ## check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)  ## check types
	$(BIN)/mypy -p yolact_deploy

format: $(READY)  ## mend style and formatting
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

check-tensorrt-headers:  ## compile the C++ library against real headers: TENSORRT_INCLUDE=FOLDER [CUDA_INCLUDE=FOLDER]
	$(PYTHON) scripts/check_tensorrt_headers.py "$(TENSORRT_INCLUDE)" "$(CUDA_INCLUDE)"

quickstart: $(READY)  ## export, verify and run the demo model on this machine
	$(BIN)/yolact-deploy quickstart

test-oldest:  ## run the tests on Python 3.10 with the oldest supported packages
	@$(PYTHON_OLDEST) -c '' 2>/dev/null || { echo "$(PYTHON_OLDEST) was not found: install Python 3.10 or name it with PYTHON_OLDEST=path."; exit 1; }
	@$(MAKE) --no-print-directory $(OLDEST_READY)
	$(OLDEST)/bin/python -m pytest $(PARALLEL) $(PYTEST_ARGS)

clean:  ## remove everything that the targets made, artifacts/ excepted
	rm -rf $(VENV) $(OLDEST) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +

$(READY): pyproject.toml constraints.txt $(BINDINGS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "$(PYTHON) is not Python 3.10 or newer: install it, or name it with PYTHON=path."; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -c constraints.txt -e '.[all,test,dev]'
	rm -rf $(VENV)/bindings
	set -e; for file in $(BINDINGS); do \
		version=$${file##*/requirements-}; \
		$(BIN)/python -m pip install --no-deps --require-hashes --only-binary :all: --target $(VENV)/bindings/$${version%.txt} -r $$file; \
	done
	@touch $@

$(OLDEST_READY): pyproject.toml scripts/oldest_constraints.py
	test -x $(OLDEST)/bin/python || $(PYTHON_OLDEST) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet packaging tomli
	$(OLDEST)/bin/python scripts/oldest_constraints.py all test > $(OLDEST)/constraints.txt
	$(OLDEST)/bin/python -m pip install -c $(OLDEST)/constraints.txt -e '.[all,test]'
	@touch $@
