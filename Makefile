# make demo: the whole pipeline on the built-in world.   make test: the tests.   make lint: linters and types.   make clean: remove what these made.
VENV ?= .venv
BIN := $(VENV)/bin
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)

.PHONY: demo test lint clean
.DEFAULT_GOAL := demo

demo: $(VENV)/.installed
	@$(BIN)/thresher demo

test: $(VENV)/.installed-dev
	@OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal
	@echo "next: make lint (linters and types), CONTRIBUTING.md (where things are), make demo"

lint: $(VENV)/.installed-dev
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .
	@$(BIN)/pyright --pythonpath $(BIN)/python
	@$(BIN)/lint-imports

clean:
	rm -rf $(VENV) runs .pytest_cache .ruff_cache .hypothesis .import_linter_cache

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "thresher needs Python 3.11 or newer; name one: make demo PYTHON=/path/to/python3.12"; exit 2; }
	@echo "creating $(VENV) with $(PYTHON)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.installed: pyproject.toml | $(BIN)/python
	@echo "installing thresher and what it needs (PyTorch among it: about 6 GB, a few minutes)"
	@$(BIN)/python -m pip install --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(BIN)/python
	@echo "installing thresher, what it needs and the test tools (PyTorch among it: about 6 GB, a few minutes)"
	@$(BIN)/python -m pip install --disable-pip-version-check --editable '.[dev,interop]'
	@touch $@ $(VENV)/.installed
