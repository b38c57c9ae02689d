# make demo and make test need Python >= 3.11 and make, nothing else: each creates .venv and installs into it.
PYTHON ?= python3
VENV ?= .venv
# Checks shapes and types at every call while the tests run; an int may stand where a float is asked for (PEP 484).
TYPECHECKER := beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))
BIN := $(VENV)/bin

.PHONY: demo test lint install format bench-grouping bench-steps clean

demo: $(VENV)/.installed
	$(BIN)/torchptycho demo --out demo

test: lint
	$(BIN)/python -m pytest -q -n 2 --jaxtyping-packages="torchptycho,$(TYPECHECKER)"

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $@

format: $(VENV)/.installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench-grouping: $(VENV)/.installed
	$(BIN)/python benchmarks/grouping.py

bench-steps: $(VENV)/.installed
	$(BIN)/python benchmarks/steps.py

clean:
	rm -rf $(VENV) demo build dist
