# Two commands: `make demo` runs the main job, `make test` runs the tests. Each does all set-up by itself.
# `make long` runs the long matrices, which `make test` leaves out, and writes their tables.
# `make chaos` kills, cuts, fills and soaks in full measure: hours, where `make test` takes a bounded cut of it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test long chaos lint types install clean

demo: $(READY)
	$(BIN)/evomerge demo

test: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile

long: $(READY)
	rm -rf .cache/parity
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m long --numprocesses auto --maxprocesses 8 --dist worksteal
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/parity.py --measured .cache/parity --write docs/parity.md

chaos: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m chaos --timeout 7200

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

install: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "evomerge needs Python 3.11 or newer; set PYTHON=")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test,parity]'
	touch $(READY)

clean:
	rm -rf $(VENV) build dist *.egg-info
