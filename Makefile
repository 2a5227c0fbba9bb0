# `make run` does the main job, `make test` passes the tests; each sets up .venv first.
PYTHON ?= python3
BIN := .venv/bin
.DEFAULT_GOAL := help
.PHONY: help run test benchmark lint install results tables docs speed clean

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

docs: install ## build the documentation into site/; nothing is fetched
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "site/index.html is the first page; its search needs a server: $(BIN)/python -m http.server --directory site"

SPEED := step loading evaluation help summary
speed: install ## measure speed on a quiet machine; MEDPRISM_DATA adds the loaders of real data
	for each in $(SPEED); do $(BIN)/python benchmarks/speed/$$each.py || exit 1; done

clean: ## remove runs and caches, not .venv
	rm -rf runs site .pytest_cache .mypy_cache .ruff_cache
