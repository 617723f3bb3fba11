# make quickstart | test | test-long | test-all | docs | lint | format     (VENV=.venv is made on first use; PYTHON=python3.12 picks the interpreter)
# The newest supported Python that runs: a pyenv shim may be on the path without an interpreter behind it.
PYTHON ?= $(shell for name in python3.13 python3.12 python3.11 python3; do \
    $$name -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && echo $$name && break; done)
VENV ?= .venv
BIN := $(VENV)/bin
WORKDIR ?= runs/quickstart
# The package itself, editable, with what an extra of pyproject.toml asks for, in the versions that were tested with this Python.
INSTALL = PYTHONWARNINGS="ignore:Editable installation" $(BIN)/python -m pip install --quiet $(foreach file,$(wildcard $(CONSTRAINTS)),--constraint $(file))
CONSTRAINTS = constraints/python$(shell $(BIN)/python -c 'import sys; print(*sys.version_info[:2], sep=".")').txt
DECLARED := pyproject.toml requirements.txt $(wildcard constraints/*.txt)
# jax2onnx excludes orbax-checkpoint 0.12, for examples of its own.
INSTALL_WITHOUT_REQUIREMENTS := jax2onnx==0.17.1
# Two workers for two cores. Each takes half of the tests in their order, so that a module's fixtures are made once, and when it is done
# half of what the other has left. A worker that dies ends the run with the name of its test.
PYTEST := $(BIN)/python -m pytest -n 2 --dist worksteal --max-worker-restart=0

.PHONY: quickstart quickstart-short test test-short test-compiler test-long test-torch test-all docs lint format constraints clean

$(VENV)/bin/python:
	$(if $(PYTHON),,$(error no Python 3.11, 3.12 or 3.13 runs here: install one, or name it with PYTHON=))
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/installed: $(VENV)/bin/python $(DECLARED)
	$(INSTALL) --editable .
	touch $@

$(VENV)/installed-tests: $(VENV)/installed
	$(INSTALL) --editable '.[dev]'
	touch $@

# TORCH= leaves PyTorch out, which takes gigabytes with its CUDA; the tests that need it are skipped then.
TORCH ?= ,torch
$(VENV)/installed-peers: $(VENV)/installed-tests
	$(INSTALL) --editable '.[dev,peers$(TORCH)]'
	$(INSTALL) --no-deps $(INSTALL_WITHOUT_REQUIREMENTS)
	touch $@

$(VENV)/installed-docs: $(VENV)/installed
	$(INSTALL) --editable '.[docs]'
	touch $@

quickstart: $(VENV)/installed
	$(BIN)/python run.py --config=configs/quickstart.py --workdir=$(WORKDIR)

# A few steps of everything the quick start does; for CI.
quickstart-short: $(VENV)/installed
	$(BIN)/python run.py --config=configs/quickstart.py --workdir=$(WORKDIR)-short \
	    --config.train.max_steps=60

test: $(VENV)/installed-tests
	$(PYTEST) -m "not long and not compiler"

# A part, for further Pythons; compiled with the usual optimizations (3), which tests/conftest.py leaves out (0).
OPTIMIZATION ?= 3
SHORT ?= tests/models tests/training/test_trajectory.py tests/reliability/test_earlier_version.py
test-short: $(VENV)/installed-tests
	XLA_FLAGS=--xla_backend_optimization_level=$(OPTIMIZATION) $(PYTEST) -m "not long and not compiler" $(SHORT)

test-compiler: $(VENV)/installed-tests
	$(PYTEST) -m compiler

# Everything that `test` leaves out.
test-long: $(VENV)/installed-peers
	$(PYTEST) -m "long or compiler"

# The tests that need PyTorch, with their files; two more need timm too (docs/parity.md).
NEEDS_TORCH := $(addprefix tests/,weights/test_pickles.py weights/test_peers.py weights/test_loading.py training/test_features.py \
    host_teacher/test_frameworks.py modes/test_feature_runs.py::test_the_exported_student_loads_strictly_in_transformers)
test-torch: $(VENV)/installed-peers
	$(PYTEST) -m "not compiler" $(NEEDS_TORCH)

test-all: test test-long

# build/site/index.html; fails for a link, page or anchor that is not there (--quiet would count no warnings).
docs: $(VENV)/installed-docs
	$(BIN)/python docs/site/pages.py write
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	$(BIN)/python docs/site/pages.py check

lint: $(VENV)/installed-tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m mypy

# Writes constraints/pythonX.Y.txt: the newest versions that pyproject.toml admits, as they install together on a Linux machine.
# Once for each Python (PYTHON=), with the tests before it is committed. HOLD='torch==2.13.0' keeps a version.
constraints:
	rm -rf build/constraints
	$(PYTHON) -m venv build/constraints
	build/constraints/bin/python -m pip install --quiet --upgrade pip
	build/constraints/bin/python -m pip install --quiet --editable '.[dev,peers,docs$(TORCH)]' $(HOLD)
	build/constraints/bin/python -m pip install --quiet --no-deps $(INSTALL_WITHOUT_REQUIREMENTS)
	file=constraints/python$$(build/constraints/bin/python -c 'import sys; print(*sys.version_info[:2], sep=".")').txt && mkdir -p constraints && \
	{ echo "# Tested together; written by make constraints. CUDA's libraries are left to what needs them (JAX's extra, PyTorch)."; \
	  build/constraints/bin/python -m pip freeze --exclude-editable | sed -E '/^(nvidia|cuda|triton)/d; s/\+.*//'; } > $$file

format: $(VENV)/installed-tests
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) runs build dist *.egg-info
