# make demo: train on digits, evaluate, draw. make quick: tests that are not slow. make test: all tests.
# make check: style and types. Each of these first creates the virtual environment.
# make docs: the site, in build/site; warnings are errors. make notebooks: executes docs/notebooks/ and stores what
# they show (NOTEBOOKS: some of them; NBMAKE=: without storing).
# make installed: the wheel in an empty environment, from another folder.
PYTHON ?= python3
VENV ?= .venv
RUNS ?= runs
STEPS ?= 2000
EXTRAS ?= test
PY := $(VENV)/bin/python
DOCS := $(VENV)-docs
NOTEBOOKS ?= docs/notebooks
NBMAKE ?= --overwrite

.PHONY: demo quick test check docs notebooks installed clean

$(VENV)/ready-$(EXTRAS): pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if v >= (3, 11) else \
	  f"error: Python {v.major}.{v.minor} is too old: 3.11 or newer is required; try make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --editable ".[$(EXTRAS)]"
	@touch $@

demo: $(VENV)/ready-$(EXTRAS)
	@mkdir -p $(RUNS)
	@echo "1 of 3: training with 4 registers, $(STEPS) steps; log: $(RUNS)/digits-registers.log"
	@$(PY) -m vit_registers.train --config=digits:registers=4,steps=$(STEPS) \
	  --workdir=$(RUNS)/digits-registers > $(RUNS)/digits-registers.log
	@$(PY) -m vit_registers.evaluate --checkpoint=$(RUNS)/digits-registers >> $(RUNS)/digits-registers.log
	@echo "2 of 3: training with summary tokens and a fractal mask; log: $(RUNS)/digits-fractal.log"
	@$(PY) -m vit_registers.train --config=digits:mask=fractal,k=2,steps=$(STEPS) \
	  --workdir=$(RUNS)/digits-fractal > $(RUNS)/digits-fractal.log
	@$(PY) -m vit_registers.evaluate --checkpoint=$(RUNS)/digits-fractal >> $(RUNS)/digits-fractal.log
	@echo "3 of 3: all experiments on both; log: $(RUNS)/report.log"
	@$(PY) -m vit_registers.analyze all --checkpoint=$(RUNS)/digits-registers \
	  --checkpoint=$(RUNS)/digits-fractal --out=$(RUNS)/report > $(RUNS)/report.log
	@$(PY) -m tools.demo_summary $(RUNS)

test: $(VENV)/ready-$(EXTRAS)
	$(PY) -m pytest -n 2 --dist worksteal

quick: $(VENV)/ready-$(EXTRAS)
	$(PY) -m pytest -n 2 --dist worksteal -m "not slow"

check: $(VENV)/ready-$(EXTRAS)
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m pyright --pythonpath $(PY)

# An environment of its own: the site is built from the sources, without importing them.
docs: export NO_MKDOCS_2_WARNING = 1
docs: $(DOCS)/ready
	$(DOCS)/bin/mkdocs build --quiet --strict

$(DOCS)/ready: pyproject.toml
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project'] \
	  ['optional-dependencies']['docs'], sep='\n')" > $(DOCS)/requirements.txt
	$(DOCS)/bin/python -m pip install --quiet --requirement $(DOCS)/requirements.txt
	@touch $@

notebooks: $(VENV)/ready-$(EXTRAS)
	$(PY) -m pip install --quiet --editable ".[notebooks]"
	$(PY) -m pytest --nbmake $(NBMAKE) --rootdir=. $(NOTEBOOKS)

installed:
	PYTHON=$(PYTHON) .ci/installed

clean:
	rm -rf $(VENV) $(DOCS)
