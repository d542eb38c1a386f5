# Everything a person does here, one command each. `make` lists them.
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# what the extra laplace needs, less torchvision, which nothing of it imports: its default build breaks a CPU torch
LAPLACE := laplace-torch asdfghjkl backpack-for-pytorch curvlinops-for-pytorch einconv einops jaxtyping \
	lightning-utilities linear-operator opt-einsum torchmetrics unfoldnd wadler-lindig
export DO_NOT_TRACK := 1
export DVC_NO_ANALYTICS := 1

$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing the locked dependencies into $(VENV) (about two minutes the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps $(LAPLACE)
	@touch $(STAMP)

.PHONY: setup
setup: $(STAMP) data ## create .venv, install the locked dependencies, make the dataset

.PHONY: data
data: $(STAMP) ## write the published dataset into data/ and check it against data.dvc
	@$(BIN)/inverse-alignment data make

.PHONY: run
run: setup ## run the main job: three arms on the embedded text world, then a report
	@$(BIN)/inverse-alignment run

.PHONY: test
test: setup ## the tests (minutes, CPU only)
	@$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not ops"

.PHONY: test-ops
test-ops: setup ## the tests on real Prefect and MLflow servers and real DVC projects (minutes)
	@$(BIN)/python -m pytest -m ops tests

.PHONY: test-all
test-all: setup ## the tests and the slow checks
	@$(BIN)/python -m pytest -n 2 --dist loadfile

.PHONY: mutation
mutation: $(STAMP) ## change every function of maths in one place at a time: a test must fail (minutes)
	@$(BIN)/python -m benchmarks.mutation

.PHONY: check
check: $(STAMP) ## ruff, the type checker and the import rules
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

.PHONY: format
format: $(STAMP) ## put the code into its one format
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

.PHONY: up
up: setup ## start a Prefect server, an MLflow server and workers on this machine
	@$(BIN)/inverse-alignment up

.PHONY: down
down: ## end what `make up` has started
	@$(BIN)/inverse-alignment down

.PHONY: screenshots
screenshots: setup ## take the pictures of docs/images anew: servers, a small run, a browser (minutes)
	@PYTHONPATH=. $(BIN)/python docs/images/make.py

.PHONY: clean
clean: ## remove what was derived here: artifacts, reports, local servers' records; keeps .venv and data
	@if test -x $(BIN)/inverse-alignment; then $(BIN)/inverse-alignment down; fi
	@rm -rf mlflow.db.lock artifacts reports .prefect mlruns mlflow.db .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

.PHONY: help
help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12
