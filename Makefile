# make demo | test | lint | bench | lowest | pins | clean | venv.  All commands use .venv, which is built if it is missing or out of date.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
JOBS ?= 2
STAMP := $(VENV)/.installed
LOWEST := .venv-lowest

# Runs a tool of the environment; shows its output only when it fails.
quietly = @echo '$(1)'; output=$$($(BIN)/$(1) 2>&1) || { printf '%s\n' "$$output"; exit 1; }

.DEFAULT_GOAL := help
.PHONY: help venv demo test lint bench lowest pins clean

help:
	@echo 'make demo    the demonstration: some 3,300 retrainings, a table, a report; minutes'
	@echo 'make test    lint, then all tests, two files at a time; JOBS=4 for four'
	@echo 'make lint    style, types, import rules, versions that fit together, spelling'
	@echo 'make bench   run the benchmarks in tests/benchmarks'
	@echo 'make lowest  install the lowest versions that pyproject.toml allows into $(LOWEST), and run smoke with them'
	@echo 'make pins    write constraints.txt from what is installed in $(VENV)'
	@echo 'make venv    install into $(VENV) and nothing else; PYTHON=python3.12 selects the interpreter'
	@echo 'make clean   remove $(VENV) and caches; keep the results in store/'

venv: $(STAMP)

# The stamp is written last, so that an interrupted installation is run again.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' || \
	  { echo 'Python 3.11, 3.12 or 3.13 is needed; choose one with: make PYTHON=python3.11'; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo 'installing into $(VENV); the first time takes some minutes'
	@output=$$($(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,text]' 2>&1) || \
	  { printf '%s\n' "$$output"; exit 1; }
	@touch $@

demo: $(STAMP)
	@$(BIN)/genrep run demo

lint: $(STAMP)
	$(call quietly,ruff check .)
	$(call quietly,ruff format --check .)
	$(call quietly,mypy)
	$(call quietly,lint-imports --no-logo)
	$(call quietly,python -m pip check)
	$(call quietly,codespell $(wildcard *.md Makefile .ci/run) $(wildcard genrep_dist tests jobs docs cluster))

test: lint
	@for name in mnist cifar10 toxicity newsgroups wordpiece; do \
	  $(BIN)/genrep data fetch $$name > /dev/null 2>&1 || \
	    echo "$$name cannot be fetched here: tests on it will be skipped (genrep data fetch $$name says why)"; \
	done
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile --no-loadscope-reorder

bench: $(STAMP)
	@for file in $(filter-out %/__init__.py,$(wildcard tests/benchmarks/*.py)); do \
	  echo "$$file"; \
	  $(BIN)/python -m "$$(echo "$${file%.py}" | tr / .)" || exit 1; \
	done

lowest:
	@rm -rf $(LOWEST)
	@$(PYTHON) -m venv $(LOWEST)
	@{ $(PYTHON) .ci/lowest_versions.py; grep '^torch==' constraints.txt; } > $(LOWEST)/lowest.txt
	@output=$$($(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check -c $(LOWEST)/lowest.txt . 2>&1) || \
	  { printf '%s\n' "$$output"; exit 1; }
	@$(LOWEST)/bin/genrep run smoke --serial --store $(LOWEST)/store

pins: $(STAMP)
	@$(BIN)/python .ci/pin_versions.py > constraints.new
	@mv constraints.new constraints.txt

clean:
	@rm -rf $(VENV) $(LOWEST) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage htmlcov
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
