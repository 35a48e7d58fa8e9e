# make demo: train on digits, evaluate, draw. make quick: tests that are not slow. make test: all tests.
# make check: style and types. Each of these first creates the virtual environment.
# make installed: the wheel in an empty environment, from another folder.
PYTHON ?= python3
VENV ?= .venv
RUNS ?= runs
STEPS ?= 2000
EXTRAS ?= test
PY := $(VENV)/bin/python

.PHONY: demo quick test check installed clean

$(VENV)/ready-$(EXTRAS): pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if v >= (3, 11) else \
	  f"error: Python {v.major}.{v.minor} is too old: 3.11 or newer is required; try make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --editable ".[$(EXTRAS)]"
	@touch $@

demo: $(VENV)/ready-$(EXTRAS)
	$(PY) -m vit_registers.train --config=digits:registers=4,steps=$(STEPS) --workdir=$(RUNS)/digits-registers
	$(PY) -m vit_registers.evaluate --checkpoint=$(RUNS)/digits-registers
	$(PY) -m vit_registers.train --config=digits:mask=fractal,k=2,steps=$(STEPS) --workdir=$(RUNS)/digits-fractal
	$(PY) -m vit_registers.evaluate --checkpoint=$(RUNS)/digits-fractal
	$(PY) -m vit_registers.analyze all --checkpoint=$(RUNS)/digits-registers --checkpoint=$(RUNS)/digits-fractal \
	  --out=$(RUNS)/report

test: $(VENV)/ready-$(EXTRAS)
	$(PY) -m pytest -n 2 --dist worksteal

quick: $(VENV)/ready-$(EXTRAS)
	$(PY) -m pytest -n 2 --dist worksteal -m "not slow"

check: $(VENV)/ready-$(EXTRAS)
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m pyright --pythonpath $(PY)

installed:
	PYTHON=$(PYTHON) .ci/installed

clean:
	rm -rf $(VENV)
