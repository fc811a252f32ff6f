# Everything a person or CI runs. `make demo` and `make test` need Python >= 3.11 and make, nothing else.
PYTHON ?= python3
VENV   ?= .venv
COUNT  ?= 300
SEED   ?= 1
BIN    := $(VENV)/bin
UV_COMPILE = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links --no-header --no-annotate

.PHONY: demo test test-faults test-corpus check up lock clean bench format

demo: $(VENV)/.installed
	@$(BIN)/sluice demo

test: $(VENV)/.installed-dev
	@$(BIN)/python -m pytest $(PYTEST_ARGS)

check: $(VENV)/.installed-dev
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

format: $(VENV)/.installed-dev
	@$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

up: $(VENV)/.installed
	@$(BIN)/sluice up

test-faults: $(VENV)/.installed-dev
	@$(BIN)/python -m tests.faults --count $(COUNT) --seed $(SEED) $(FAULTS_ARGS)

test-corpus: $(VENV)/.installed-dev
	@$(BIN)/python -m tests.extraction --seed $(SEED)

bench: $(VENV)/.installed-dev
	@$(BIN)/python -m benchmarks.ingest
	@$(BIN)/python -m benchmarks.queues
	@$(BIN)/python -m benchmarks.million

lock: $(VENV)/.installed-dev
	@$(UV_COMPILE) pyproject.toml -o requirements.lock
	@$(UV_COMPILE) --extra dev pyproject.toml -o requirements-dev.lock

clean:
	@rm -rf $(VENV) build *.egg-info

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "sluice needs Python >= 3.11; '$(PYTHON)' is older. Name another one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "could not make a virtual environment with '$(PYTHON)'; on Debian or Ubuntu: apt install python3-venv" >&2; exit 1; }

$(VENV)/.installed: requirements.lock pyproject.toml | $(VENV)/bin/python
	@echo "installing from requirements.lock (the first time only)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.installed-dev: requirements-dev.lock $(VENV)/.installed
	@echo "installing from requirements-dev.lock (the first time only)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	@touch $@
