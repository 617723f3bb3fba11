# make quickstart | test | test-all | docs | lint | format     (VENV=.venv is made on first use; PYTHON=python3.12 picks the interpreter)
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
WORKDIR ?= runs/quickstart
# Two workers for two cores; a module stays on one, which makes its fixtures once.
# A worker that dies ends the run with the name of its test: xdist, when it replaces one in the middle of a module, waits for ever.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadscope --max-worker-restart=0

.PHONY: quickstart quickstart-short test test-long test-all docs lint format clean

$(VENV)/installed: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -r requirements.txt
	touch $@

$(VENV)/installed-tests: $(VENV)/installed requirements-test.txt
	$(BIN)/python -m pip install --quiet -r requirements-test.txt
	touch $@

$(VENV)/installed-peers: $(VENV)/installed-tests requirements-peers.txt
	$(BIN)/python -m pip install --quiet -r requirements-peers.txt
	$(BIN)/python -m pip install --quiet --no-deps jax2onnx==0.17.1
	touch $@

$(VENV)/installed-docs: $(VENV)/installed requirements-docs.txt
	$(BIN)/python -m pip install --quiet -r requirements-docs.txt
	touch $@

quickstart: $(VENV)/installed
	$(BIN)/python run.py --config=configs/quickstart.py --workdir=$(WORKDIR)

# A few steps of everything the quick start does; for CI.
quickstart-short: $(VENV)/installed
	$(BIN)/python run.py --config=configs/quickstart.py --workdir=$(WORKDIR)-short \
	    --config.train.max_steps=60 --config.teacher.recipe.train.max_steps=60

test: $(VENV)/installed-tests
	$(PYTEST) -m "not long"

test-long: $(VENV)/installed-peers
	$(PYTEST) -m long

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

format: $(VENV)/installed-tests
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) runs build dist *.egg-info
