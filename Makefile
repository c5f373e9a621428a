# Stoker: `make` lists the targets. Each one sets up what it needs, once, into .venv and .cache.
SHELL := bash
.DEFAULT_GOAL := help

# vLLM for GPUs where there is one, else for CPUs; EXTRA=sim leaves vLLM out (simulated engines only).
EXTRA ?= $(shell nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)
VENV := .venv/bin
CODE := $(wildcard discovery router model_server stoker_common stoker_client tests deploy bench)

# What starts real engines is one worker's, the rest the other's (docs/adr/0111). CI's log names each test as it ends.
WORKERS := -n 2 $(if $(CI),-v)

# Without byte code, importing vLLM takes 15 s each time instead of 6.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup demo up down test test-unit test-fast chaos chaos-long bench bench-peers bench-routing check format proto proto-check proto-breaking proto-release docs lock clean clean-all

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Install what is missing: system packages, Consul, .venv, the model
	@deploy/setup/setup.sh $(EXTRA)

demo: setup ## Two zones, a real model, a killed server: the whole thing in one minute
	@$(VENV)/python deploy/demo.py

up: setup ## Start a local mesh; ARGS="--zones 2 --engine sim" and more: stoker up --help
	@$(VENV)/stoker up $(ARGS)

down: setup ## Stop it
	@$(VENV)/stoker down

test: setup ## All tests: unit, contract, integration, e2e, in two processes; ARGS="-k name" narrows, ARGS="-n 0" is one
	@$(VENV)/pytest $(WORKERS) $(ARGS)

test-unit: setup ## Unit tests only: no network, no processes
	@$(VENV)/pytest tests/unit $(ARGS)

test-fast: setup ## All but those with a real engine and the slow ones
	@$(VENV)/pytest $(WORKERS) -m 'not e2e and not slow and not chaos' $(ARGS)

chaos: setup ## A short set of faults on real processes in two zones, Consul away for a minute: a few minutes
	@$(VENV)/pytest -m chaos $(ARGS)

chaos-long: setup ## Every fault, again and again; goes on where it was stopped; ARGS="--minutes 30"; writes docs/reliability.md
	@$(VENV)/python -m tests.chaos $(ARGS)

bench: setup ## What a relayed token costs, beside the peers in one run: ~15 minutes; writes docs/benchmarks.md
	@$(VENV)/python -m bench.relay $(ARGS)
	@$(VENV)/python -m bench.relay.report
	@if [ -e .cache/peers/bin/python ]; then .cache/peers/bin/python bench/relay/plots.py; fi

bench-peers: setup ## Install the peers for `make bench`, Locust and matplotlib, into .cache/peers
	@deploy/setup/peers.sh

bench-routing: setup ## Routing policies on simulated servers; ARGS="--trace FILE --write" also writes docs/routing.md; goes on where it was stopped
	@$(VENV)/python -m bench.routing $(ARGS)

check: setup ## The gate before a merge: lint, format, types, imports, generated code, wire format
	$(VENV)/ruff check
	$(VENV)/ruff format --check
	$(VENV)/mypy $(CODE)
	$(VENV)/lint-imports
	deploy/protos/generate.sh --check
	$(VENV)/python -m deploy.protos.breaking

format: setup ## Format, and fix what ruff can fix
	$(VENV)/ruff format
	$(VENV)/ruff check --fix

proto: setup ## Write generated/ from protos/
	@deploy/protos/generate.sh

proto-check: setup ## Fail where generated/ is not what protos/ gives
	@deploy/protos/generate.sh --check

proto-breaking: setup ## Fail where protos/ breaks the wire format of the last release
	@$(VENV)/python -m deploy.protos.breaking

proto-release: setup ## At a release: make today's protos what proto-breaking guards
	@$(VENV)/python -m deploy.protos.breaking --release

docs: setup ## Write docs/configuration.md and docs/resume.md from the code
	@$(VENV)/python -m deploy.docs.configuration
	@$(VENV)/python -m deploy.docs.resume

lock: setup ## Compile deploy/locks from pyproject.toml; UPGRADE=1 takes newer versions
	@deploy/setup/lock.sh

clean: ## Remove what tools left behind
	rm -rf build dist .coverage .coverage.* .hypothesis .*_cache
	find . -name __pycache__ -not -path './.venv/*' -exec rm -rf {} +

clean-all: clean ## Remove .venv and .cache too: the next make starts from nothing
	rm -rf .venv .cache
