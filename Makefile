# Every target does its own set-up; a second call starts at once. Needs Python 3.11-3.13, git and make.
# The first Python of the right version that really starts (version managers leave names that do not).
FITS = import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(shell for p in python3 python3.12 python3.11 python3.13; do \
	$$p -c '$(FITS)' >/dev/null 2>&1 && { echo $$p; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
# A stamp per set of requirements: set-up runs again exactly when they change.
SUM := $(shell cat pyproject.toml constraints.txt | cksum | cut -d' ' -f1)
RUN := $(VENV)/.run-$(SUM)
DEV := $(VENV)/.dev-$(SUM)
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt

.PHONY: demo test lint unit bench docs clean
.DEFAULT_GOAL := demo

demo: $(RUN)
	@$(BIN)/headlens demo

test: lint unit

lint: $(DEV)
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/lint-imports
	$(BIN)/pyright

unit: $(DEV)
	@tools/chromium.sh
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -q

bench: $(DEV)
	$(BIN)/python -m benchmarks

docs: $(DEV)
	$(BIN)/zensical build

$(VENV)/bin/python:
	@test -n "$(PYTHON)" && $(PYTHON) -c '$(FITS)' || { \
		echo "headlens needs Python 3.11, 3.12 or 3.13 with venv: make PYTHON=/path/to/python3.12 ..." >&2; exit 1; }
	@echo "setting up $(VENV) with $(PYTHON) (once; a few minutes)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) --upgrade pip

# torch first and pinned: unpinned, another package may pull a newer build with gigabytes of CUDA.
$(RUN): $(VENV)/bin/python pyproject.toml constraints.txt
	@$(PIP) torch==2.13.0
	@$(PIP) --editable .
	@touch $@

$(DEV): $(RUN)
	@$(PIP) --editable '.[report]' --group test --group lint --group docs
	@touch $@

clean:
	rm -rf $(VENV) build dist site out
