# `make run` does the main job, `make test` passes the tests; each sets up .venv first.
PYTHON ?= python3
BIN := .venv/bin
.DEFAULT_GOAL := help
.PHONY: help run test benchmark lint install results tables clean

help: ## say what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

run: install ## train and test NeuroLIP on simulated connectomes; prints the results, the folder and its figures
	$(BIN)/medprism fit --config configs/neurolip_simulated.yaml

test: install ## all tests
	$(BIN)/python -m pytest

benchmark: install ## a short comparison of methods on embedded and simulated data; prints its tables
	$(BIN)/medprism benchmark --config benchmarks/quick.yaml --workers 2

lint: install ## ruff, its formatter, and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

install: .venv/installed ## the virtual environment alone

.venv/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "medprism needs Python 3.11 or newer; name one with: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

results: install ## the tables of real results; needs MEDPRISM_DATA, the folder that holds ABIDE_pcp
	$(BIN)/python benchmarks/abide.py --root "$(MEDPRISM_DATA)"

tables: install ## quote the tables of benchmarks/results/ in README and docs anew
	$(BIN)/python benchmarks/quote.py

clean: ## remove runs and caches, not .venv
	rm -rf runs .pytest_cache .mypy_cache .ruff_cache
