# Each target makes its own environment: nothing is needed but make, git and a Python of version 3.11 or newer.

PORT ?= 8000
VENV ?= .venv
ARGS ?=
WORKERS ?= 2
FUZZ_SECONDS ?= 60
EXAMPLES ?= 20000
export PYTHON VENV

BIN := $(VENV)/bin
# The stamps are older than pyproject.toml, or missing, when something must be installed.
DEMO := $(VENV)/.demo$(addprefix -,$(notdir $(PYTHON)))
DEV := $(VENV)/.dev$(addprefix -,$(notdir $(PYTHON)))
FUZZ := $(VENV)-fuzz/.fuzz$(addprefix -,$(notdir $(PYTHON)))
# What the tests need holds all that the demo needs.
READY_FOR_DEMO := $(firstword $(wildcard $(DEV)) $(DEMO))

.DEFAULT_GOAL := help
.PHONY: help demo test coverage soak bench lint clean

help:
	@echo 'make demo    start the example application on 127.0.0.1:$(PORT) and show that its cache works'
	@echo '             PORT=8001 chooses another port, ARGS=--once ends after the proof,'
	@echo '             CACHE_BACKEND=redis REDIS_URL=redis://localhost:6379 uses Redis'
	@echo 'make test    run all tests, against real servers, in WORKERS=2 processes; ARGS="-k memory" chooses some'
	@echo 'make coverage  run them in one process, and say which lines they do not reach'
	@echo 'make soak    run two workers for minutes while everything breaks; ARGS="--seconds 600 --seed 7"'
	@echo 'make bench   measure what a hit costs, beside other caches, and write docs/performance.md (35 minutes);'
	@echo '             PEERS_PYTHON=python3.12 chooses the interpreter of the others'
	@echo 'make lint    check style, types and the order of imports'
	@echo 'make fuzz    let atheris try the rules with any bytes for FUZZ_SECONDS=60, in $(VENV)-fuzz'
	@echo 'make differential  compare random applications with their cached twins, EXAMPLES=20000 a policy'
	@echo 'make clean   remove what these made'
	@echo 'All of them: PYTHON=python3.12 chooses the interpreter.'

demo: $(READY_FOR_DEMO)
	@$(BIN)/python -m examples.cities --port '$(PORT)' $(ARGS)

test: $(DEV)
	$(BIN)/pytest -q -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

coverage: $(DEV)
	$(BIN)/coverage run -m pytest -q $(ARGS)
	$(BIN)/coverage report

soak: $(DEV)
	$(BIN)/python -m tests.failures.soak $(ARGS)

bench: $(DEV)
	$(BIN)/python -m tests.benchmarks $(ARGS)

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fuzz: $(FUZZ)
	$(VENV)-fuzz/bin/python -m tests.fuzz.rules -max_total_time=$(FUZZ_SECONDS) $(ARGS)

differential: $(DEV)
	DIFFERENTIAL_EXAMPLES=$(EXAMPLES) $(BIN)/pytest -q -o faulthandler_timeout=0 tests/conformance/test_differential.py $(ARGS)

clean:
	rm -rf $(VENV) $(VENV)-fuzz examples/cities/cities.sqlite3 .coverage .coverage.* dist build
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(DEMO): pyproject.toml
	@.ci/environment demo $@

$(DEV): pyproject.toml
	@.ci/environment dev $@

$(FUZZ): pyproject.toml
	@VENV=$(VENV)-fuzz .ci/environment fuzz $@

# An environment whose interpreter is gone is made anew.
ifeq ($(realpath $(BIN)/python),)
.PHONY: $(DEMO) $(DEV)
endif
