# moddist: `make demo` runs the main job on the embedded set, `make test` passes the tests, `make evidence` repeats what nbs/tutorials/evidence.ipynb shows.
# Each makes .venv on first use and reuses it afterwards. PYTHON=python3.12 make demo chooses the interpreter.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
OUT    ?= runs/demo
export OMP_NUM_THREADS ?= 1
export PLOTLY_RENDERER ?= plotly_mimetype

.PHONY: demo test evidence readme clean
demo: $(VENV)/.installed
	OMP_NUM_THREADS=$${DEMO_THREADS:-2} $(BIN)/moddist demo --out $(OUT)

test: $(VENV)/.installed-dev
	$(BIN)/nbdev-clean
	$(BIN)/nbdev-export
	$(BIN)/python tests/in_sync.py
	MODDIST_FAST=1 $(BIN)/nbdev-test --n-workers 2 --timing
	$(BIN)/python -m pytest tests

# every record about accuracy in bench/results, then the summary: about a day on two cores, resumable at any point. With recordings of people: make evidence UTD_MHAD=folder URFD=folder
evidence: $(VENV)/.installed-dev
	$(BIN)/python bench/evidence.py --seeds 5 --data-seeds 101 102 --saturate 7.2
	$(BIN)/moddist evaluate $(foreach s,0 1 2 3 4,runs/evidence/d101-s$(s)) --groups subject --out bench/results/gap-101.json
	$(BIN)/moddist evaluate $(foreach s,0 1 2 3 4,runs/evidence/d102-s$(s)) --groups subject --out bench/results/gap-102.json
	$(BIN)/python bench/ablation.py --seeds 5 --data-seeds 101 102
	$(BIN)/python bench/stress.py --data-seed 101
	$(BIN)/python bench/evidence.py --seeds 5 --data-seeds 203 204 --views
	$(BIN)/moddist evaluate $(foreach s,0 1 2 3 4,runs/evidence/d203v-s$(s)) --groups subject --out bench/results/gap-203-views.json
	$(BIN)/moddist evaluate $(foreach s,0 1 2 3 4,runs/evidence/d204v-s$(s)) --groups subject --out bench/results/gap-204-views.json
	$(BIN)/python bench/evidence.py --seeds 5 --data-seeds 101 --cross-view
	$(BIN)/python bench/evidence.py --seeds 5 --data-seeds 205 206 --pairs 11
	$(BIN)/moddist evaluate $(foreach s,0 1 2 3 4,runs/evidence/d205p11-s$(s)) --groups subject --out bench/results/gap-205-pairs.json
	$(BIN)/moddist evaluate $(foreach s,0 1 2 3 4,runs/evidence/d206p11-s$(s)) --groups subject --out bench/results/gap-206-pairs.json
	$(BIN)/python bench/ablation.py --few-labels --seeds 5 --data-seeds 101 102 --only no-pairs
	$(BIN)/python bench/evidence.py --seeds 5 --data-seeds 103 --counter-example
	$(BIN)/python bench/preflight.py
	$(BIN)/python bench/preflight.py --apart --data-seeds 301 302 303
	$(if $(UTD_MHAD),$(BIN)/python bench/radevski_evidence.py pose2d --root $(UTD_MHAD) --seeds 3)
	$(if $(UTD_MHAD),$(BIN)/python bench/radevski_evidence.py utd_mhad --root $(UTD_MHAD) --seeds 3)
	$(if $(URFD),$(BIN)/python bench/urfd.py --root $(URFD) --seeds 2)
	$(if $(URFD),$(BIN)/python bench/radevski_evidence.py urfd --root $(URFD) --seeds 3)
	$(BIN)/python bench/summary.py

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
