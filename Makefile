# Everything a newcomer or CI needs; each target sets up what it uses. `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
POLICY := $(VENV)/.ready-policy
SAFETY := $(VENV)/.ready-safety
MUTATION := $(VENV)/.ready-mutation
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

# A worker per core, each with one thread: tests are small.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help setup setup-policy setup-safety demo demo-policy test test-slow test-faults test-policy test-mutation lint types \
  format bench docs reproduce-skills-lm reproduce-psec clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-20s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP)  ## virtual environment with the core and the tools for development

# Done again only when what is to be installed has changed.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "expertise needs Python 3.11, 3.12 or 3.13: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 2; }
	@$(PYTHON) -m venv $(VENV) || \
	  { echo "Python's venv module is missing: on Debian and Ubuntu, apt install python3-venv"; exit 2; }
	$(PIP) --editable '.[dev,hf,skills]'
	@touch $(STAMP)

# Bullet has no wheel for every Python: without it all but the safe tasks works, and those say what is missing.
setup-policy: $(POLICY)  ## add what policies need: simulators (Bullet's, too), readers of recorded data, teachers, ONNX
	@$(MAKE) --no-print-directory $(SAFETY) || \
	  echo "Bullet's safe tasks could not be installed; all else can be used (make setup-safety tries again)"

$(POLICY): $(STAMP)
	$(PIP) --editable '.[policy,onnx]'
	@touch $(POLICY)

setup-safety: $(SAFETY)  ## add Bullet's safe tasks

# The package asks for an older Gymnasium, yet works with ours: only --no-deps says so, and no extra can.
$(SAFETY): $(POLICY)
	$(PIP) pybullet
	$(PIP) --no-deps bullet-safety-gym
	@touch $(SAFETY)

demo: $(STAMP)  ## train a mixture of experts on text from this machine and draw what each expert learnt
	$(BIN)/expertise demo

demo-policy: $(SAFETY)  ## safe control: skills for reward and safety, composed state by state; two to five minutes
	$(BIN)/expertise policy demo

test: $(STAMP)  ## all tests but slow ones (test-slow), those that need simulators (test-policy), full lists of faults (test-faults)
	$(PYTEST)

test-slow: $(STAMP)  ## tests that take long: pages of the guide, whole reproductions, compiled models, long random sweeps
	$(PYTEST) -m 'slow and not faults'

test-policy: $(SAFETY)  ## the tests of policies, with simulators, which make test skips
	$(PYTEST) -m 'not faults' tests/policy 'tests/guide/test_guide.py::test_a_page_runs[09-policies]' \
	  tests/guide/test_readme.py tests/written_before tests/contract/test_new_router.py

test-faults: $(STAMP)  ## the full lists of kills and damage, which make test leaves out, about three minutes
	$(BIN)/python -m pytest -m faults -v

test-mutation: $(MUTATION)  ## 320 small changes of the source, each of which a test must notice; an hour; goes on
	$(BIN)/python tests/mutation/run.py

# Only this target needs cosmic-ray, which brings twenty packages along.
$(MUTATION): $(STAMP)
	$(PIP) --editable '.[mutation]'
	@touch $(MUTATION)

lint: $(STAMP)  ## style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)  ## types
	$(BIN)/mypy

format: $(STAMP)  ## put the code into house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)  ## measure speed beside peers and the physical limit, about ten minutes
	$(BIN)/python benchmarks/mixture_layer.py
	$(BIN)/python benchmarks/skills.py
	$(BIN)/python benchmarks/policy_training.py
	$(BIN)/python benchmarks/policy_acting.py
	$(BIN)/python benchmarks/policy_peer.py

docs: $(STAMP)  ## write docs/cli.md and the lists of recipes' keys from the code
	$(BIN)/python docs/make_cli.py
	$(BIN)/python docs/make_recipe_keys.py

reproduce-skills-lm: $(STAMP)  ## skills on language models, three seeds, about an hour on one core; goes on where it stopped
	OMP_NUM_THREADS=1 $(BIN)/python -m reproduce.skills_lm

reproduce-psec: $(SAFETY)  ## policies: all scenarios, or SCENARIO=safe; hours on two cores; goes on where it stopped
	OMP_NUM_THREADS=1 $(BIN)/python -m reproduce.psec $(SCENARIO)

clean:  ## remove the environment and what tools left behind; runs stay
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks build dist
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
