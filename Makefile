# Everything a contributor runs. VENV and PYTHON choose another interpreter:
#   make test VENV=.venvs/3.13 PYTHON=python3.13

VENV ?= .venv
PORT ?= 4000
COVERAGE ?= 95
PYTEST_ARGS ?= -n 2 --dist loadfile --no-loadscope-reorder

# The first interpreter that is new enough; pyenv's shims exist for versions that are not installed, so each is run.
CANDIDATES := python3 python3.13 python3.12 python3.11
PYTHON ?= $(shell for p in $(CANDIDATES); do \
	$$p -c 'import sys; raise SystemExit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)

BIN := $(VENV)/bin
STAMP := $(VENV)/.promptmill-set-up

.DEFAULT_GOAL := help
.PHONY: help setup demo test chaos chaos-long lint format bench recording clean

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

setup: $(STAMP) ## Install everything into .venv, and nothing anywhere else

$(STAMP): requirements/dev.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "promptmill needs Python 3.11 or newer, and found none of: $(CANDIDATES)." \
		"Install one, or name it: make setup PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; raise SystemExit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is" \
		"$$($(PYTHON) -V 2>&1); promptmill needs Python 3.11 or newer: make setup PYTHON=python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: setup ## Start a gateway with an echo model and the example prompt manager, and print a curl for it
	$(BIN)/promptmill demo --port $(PORT)

test: setup ## Run every test, with branch coverage; gateways under load run untraced
	rm -f .coverage .coverage.*
	$(BIN)/coverage run -m pytest $(PYTEST_ARGS)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report --fail-under=$(COVERAGE)

chaos: setup ## Disturb a gateway for a minute, as SEED=n draws it (or ONLY=name), and check that nothing is lost
	PYTHONPATH=tests $(BIN)/python -m chaos $(if $(SEED),--seed $(SEED)) $(if $(ONLY),--only '$(ONLY)')

chaos-long: setup ## Run every scenario once, the five-minute ones too (an hour); writes chaos.md
	PYTHONPATH=tests $(BIN)/python -m chaos --all $(if $(SEED),--seed $(SEED)) --json chaos.json --table chaos.md

lint: setup ## Check style, types, imports, spelling and sizes
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell .
	$(BIN)/python -m pytest -q --no-header tests/test_house_rules.py

format: setup ## Put all files in the one style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup ## Measure throughput and CPU per request on this machine
	$(BIN)/python -m benchmarks

recording: setup ## Record `promptmill batch run` in a terminal, for docs/batches.md
	PYTHONPATH=tests $(BIN)/python -m recording

clean: ## Remove what the tools leave behind, and the environment
	rm -rf $(VENV) .venvs .coverage .coverage.* htmlcov .mypy_cache .ruff_cache .pytest_cache .import_linter_cache \
		.hypothesis dist benchmarks/results chaos.json chaos.md
