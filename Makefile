# Everything a newcomer or a build machine runs. Needs make and Python 3.11 or newer, nothing else:
# each target sets up $(VENV) by itself from the hashed files in requirements/.
#
#   VENV=path           another virtual environment (default .venv)
#   PYTHON=path         another interpreter (default: the newest of 3.13, 3.12, 3.11 that works)
#   ARGS="..."          passed on: make demo-console ARGS=--small, make test ARGS="tests/policy -x"
#   BENCH="..."         what make bench runs: names of programs in bench/, or all
#   SUFFICE_CACHE=path  where the demonstration model's weights are kept

SHELL := /bin/sh
.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:

# The workers of the tests, and the programs that tests start, share what is compiled; `make clean` removes it.
unexport PYTHONDONTWRITEBYTECODE

VENV ?= .venv
ARGS ?=
BENCH ?= cost wallclock
BIN := $(VENV)/bin
PY := $(BIN)/python
PIP := $(PY) -m pip --disable-pip-version-check --no-input
INSTALL := $(PIP) install --quiet --require-hashes

# A found name is not enough: version switchers leave stubs, and Debian ships Python without venv.
FIT := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))
FIND_PYTHON = for name in $(PYTHON) python3.13 python3.12 python3.11 python3 python; do \
	if "$$name" -c '$(FIT)' >/dev/null 2>&1; then found=$$name; break; fi; done; \
	if [ -z "$$found" ]; then \
	echo "error: Python 3.11 or newer with the venv module was not found; install it (on Debian: python3 and python3-venv) or run make PYTHON=/path/to/python3" >&2; \
	exit 1; fi

SOURCES := pyproject.toml src/suffice/__init__.py requirements/build.txt $(wildcard contrib/*/pyproject.toml)
PACKAGES := --editable . --editable contrib/suffice-testing --editable contrib/suffice-demo

.PHONY: help install docs engine engine-suite demo demo-agent demo-console walkthrough test fast test-full attacks faults test-replicas mission qualify examples loop clients lock-clients check fmt lint types layers house packages bench benchmarks claims-full peer-suite lock wheel release clean

help: ## show this list
	@echo "make TARGET, where TARGET is one of"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-13s %s\n", $$1, $$2 }' Makefile

install: $(VENV)/.ready-demo ## put the command suffice into .venv/bin
	@$(BIN)/suffice --version

demo: $(VENV)/.ready-demo ## a real model: a measured saving, a certificate on live traffic, a swapped model (2 to 6 minutes)
	$(BIN)/suffice demo $(ARGS)

demo-agent: $(VENV)/.ready-dev ## the agent while traffic becomes harder, dearer and easier (5 minutes, without a model)
	$(BIN)/suffice demo --agent $(ARGS)

demo-console: $(VENV)/.ready-dev ## the console on the demonstration's log, or on a made-up month (in seconds, without a model)
	$(BIN)/suffice demo --console $(ARGS)

walkthrough: $(VENV)/.ready-dev ## twelve tasks in the console, in a browser, and pictures of every page (3 minutes, needs chromium); ARGS=--visible shows them
	$(PY) -m tests.console.walkthrough $(ARGS)

# A worker without work takes half of what is left to another: tests of a file stay together as long as that costs nothing.
PARALLEL := -n auto --maxprocesses 4 --dist worksteal
# Left to `make test-full`, each marked `slow`: simulations over many seeds, browsers and other client libraries, waits of
# many seconds, bodies of 20 MiB and streams of 300 MB. Of each table of cases a sample stays, and all of its properties.
QUICK := -m "not slow" --hypothesis-profile=quick
# The core and its contracts: computed, without a server. (tests/house starts some for the examples in the docs.)
FAST := $(addprefix tests/,assurance policy signals scoring model settings rollout review episode contracts house \
	upstream/test_wire.py upstream/test_assemble.py upstream/test_pattern.py \
	upstream/test_limits.py upstream/test_continuation.py upstream/test_allowance.py) \
	$(addprefix --ignore=tests/,contracts/test_finish.py contracts/test_sentences.py house/test_packaging.py) \
	--deselect tests/house/test_docs.py::test_python_in_the_docs_runs

# Several workers share the cores: a matrix product that takes them all, too, waits for itself.
test test-full fast attacks: export OPENBLAS_NUM_THREADS := 1
test test-full fast attacks: export OMP_NUM_THREADS := 1

test: $(VENV)/.ready-dev ## run the tests but the slow ones, and the coverage gate of the core (6 minutes); or only ARGS, all of them
	$(PY) -m pytest $(if $(strip $(ARGS)),$(ARGS),$(QUICK) --cov --cov-report=term $(PARALLEL) --durations=15)

fast: $(VENV)/.ready-dev ## run the tests of the core and its contracts, without servers (1 minute)
	$(PY) -m pytest -q $(QUICK) $(PARALLEL) $(FAST) $(ARGS)

test-full: $(VENV)/.ready-dev ## run all tests with all their cases: simulations, browsers, clients, huge bodies (15 minutes)
	$(PY) -m pytest --cov --cov-report=term $(PARALLEL) --durations=25 $(ARGS)

attacks: $(VENV)/.ready-dev ## attack it: every case of tests/attacks, behind docs/reference/security.md (under 5 minutes)
	$(PY) -m pytest $(PARALLEL) tests/attacks $(ARGS)

faults: $(VENV)/.ready-dev ## run the tests that tests/faults/README.md names and print its table with their results
	$(PY) -m tests.faults.table

test-replicas: $(VENV)/.ready-dev ## processes on one PostgreSQL, killed at random, and the contract and faults of its log (under 15 minutes); ARGS=--full kills 200 times
	$(PY) -m tests.replicas $(ARGS)

mission: $(VENV)/.ready-dev ## nine capabilities over HTTP against a server with known truth, as a table (10 minutes)
	$(PY) -m tests.mission $(ARGS)

qualify: $(VENV)/.ready-dev ## list the worlds with known truth that qualify a release, or run those named in ARGS (minutes each)
	$(PY) -m qualification $(ARGS)

# Without --quiet, under which mkdocs lets a link pass that leads nowhere.
docs: $(VENV)/.ready-docs ## write the generated parts of docs/reference, and build the site with its API reference into build/site
	$(PY) -m tools.reference_pages
	$(PY) -m mkdocs build --clean

check: lint types layers house packages ## lint, format, types, layers, the rules of the house, installed packages; make -k check sees all

fmt: $(VENV)/.ready-dev ## format the tree, and mend what the linter can
	$(PY) -m ruff check --fix-only --quiet .
	$(PY) -m ruff format .

lint: $(VENV)/.ready-dev
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

types: $(VENV)/.ready-dev
	$(PY) -m mypy

layers: $(VENV)/.ready-dev
	$(PY) -c 'from importlinter.cli import lint_imports_command; lint_imports_command()'

house: $(VENV)/.ready-dev
	$(PY) tools/house.py

packages: $(VENV)/.ready-dev
	$(PIP) check

bench: $(VENV)/.ready-dev ## cost beside TensorZero and LiteLLM, and the wall clock (about an hour); BENCH="replay decide" or all
	@$(PY) -c 'import os, platform; print("machine:", platform.platform(), "| Python", platform.python_version(), "| cores", os.cpu_count())'
	@set -e; for program in $(if $(filter all,$(BENCH)),$(wildcard bench/*.py),$(BENCH:%=bench/%.py)); do \
	echo "== $$program"; $(PY) "$$program" $(ARGS) || [ $$? -eq 2 ]; done

benchmarks: $(VENV)/.ready-bench ## every published rule, ours, e-valuator, B-PAC and BARGAIN on recorded runs; writes docs/reference/benchmarks.md (resumable)
	$(PY) -m bench.page $(ARGS)

claims-full: $(VENV)/.ready-dev ## the control loop and naive designs on 200 seeds of every simulated drift (hours; resumable)
	$(PY) -m bench.claims $(ARGS)

clients: $(VENV)/.ready-dev $(VENV)/.ready-lock ## compare 12 client libraries, direct and through the gateway (installs them, 1.2 GB)
	$(PY) -m tests.clients.peers $(ARGS)

examples: $(VENV)/.ready-dev $(VENV)/.ready-lock ## run the loops in examples/ against the local model (fetches it, and three client libraries)
	$(PY) -m examples $(ARGS)

loop: $(VENV)/.ready-dev $(VENV)/.ready-lock ## play the decision scripts with every adapter of contrib/suffice-loop (installs the frameworks and Envoy, 700 MB)
	sh contrib/suffice-loop/install.sh $(BIN)/uv $(PY)
	$(PY) -m pytest -q tests/loop $(ARGS)

lock-clients: $(VENV)/.ready-lock ## pin the client libraries again; ARGS=--upgrade takes newer releases
	sh tests/clients/peers/lock.sh $(BIN)/uv $(ARGS)
	sh examples/requirements/lock.sh $(BIN)/uv $(ARGS)
	sh contrib/suffice-loop/lock.sh $(BIN)/uv $(ARGS)

peer-suite: $(VENV)/.ready-demo ## llama.cpp's own server tests, direct and through the gateway (about 30 minutes)
	$(PY) -m tests.peers.llama_cpp $(ARGS)

ENGINE ?= vllm
ENGINE_URL ?= http://127.0.0.1:$(if $(filter sglang,$(ENGINE)),8701,8700)

engine: $(VENV)/.ready-demo $(VENV)/.ready-lock ## install and serve a real engine, never in CI: ENGINE=vllm or sglang (3 GB, minutes to start)
	UV=$(abspath $(BIN)/uv) PY=$(abspath $(PY)) sh tests/engines/engine.sh $(ENGINE) $(ARGS)

engine-suite: $(VENV)/.ready-dev ## doctor, recordings and the gateway in front of a running ENGINE at ENGINE_URL (an hour on a CPU)
	-$(BIN)/suffice doctor --upstream $(ENGINE_URL) --timeout 120
	$(PY) -m tests.wire.record $(ENGINE) $(ENGINE_URL)
	$(PY) -m tests.engines.suite $(ENGINE) $(ENGINE_URL) --clients 1 --questions 4 --cells hang-up --out engines-out/hang-up
	$(PY) -m tests.engines.suite $(ENGINE) $(ENGINE_URL) --clients 4 --out engines-out/four $(ARGS)
	$(if $(filter vllm,$(ENGINE)),$(PY) -m tests.engines.pairs $(ENGINE_URL) --out engines-out/pairs)
	$(PY) -m tests.engines.suite $(ENGINE) $(ENGINE_URL) --clients 16 --slots 16 --questions 16 --out engines-out/sixteen

wheel: $(VENV)/.ready-dev ## build dist/*.whl without reaching the network
	$(PIP) wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .

release: $(VENV)/.ready-dev ## build dist/ reproducibly: wheel, sdist, chart, bills of materials, SHA256SUMS; SIGN="gpg -ab" signs them
	$(PY) tools/release.py build
	$(if $(SIGN),cd dist && $(SIGN) SHA256SUMS)

lock: $(VENV)/.ready-lock ## pin requirements/*.txt again; ARGS=--upgrade takes newer releases
	sh requirements/lock.sh $(BIN)/uv $(ARGS)

clean: ## remove the environment, caches and what the demo wrote; weights stay in their cache
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache dist build demo-out
	rm -f .coverage
	find src contrib tests bench examples -name __pycache__ -type d -prune -exec rm -rf {} +

# The three environments share one folder: dev holds all that demo needs, at the same versions.
# An environment that somebody made by hand is used as it is, if it works and can have pip.
$(VENV)/.ready-venv:
	@if $(PY) -c '$(FIT)' 2>/dev/null && { $(PY) -m pip --version || $(PY) -m ensurepip; } >/dev/null 2>&1; then \
	echo "$(VENV): as found, $$($(PY) --version)"; else \
	$(FIND_PYTHON); echo "$(VENV): new, $$("$$found" --version)"; "$$found" -m venv --clear $(VENV); fi
	@touch $@

$(VENV)/.ready-demo: $(VENV)/.ready-venv requirements/demo.txt $(SOURCES)
	$(INSTALL) -r requirements/demo.txt -r requirements/build.txt
	$(PIP) install --quiet --no-deps --no-build-isolation $(PACKAGES)
	@touch $@

$(VENV)/.ready-dev: $(VENV)/.ready-venv requirements/dev.txt $(SOURCES)
	$(INSTALL) -r requirements/dev.txt -r requirements/build.txt
	$(PIP) install --quiet --no-deps --no-build-isolation $(PACKAGES)
	@touch $(VENV)/.ready-demo $@

$(VENV)/.ready-bench: $(VENV)/.ready-dev requirements/bench.txt
	$(INSTALL) -r requirements/bench.txt
	@touch $@

$(VENV)/.ready-docs: $(VENV)/.ready-dev requirements/docs.txt
	$(INSTALL) -r requirements/docs.txt
	@touch $@

$(VENV)/.ready-lock: $(VENV)/.ready-venv requirements/lock.txt
	$(INSTALL) -r requirements/lock.txt
	@touch $@
