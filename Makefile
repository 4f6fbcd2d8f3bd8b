# Every target sets up what it needs: a fresh clone and Python ≥ 3.11 are enough.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
WORKERS ?= 2
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-faults lint types layers audit sbom fuzz bench bench-learning clean

help:  ## Show the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY)  ## Make the virtual environment with everything pinned in constraints.txt

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info < (3, 14) else "Nocturne needs Python 3.11 to 3.13; this is %s. Name another: make PYTHON=python3.12" % sys.version.split()[0])'
	@echo "Installing into $(VENV) (about two minutes the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[test,onnx]'
	@touch $@

demo: $(READY)  ## Run the main job end to end on a phantom cohort (embedded, no network)
	@$(BIN)/nocturne demo

test: lint types layers  ## Check style, types and layers, then run all tests
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -rs

test-faults: $(READY)  ## Inject every fault of docs/trust.md at its full length, and write its table (hours)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m fault --full --trust docs/trust.md -n $(WORKERS) --dist loadfile -rs

fuzz: $(VENV)/.fuzz  ## Look for inputs that are neither read nor refused (TARGETS: some; MINUTES for each, 10)
	@OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz $(TARGETS) --minutes $(or $(MINUTES),10)

$(VENV)/.fuzz: $(READY)
	@$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[fuzz]'
	@touch $@

lint: $(READY)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

# Benchmarks are scripts that call what the house offers; what they say to other libraries is looser.
LOOSE := --disable-error-code arg-type --disable-error-code assignment --disable-error-code union-attr
SCRIPTS := benchmarks/*.py benchmarks/learning/[a-z]*.py

types: $(READY)
	@$(BIN)/mypy
	@MYPYPATH=benchmarks:benchmarks/learning $(BIN)/mypy --explicit-package-bases --follow-imports silent $(LOOSE) $(SCRIPTS)

layers: $(READY)
	@$(BIN)/lint-imports

audit: .venv-audit/.ready $(READY)  ## Ask whether anything installed or pinned is known to be vulnerable
	@.venv-audit/bin/python docs/audit.py --tool .venv-audit/bin/pip-audit --environment $(VENV)

sbom: .venv-audit/.ready $(READY)  ## Write dist/sbom.cdx.json: all that is installed, with licences (CycloneDX)
	@mkdir -p dist
	@.venv-audit/bin/cyclonedx-py environment --pyproject pyproject.toml --gather-license-texts --output-reproducible --validate --output-file dist/sbom.cdx.json $(BIN)/python
	@echo "dist/sbom.cdx.json"

.venv-audit/.ready: constraints.txt
	@test -x .venv-audit/bin/python || $(PYTHON) -m venv .venv-audit
	@.venv-audit/bin/pip install --quiet --constraint constraints.txt pip-audit cyclonedx-bom
	@touch $@

bench: .venv-peers/.ready  ## Time the stages beside what a user would pick instead (STAGES: some; WRITE=1: into docs/benchmarks.md)
	@$(BIN)/python benchmarks $(STAGES) --peers .venv-peers/bin/python $(if $(WRITE),--write)

.venv-peers/.ready: $(READY)
	@test -x .venv-peers/bin/python || $(PYTHON) -m venv .venv-peers
	@.venv-peers/bin/pip install --quiet --constraint constraints.txt nnunetv2
	@touch $@

bench-learning: .venv-peers/.ready  ## Every network beside nnU-Net v2 and MONAI (DATA: the public sets; MINUTES; hours)
	@test -n "$(DATA)" || { echo "Name the folder with the public sets: make bench-learning DATA=…"; exit 2; }
	@$(BIN)/python benchmarks/learning --data "$(DATA)" --minutes $(or $(MINUTES),10 30) --each $(or $(EACH),3) --peers .venv-peers/bin/python

clean:  ## Remove the virtual environment and caches (data in NOCTURNE_HOME stays)
	rm -rf $(VENV) .venv-peers .venv-audit .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache *.egg-info benchmarks/work
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
