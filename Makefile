# `make` lists the targets. Everything runs from .venv/, which `setup` makes from requirements.lock.
SHELL := /bin/bash
.DEFAULT_GOAL := help
BIN := .venv/bin
unexport PYTHONDONTWRITEBYTECODE
N ?= 500
ARGS ?=
TESTS ?= tests

.PHONY: help setup run test check fmt bench bench-gateway chaos docs lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: .venv/.ready ## make .venv/ and install what is missing (quick the second time)

# The package is installed in place, so only a change of dependencies or entry points makes this run again.
.venv/.ready: requirements.lock pyproject.toml tools/setup.sh
	@tools/setup.sh

run: setup ## set up, then play the main job on the example repository (ARGS="--live" talks to Anthropic)
	@if command -v bwrap >/dev/null || [[ "$(ARGS)" == *--sandbox* ]]; then \
	  exec $(BIN)/claudecluster demo $(ARGS); \
	else \
	  echo "warning: bubblewrap is missing and could not be installed: the demo goes on with --sandbox none (no isolation)" >&2; \
	  exec $(BIN)/claudecluster demo --sandbox none $(ARGS); \
	fi

test: setup ## set up, then pass the tests
	@tools/setup.sh --servers
	@$(BIN)/pytest -n 2 --dist loadgroup $(TESTS)

check: setup ## lint, formatting, types, floors, sizes
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest tests/architecture

fmt: setup ## format the code and mend what the linter can
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

bench: setup ## measure against the goals; prints a table, writes .bench/*.json
	@$(BIN)/python benchmarks/run.py $(ARGS)

bench-gateway: setup ## measure the gateway against its bare upstream
	@$(BIN)/python benchmarks/gateway.py $(ARGS)

chaos: setup ## kill -9 N times at random moments and check that nothing is lost (N=500)
	@CHAOS_KILLS=$(N) $(BIN)/pytest -s tests/chaos $(ARGS)

docs: setup ## write the generated pages of docs/reference anew
	@$(BIN)/python tools/reference.py

lock: ## pin the dependencies anew (needs uv; ARGS="--upgrade")
	@tools/lock.sh $(ARGS)

clean: ## remove .venv/ and every cache
	rm -rf .venv .bench .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
