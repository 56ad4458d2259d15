# Two commands do everything on a fresh machine with Python 3.11+ and make:  make demo,  make test
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test lint types unit clean

demo: $(VENV)/core.stamp
	@$(BIN)/python examples/demo.py

test: lint types unit

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy does not follow the editable folder mapping, so it checks the installed wheel; that tests the packaging too.
types: $(VENV)/dev.stamp
	$(BIN)/python -m pip install --quiet --upgrade --no-deps --target $(VENV)/wheel .
	cd $(VENV)/wheel && ../../$(BIN)/mypy --config-file ../../pyproject.toml --cache-dir ../mypy -p pared

unit: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -q

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/core.stamp: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

# The simulators of spiking networks pin each other out; what the tests use of them works (see the file).
SIMULATORS := tests/backends/event/nir/simulators.txt

$(VENV)/dev.stamp: pyproject.toml $(SIMULATORS) | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,tvm,fpga,event,gpu,train]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r $(SIMULATORS)
	@touch $@ $(VENV)/core.stamp

clean:
	rm -rf $(VENV) build dist *.egg-info out .mypy_cache .ruff_cache .pytest_cache .hypothesis
