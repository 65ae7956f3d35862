# Every target bootstraps .venv by itself: Python 3.11+ and make are all it takes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# PyPI's plain torch for Linux brings gigabytes of CUDA. 2.13.0's CPU build is enough here; on a GPU machine, install
# the torch you want into .venv first, or run `make TORCH=torch ...`.
TORCH ?= torch==2.13.0

.PHONY: help setup quickstart test check format bench clean

help: ## what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "UloRL needs Python 3.11 or newer; run make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet --editable ".[tasks,gguf]" --group dev
	@touch $@

setup: $(READY) ## make .venv with everything in it

quickstart: $(READY) ## watch a tiny model learn to reason, in minutes, without a GPU
	$(BIN)/ulorl train recipes/quickstart.toml --overwrite

test: $(READY) ## every test
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile

check: $(READY) ## format, lint and types, as CI runs them
	$(BIN)/ruff format --check src tests docs
	$(BIN)/ruff check src tests docs
	$(BIN)/mypy

format: $(READY) ## let ruff mend what it can
	$(BIN)/ruff format src tests docs
	$(BIN)/ruff check --fix src tests docs

bench: $(READY) ## the engine beside transformers' generate
	$(BIN)/ulorl bench engine

clean: ## remove .venv and caches; runs/ stays
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
