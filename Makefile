# Everything from a fresh clone with Python 3.11 and make: the environment is made on first use.

PYTHON  ?= $(shell command -v python3.11 || command -v python3)
VENV    := .venv
BIN     := $(VENV)/bin
PIP     := $(BIN)/python -m pip --disable-pip-version-check
WORKERS ?= 2
# Workers with one thread each, so that they do not fight over the cores.
THREADS := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1

# One stamp per set of requirements: a second `make` installs nothing until the requirements change.
RUN_STAMP := $(VENV)/.installed
DEV_STAMP := $(VENV)/.installed-dev
REQUIREMENTS := pyproject.toml constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow bench bench-peers docs lint format types clean distclean

help: ## Show this list
	@grep -E '^[a-z-]+:.*## ' $(firstword $(MAKEFILE_LIST)) | sed 's/:.*## /\t/' | expand -t 14

# torch goes first and alone: a package with a looser requirement would else choose another build of it.
$(VENV)/.torch: constraints.txt
	@test -n "$(PYTHON)" || { echo "No python3.11 found; install Python 3.11 or newer, or set PYTHON=..."; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "$(PYTHON) is older than 3.11; set PYTHON=/path/to/python3.11"; exit 1; }
	test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV)
	$(PIP) install --quiet "$$(grep '^torch==' constraints.txt)"
	@touch $@

$(RUN_STAMP): $(VENV)/.torch $(REQUIREMENTS)
	$(PIP) install --quiet --constraint constraints.txt --editable .
	@touch $@

$(DEV_STAMP): $(VENV)/.torch $(REQUIREMENTS)
	$(PIP) install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $(RUN_STAMP) $@

demo: $(RUN_STAMP) ## Train on handwritten digits, sample, measure; writes runs/demo/report.html
	$(BIN)/retrodict demo --out runs/demo

test: $(DEV_STAMP) ## Run the tests
	$(THREADS) $(BIN)/python -m pytest -n $(WORKERS)

test-slow: $(DEV_STAMP) ## Run the longer statistical studies too
	$(THREADS) $(BIN)/python -m pytest -n $(WORKERS) -m 'not gpu'

bench: $(DEV_STAMP) .venv-peers/.installed .venv-peers-images/.installed ## Run the benchmarks and renew docs/benchmarks.md
	status=0; for study in benchmarks/bench_*.py; do $(BIN)/python $$study || status=1; done; \
	$(BIN)/python benchmarks/collect.py && exit $$status

# Peers live in environments of their own: one wants another NumPy, one a torchvision whose operators meet no CPU torch.
bench-peers: .venv-peers/.installed .venv-peers-images/.installed ## Make the environments of the peers of `bench`

.venv-peers/.installed: benchmarks/peers_inference/requirements.txt
	test -x .venv-peers/bin/python || "$(PYTHON)" -m venv .venv-peers
	.venv-peers/bin/python -m pip --disable-pip-version-check install --quiet --requirement $<
	@touch $@

.venv-peers-images/.installed: benchmarks/peers_images/requirements.txt
	test -x .venv-peers-images/bin/python || "$(PYTHON)" -m venv .venv-peers-images
	.venv-peers-images/bin/python -m pip --disable-pip-version-check install --quiet --requirement $<
	@touch $@

docs: $(DEV_STAMP) ## Build the documentation in site/, strictly
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet --clean

lint: $(DEV_STAMP) ## Check style with ruff
	$(BIN)/ruff check .

format: $(DEV_STAMP) ## Rewrite the sources in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(DEV_STAMP) ## Check types with basedpyright
	$(BIN)/basedpyright

clean: ## Remove what builds and tests left (not .venv, not runs)
	rm -rf site build dist .pytest_cache .ruff_cache .hypothesis *.egg-info
	find src tests benchmarks examples docs -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## Also remove the environment
	rm -rf $(VENV) .venv-peers .venv-peers-images
