# One command for each thing a person does here; `make help` lists them.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup demo run test fast lint types up

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
STAMP := .venv/installed
# Files of tests side by side: many tests wait for servers and processes. Each process takes about 2 GB.
SIDE_BY_SIDE := --numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder --durations=10

# Commands and stages (pipeline/stage.sh) must be those of .venv, also where another environment is active.
export PATH := $(CURDIR)/$(BIN):$(PATH)
export DSD_PYTHON := $(CURDIR)/$(BIN)/python
# For dvc and its stages; flows/runtime/environment.py sets the rest.
export DO_NOT_TRACK := true
export DVC_NO_ANALYTICS := true
export DVC_STUDIO_OFFLINE := true
export MLFLOW_ALLOW_PICKLE_DESERIALIZATION := false
export DVC_SITE_CACHE_DIR ?= $(CURDIR)/.dvc/tmp/site

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "%-7s%s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## Make .venv and install the locked packages (once, and after either file changed)
	@# DVC refuses to work in a downloaded archive unless it is told that there is no git.
	@$(BIN)/python -m flows.dvc.repository
	@test -f .dvc/tmp/vega.js || $(BIN)/python -m flows.dvc.plots

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed; name one: make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	@echo "Making .venv with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv .venv

# The order-only prerequisite keeps a changed interpreter link from reinstalling everything.
$(STAMP): requirements.lock pyproject.toml | $(BIN)/python
	@echo "Installing the packages of requirements.lock (a minute with uv the first time, several with pip)"
	@# uv does not read pip's settings: where it cannot be had, or fails, pip takes over and says why.
	@{ $(PIP) install --quiet --constraint requirements.lock uv \
	        && $(BIN)/uv pip install --quiet --python $(BIN)/python --requirement requirements.lock; } 2> /dev/null \
	    || $(PIP) install --requirement <(grep -v '^uv==' requirements.lock) \
	        | sed -n -E '/^ *(Downloading|Using cached|Installing|Successfully)/p' | cut -c 1-110
	@$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	@# DVC unpickles its index, and would keep it where every user of the machine may write.
	@mkdir -p -m 700 .dvc/tmp/site
	@if LC_ALL=C grep -q '[^ -~]' <<< "$$PWD"; \
	    then echo "DVC can note only ASCII: export DVC_SITE_CACHE_DIR=\"\$$PWD/.dvc/tmp/site\" before you use it (docs/guarantees.md)"; \
	    else $(BIN)/dvc config --local core.site_cache_dir "$$PWD/.dvc/tmp/site"; fi
	@touch $@

demo: setup ## Show in a minute what to expect, with shipped models: no download, no training
	@$(BIN)/python -m pipeline demo

run: setup ## Run the whole pipeline on the embedded images and show the result
	@$(BIN)/python -m pipeline check
	@$(BIN)/python -m pipeline forecast
	@$(BIN)/dvc repro
	@$(BIN)/python -m pipeline show

test: setup ## Run every test
	@$(BIN)/python -m pytest $(SIDE_BY_SIDE)

fast: setup ## Run the tests that take seconds
	@$(BIN)/python -m pytest $(SIDE_BY_SIDE) -m "not slow and not long"

lint: setup ## Check style, format and which layer imports which
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports --no-cache

types: setup ## Check the types
	@$(BIN)/mypy

up: setup ## Serve Prefect (port 4200) and MLflow (port 5000) with a worker for each GPU until Ctrl-C
	@exec $(BIN)/python -m flows.services
