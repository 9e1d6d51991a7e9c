# `make demo` and `make test` need Python 3.11 and pip, nothing else: each makes the virtual environment where there is none.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Compiling small programs keeps one core busy. A file's tests stay together, because they share runs.
PARALLEL := --numprocesses=2 --dist=loadfile

.PHONY: demo test test-fast test-lowest lint format clean

demo: $(READY)
	$(BIN)/flm demo --out=demo_out --json=demo_out/demo.json

test: $(READY)
	$(BIN)/python -m pytest $(PARALLEL)

test-fast: $(READY)
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow"

# The same tests with the lowest version of every direct dependency that setup.py admits.
test-lowest:
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/pip install --quiet --upgrade pip uv
	VIRTUAL_ENV=.venv-lowest .venv-lowest/bin/uv pip install --quiet --resolution lowest-direct --editable '.[dev]'
	.venv-lowest/bin/python -m pytest $(PARALLEL)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv .venv-lowest build dist *.egg-info demo_out

$(READY): setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@
