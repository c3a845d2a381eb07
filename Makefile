# Every target does its own set-up; a second call starts at once. Needs Python 3.11-3.13, git and make.
PYTHON ?= $(firstword $(foreach v,python3.13 python3.12 python3.11 python3,$(shell command -v $(v) 2>/dev/null)))
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
	$(BIN)/python -m pytest -n 2 -q

bench: $(DEV)
	$(BIN)/python -m benchmarks

docs: $(DEV)
	$(BIN)/zensical build

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "headlens needs Python 3.11, 3.12 or 3.13 on the PATH" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(not (3, 11) <= v <= (3, 13) and f"headlens needs Python 3.11 to 3.13, {sys.executable} is {v[0]}.{v[1]}: make PYTHON=python3.12 ...")'
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
