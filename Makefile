# Two commands set up everything and run: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: install demo test chaos check internals bench bench-docs clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; assert (3, 11) <= sys.version_info[:2] <= (3, 13), "hotstart needs Python 3.11 to 3.13: make PYTHON=python3.11 ..."'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[examples,train,dev]' $(CONSTRAINTS)
	touch $@

demo: install
	$(BIN)/python examples/demo.py

# Fast ones first; a failure there saves the wait for the slow ones. Two files run at once: they pick
# free ports and folders of their own. `make test JOBS=0` runs one after another.
JOBS ?= 2
test: install
	$(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile tests/unit tests/fuzz tests/contract tests/emulator
	$(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile tests/multiprocess tests/simulation tests/chaos tests/e2e

# Campaigns of faults, each with its seed; each writes its row of build/chaos.json. Over an hour.
chaos: install
	$(BIN)/python -m tests.simulation --seeds 6000 --kills 100 --write
	$(BIN)/python -m tests.chaos.corruption --trials 1000 --write
	$(BIN)/python -m pip install --quiet --editable '.[fuzz]'
	$(BIN)/python -m tests.fuzz --seconds 600 --write
	$(BIN)/python -m tests.explain --pairs 40

# What touches JAX's internals, for the other ends of the supported range.
internals: install
	$(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile -m internals

# What it costs and saves, against rivals measured in turn: more than an hour, alone on the machine.
# `make bench ROWS="restart put_large"` measures these rows and keeps the others.
bench: install
	$(BIN)/python -m tests.bench $(ROWS)

# Brings the numbers of the last bench into docs/.
bench-docs: install
	$(BIN)/python -m tests.bench.table
	$(BIN)/python -m tests.bench.scale_page

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
