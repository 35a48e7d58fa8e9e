# make demo: train on digits, evaluate, draw; make test; make check. Each makes its own environment first.
PYTHON ?= python3
VENV ?= .venv
RUNS ?= runs
STEPS ?= 2000
EXTRAS ?= test
PY := $(VENV)/bin/python

.PHONY: demo test check clean

$(VENV)/ready-$(EXTRAS): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if v >= (3, 11) else \
	  f"error: Python {v.major}.{v.minor} is too old: want 3.11 or newer; try make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --editable ".[$(EXTRAS)]"
	@touch $@

demo: $(VENV)/ready-$(EXTRAS)
	$(PY) -m vit_registers.train --config=configs/digits.py:registers=4,steps=$(STEPS) --workdir=$(RUNS)/digits-registers
	$(PY) -m vit_registers.evaluate --checkpoint=$(RUNS)/digits-registers
	$(PY) -m vit_registers.train --config=configs/digits.py:mask=fractal,k=2,steps=$(STEPS) --workdir=$(RUNS)/digits-fractal
	$(PY) -m vit_registers.evaluate --checkpoint=$(RUNS)/digits-fractal
	$(PY) -m vit_registers.analyze all --checkpoint=$(RUNS)/digits-registers --checkpoint=$(RUNS)/digits-fractal \
	  --out=$(RUNS)/report

test: $(VENV)/ready-$(EXTRAS)
	$(PY) -m pytest -n 2 --dist worksteal

check: $(VENV)/ready-$(EXTRAS)
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .

clean:
	rm -rf $(VENV)
