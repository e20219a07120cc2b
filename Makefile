# moddist: `make demo` runs the main job on the embedded set, `make test` passes the tests.
# Both make .venv on first use and reuse it afterwards. PYTHON=python3.12 make demo chooses the interpreter.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
OUT    ?= runs/demo
export OMP_NUM_THREADS ?= 1
export PLOTLY_RENDERER ?= plotly_mimetype

.PHONY: demo test readme clean
demo: $(VENV)/.installed
	OMP_NUM_THREADS=$${DEMO_THREADS:-2} $(BIN)/moddist demo --out $(OUT)

test: $(VENV)/.installed-dev
	$(BIN)/nbdev-clean
	$(BIN)/nbdev-export
	$(BIN)/python tests/in_sync.py
	MODDIST_FAST=1 $(BIN)/nbdev-test --n-workers 2 --timing
	$(BIN)/python -m pytest tests

readme:
	$(BIN)/python tests/readme.py > README.md

# a stamp per kind of install: made anew when pyproject.toml changes
$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install -q -e .
	touch $@

$(VENV)/.installed-dev: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install -q -e ".[dev]"
	touch $@ $(VENV)/.installed

clean:
	rm -rf build dist *.egg-info _proc
