# One door for people. Every target does the set-up it needs; only Python 3.11 and make are expected.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# One more than the two cores of CI: tests wait for processes to start. Measured on tests of sites and directors, alone:
# 95 s with three, 119 s with two. Where memory is short, WORKERS=2.
WORKERS ?= 3

.PHONY: install quickstart test test-deps lint format proto bench clean help

help:  ## Show what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

install: $(STAMP)  ## Make .venv with everything for development

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e '.[dev]'
	@# pip compiles on one core. Some packages carry templates that are no Python, as pip would pass over too.
	$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true
	touch $(STAMP)

quickstart: $(STAMP)  ## Three hospitals train one model, for real, on this machine
	$(BIN)/federation quickstart

test-deps:  ## Install the programs some tests need (bubblewrap); uses apt-get where it can
	@sh tests/install_programs.sh

test: $(STAMP) test-deps  ## Run all tests
	@# Hundreds of processes import ours: compiled once, also where the environment or a sandbox forbids to keep it.
	$(BIN)/python -m compileall -q federation director envoy
	@# By file, so that what a module makes once (a federation of processes) is made once, and in the order of collection:
	@# what is long comes first, and many small files at the end leave no worker without work.
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

lint: $(STAMP)  ## Check style, types, import contracts and generated protos
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python protos/generate.py --check

format: $(STAMP)  ## Format and mend what can be mended
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

proto: $(STAMP)  ## Generate federation/v1 from protos/
	$(BIN)/python protos/generate.py

bench: $(STAMP)  ## Run every benchmark, small
	$(BIN)/python -m benchmarks all

clean:  ## Remove what make made
	rm -rf $(VENV) build dist *.egg-info
