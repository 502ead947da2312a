# On a machine that has only Python and make: `make demo` and `make test` do everything.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
JAX_VENV ?= .venv-jax
JAX_STAMP := $(JAX_VENV)/installed

.PHONY: demo test check lint notebooks bench bench-jax gpu docs dist clean

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[tests]"
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/tarspyro train vae --data digits --run runs/demo --overwrite

# One torch thread a worker: two workers with two threads each would only take turns.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m slipcover --json --out coverage.json -m pytest -n 2 --dist worksteal
	$(BIN)/python -m slipcover --merge coverage.json --out coverage.json --skip-covered --fail-under 95

# Before a commit: the tests of what changed since the last one.
check: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal $$($(BIN)/python docs/scripts/changed_tests.py)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

notebooks: $(STAMP)
	$(BIN)/python notebooks/execute.py

bench: $(STAMP)
	$(BIN)/python benchmarks/step_time.py

# NumPyro has an environment of its own: it is needed for nothing else.
$(JAX_STAMP): benchmarks/requirements-jax.txt
	$(PYTHON) -m venv $(JAX_VENV)
	$(JAX_VENV)/bin/python -m pip install --quiet --requirement benchmarks/requirements-jax.txt
	touch $(JAX_STAMP)

bench-jax: $(STAMP) $(JAX_STAMP)
	$(BIN)/python benchmarks/step_time.py --cold --numpyro $(JAX_VENV)/bin/python
	$(BIN)/python benchmarks/mnist_epoch.py --numpyro $(JAX_VENV)/bin/python

# On a machine with an accelerator: its tests and times, in less than eight minutes, in one file.
gpu: $(STAMP)
	$(BIN)/python benchmarks/gpu.py

# The site is in site/; nothing is fetched, neither while it is built nor when it is read.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# A release: sdist and wheel in dist/, checked; the quick start runs from the wheel in a clean environment.
RELEASE := build/release

dist:
	rm -rf dist $(RELEASE)
	$(PYTHON) -m venv $(RELEASE)/tools
	$(RELEASE)/tools/bin/python -m pip install --quiet "build>=1.2" "twine>=6"
	$(RELEASE)/tools/bin/python -m build --outdir dist .
	$(RELEASE)/tools/bin/python -m twine check --strict dist/*
	$(PYTHON) -m venv $(RELEASE)/clean
	$(RELEASE)/clean/bin/python -m pip install --quiet --constraint constraints.txt torch
	$(RELEASE)/clean/bin/python -m pip install --quiet --constraint constraints.txt dist/*.whl
	cd $(RELEASE) && clean/bin/python ../../docs/scripts/quick_start.py ../../README.md
	cd $(RELEASE) && clean/bin/tarspyro list > methods.txt

clean:
	rm -rf $(VENV) $(JAX_VENV) build dist site *.egg-info
