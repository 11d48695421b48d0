# Every target sets up what it needs; .venv is created with the standard venv and pip, from constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test test-slow check bench results docs site pretrain ablate clean
.DEFAULT_GOAL := demo

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet -c constraints.txt --editable '.[dev]'
	touch $(STAMP)

demo: $(STAMP)  ## evaluate the bundled CartPole-v1 policy in context; compare with truth and critic
	$(BIN)/icrl-gym evaluate

test: $(STAMP)  ## the fast suite
	$(BIN)/python -m pytest -n 2 -q

test-slow: $(STAMP)  ## everything, minutes
	$(BIN)/python -m pytest -n 2 -q -m 'slow or not slow'

check: $(STAMP)  ## style and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

bench: $(STAMP)  ## speed and memory, as ratios within one run; writes docs/performance.md (hours; resumes)
	$(BIN)/python scripts/benchmark_scale.py
	$(BIN)/python scripts/benchmark_evaluator.py
	OMP_NUM_THREADS=1 $(BIN)/python scripts/benchmark_many.py
	$(BIN)/python scripts/benchmark_truth.py
	$(BIN)/python scripts/benchmark_prior.py
	$(BIN)/python scripts/benchmark_audit.py
	$(BIN)/python scripts/benchmark_live.py

results: $(STAMP)  ## RESULTS.md and docs/results from the records in the repository; nothing is run
	$(BIN)/python scripts/make_results.py

docs: $(STAMP)  ## the generated pages: the theory's claims (an hour from scratch; resumes) and the prior's pictures
	$(BIN)/python scripts/reproduce.py --report docs/reproduction.md
	$(BIN)/python scripts/draw_prior.py

site: $(STAMP)  ## the documentation site, into site/; needs no network
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

pretrain: $(STAMP)  ## the generalist's checkpoint from an empty folder (half an hour; resumes), into runs/pretrain
	$(BIN)/icrl-gym pretrain --jobs 2

ablate: pretrain  ## what the pretrained error bars are worth beside untrained ones: the tables of docs/mixture.md (minutes)
	$(BIN)/python scripts/ablate_pretraining.py

clean:
	rm -rf $(VENV) build dist *.egg-info
