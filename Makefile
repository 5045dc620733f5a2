# `make demo` shows it, `make checks` checks it. Each makes the virtual environment first when it is missing.
PYTHON ?= python3
VENV ?= .venv
PYTEST_ARGS ?=
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
OLDEST := .venv-oldest

.PHONY: help install demo test test-slow faults test-oldest resolve checks format format-check lint types clean
help:  ## list the commands
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

install: $(INSTALLED)  ## make the virtual environment
$(INSTALLED): pyproject.toml requirements/pinned.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint requirements/pinned.txt --editable ".[dev]"
	touch $@

demo: $(INSTALLED)  ## run the whole of Stage 1 on a small made-up SAM3 (4 minutes)
	PATH="$(abspath $(BIN)):$$PATH" python demo/run.py

test: $(INSTALLED)  ## run the tests
	$(BIN)/python -m pytest $(PYTEST_ARGS)

test-slow: $(INSTALLED)  ## run the slow tests: full-size SAM3, minutes of training
	$(BIN)/python -m pytest -n 0 -m slow $(PYTEST_ARGS)

faults: $(INSTALLED)  ## try every fault of tests/faults, and count those that hold
	cd tests && PYTHONPATH=. ../$(BIN)/python -m pytest -p faults.tally -m "slow or not slow" --dist worksteal faults $(PYTEST_ARGS)

test-oldest:  ## run the tests on the oldest versions that pyproject.toml admits
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet --upgrade pip
	$(OLDEST)/bin/python -m pip install --quiet --constraint requirements/oldest.txt --editable ".[dev]"
	$(OLDEST)/bin/python -m pytest $(PYTEST_ARGS)

resolve: $(INSTALLED)  ## show that the dependencies resolve on Python 3.11, 3.12 and 3.13
	for version in 3.11 3.12 3.13; do \
	  $(BIN)/python -m pip install --quiet --dry-run --ignore-installed --only-binary=:all: --python-version $$version \
	    --target /tmp/resolve $$($(BIN)/python requirements/list.py) && echo "Python $$version: resolves"; done

checks: format-check lint types test  ## everything that a change must pass; what CI runs

format: $(INSTALLED)  ## format the code and fix what the linter can fix
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

format-check: $(INSTALLED)  ## check the formatting
	$(BIN)/ruff format --check .

lint: $(INSTALLED)  ## check the style
	$(BIN)/ruff check .

types: $(INSTALLED)  ## check the types of the package
	$(BIN)/mypy

clean:  ## remove the virtual environments
	rm -rf $(VENV) $(OLDEST)
