# One command each; every target makes what it needs. `make help` lists them.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

VENV ?= .venv
BIN := $(VENV)/bin
# Where `make serve` listens, when not as interlace.yaml says or on 127.0.0.1:8080.
HOST ?=
PORT ?=
# Extra words for pytest: make test ARGS='tests/models -k gguf'
ARGS ?=
WORKERS ?= 2
# How long make soak lasts.
SOAK_SECONDS ?= 600
# Any Python from 3.11: make serve PYTHON=/opt/python/bin/python3
PYTHON ?=

PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --quiet --quiet -c constraints.txt

.PHONY: help
help: ## Say what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

# --- environment: stamp files, so that nothing is installed twice ---

$(BIN)/python:
	@python=""; \
	for candidate in $(or $(PYTHON),python3 python3.11 python3.12 python3.13 python3.14 python); do \
	  if "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then python="$$candidate"; break; fi; \
	done; \
	if [ -z "$$python" ]; then \
	  echo "Interlace needs Python 3.11 or newer; found none as: $(or $(PYTHON),python3 python3.11 ... python3.14)." >&2; \
	  echo "Install one, or name yours: make $(MAKECMDGOALS) PYTHON=/path/to/python3" >&2; exit 1; \
	fi; \
	if ! "$$python" -c 'import venv, ensurepip' 2>/dev/null; then \
	  echo "$$python cannot make virtual environments: its venv module is missing." >&2; \
	  echo "On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; \
	fi; \
	echo "Making $(VENV) with $$("$$python" --version)"; \
	if [ ! -w . ]; then echo "$(CURDIR) cannot be written by $$(id -un), so no $(VENV) can be made in it." >&2; exit 1; fi; \
	"$$python" -m venv --clear $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing Interlace and its default engine (about 100 MB to fetch, 400 MB on disk; a minute or two, once)"
	@$(PIP_INSTALL) -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing Interlace with all parts for tests, checks and docs (torch included; a few minutes, once)"
	@$(PIP_INSTALL) -e '.[test,tune,dev,docs]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-bench: pyproject.toml constraints.txt $(VENV)/.installed-dev
	@$(PIP_INSTALL) -e '.[bench]'
	@touch $@

.PHONY: install
install: $(VENV)/.installed ## Make .venv with the command `interlace`

# --- use ---

.PHONY: serve
serve: $(VENV)/.installed ## Install, pull the default checkpoint, serve it on 127.0.0.1:8080 (or HOST, PORT)
	@exec $(BIN)/interlace serve $(if $(HOST),--host $(HOST)) $(if $(PORT),--port $(PORT))

# --- check ---

# The databases that tests start for themselves: Debian's, installed once where we may; INTERLACE_TEST_STORES=required
# (as in CI) makes it an error where we may not, else their tests are skipped and say what to install.
.PHONY: stores
stores: ## Install PostgreSQL and Redis for the tests, where we may
	@tests/support/install-stores

.PHONY: test
test: $(VENV)/.installed-dev stores ## Run all tests but the marked nightly set
	@$(BIN)/python -m pytest -n $(WORKERS) -m 'not nightly' $(ARGS)

.PHONY: test-all
test-all: $(VENV)/.installed-dev ## Run all tests
	@tests/support/install-stores nightly
	@$(BIN)/python -m pytest -n $(WORKERS) $(ARGS)

.PHONY: faults
faults: $(VENV)/.installed-dev stores ## Break everything that can break, under load, and print what became of it
	@$(BIN)/python -m pytest -q -n $(WORKERS) --dist=load -p tests.support.fault_table tests/faults/test_matrix.py $(ARGS)

.PHONY: soak
soak: $(VENV)/.installed-bench stores ## Ten minutes (SOAK_SECONDS) of mixed traffic and random kills; a plot, and exact books
	@$(BIN)/python -m tests.soak --seconds $(SOAK_SECONDS) $(ARGS)

.PHONY: clients
clients: $(VENV)/.installed-dev ## Run the clients of others against us, evaluation harnesses too
	@$(BIN)/python -m pytest -n $(WORKERS) tests/clients $(ARGS)

.PHONY: lint
lint: $(VENV)/.installed-dev ## Check style, types and the direction of imports
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

.PHONY: format
format: $(VENV)/.installed-dev ## Mend what ruff can mend
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

.PHONY: bench
bench: $(VENV)/.installed-bench ## Measure gateway and engine beside their peers; prints tables, writes JSON and plots
	@$(BIN)/python -m benchmarks $(ARGS)

.PHONY: bench-engine
bench-engine: $(VENV)/.installed-bench ## Measure the engine and mixed adapters beside vLLM, openvino-genai, PEFT and others
	@$(BIN)/python -m benchmarks --only contest $(ARGS)

.PHONY: bench-tune
bench-tune: $(VENV)/.installed-bench ## Measure learning beside TRL's own trainer, and learning beside serving
	@$(BIN)/python -m benchmarks --only tuning --only yielding $(ARGS)

# --- publish ---

.PHONY: docs
docs: $(VENV)/.installed-dev ## Build the documentation into site/; a dead link fails
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

.PHONY: reference
reference: $(VENV)/.installed-dev ## Renew the reference pages that are made from code
	@$(BIN)/python docs/generate.py

.PHONY: dist
dist: $(VENV)/.installed-dev ## Build wheel and source archive into dist/
	@rm -rf dist
	@$(BIN)/hatchling build

.PHONY: constraints
constraints: $(VENV)/.installed-bench ## Pin what is installed now (after a deliberate upgrade)
	@{ sed -n '/^#/p' constraints.txt; \
	   $(BIN)/python -m pip freeze --exclude-editable | sed -E 's/\+cpu$$//'; } > constraints.new
	@mv constraints.new constraints.txt

.PHONY: clean
clean: ## Remove what was built (the environment and pulled checkpoints stay)
	@rm -rf build dist site .cache/mypy .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
