# Set-up is `make demo` or `make test`; each makes .venv first, if it is not there or out of date.
PYTHON ?= python3
BIN := .venv/bin
.DEFAULT_GOAL := help
.PHONY: help demo test lint format bench reliability clean

help:
	@echo "make demo    run suite demo and print the page's path"
	@echo "make test    lint, types, and every test"
	@echo "make lint    format, lint and types alone"
	@echo "make format  rewrite the sources in the project's format"
	@echo "make bench   speed, to reports/bench.csv"
	@echo "make reliability  what was broken on purpose and survived, to reports/reliability.md"
	@echo "make clean   remove .venv and caches; weights, results and reports stay"

.venv/.demo: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "eqbench needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable '.[demo]'
	@touch $@

.venv/.dev: .venv/.demo
	$(BIN)/pip install --quiet --editable '.[dev]'
	@touch $@

demo: .venv/.demo
	$(BIN)/snakemake --cores all --config suite=demo
	@echo "The page: $(CURDIR)/reports/demo/index.html"

lint: .venv/.dev
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/snakefmt --check Snakefile
	$(BIN)/snakemake --lint

test: lint
	$(BIN)/pytest --numprocesses auto --maxprocesses 8 --dist loadfile

format: .venv/.dev
	$(BIN)/ruff format
	$(BIN)/ruff check --fix
	$(BIN)/snakefmt Snakefile

bench: .venv/.dev
	$(BIN)/pip install --quiet --editable '.[bench]'
	$(BIN)/python tests/bench.py

reliability: .venv/.dev
	$(BIN)/python tests/reliability.py

clean:
	rm -rf .venv .snakemake .pytest_cache .mypy_cache .ruff_cache *.egg-info
