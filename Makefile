# The scripts for people and for CI; `make` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
DATASET ?= fashion-mnist
OUT ?= results
# What computes: empty for the embedded engine, triton for a server from wheels, or an engine's URL.
ENGINE ?=

.DEFAULT_GOAL := help
.PHONY: help setup setup-train eval serve test lint bench proto demo-network clean

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.serve  ## Make .venv with all that serving, evaluating and testing need

setup-train: $(VENV)/.train  ## Add torch and timm to .venv, for training and for timm's networks

eval: $(VENV)/.serve model_repository/convnext_idealized  ## Compare both networks on the demo's 10,000 test images (ENGINE=triton: through a Triton server)
ifeq ($(ENGINE),triton)
	$(BIN)/python deploy/triton/install.py
	$(BIN)/python deploy/triton/serve.py --grpc-port 0 --http-port 0 --metrics-port 0 -- \
	  $(BIN)/mkf-eval --dataset $(DATASET) --out $(OUT)
else
	$(BIN)/mkf-eval --dataset $(DATASET) --out $(OUT) $(if $(ENGINE),--engine $(ENGINE))
endif

serve: $(VENV)/.serve model_repository/convnext_idealized  ## Start both services on the embedded engine
	$(BIN)/mkf-serve

.PHONY: triton
triton: $(VENV)/.serve model_repository/convnext_idealized  ## Start Triton on the models, from wheels, without Docker
	$(BIN)/python deploy/triton/install.py
	$(BIN)/python deploy/triton/serve.py

# Where Triton cannot be installed its tests skip and say why.
test: lint  ## Run all checks and tests
	-$(BIN)/python deploy/triton/install.py
	$(BIN)/python -m pytest

.PHONY: test-compose
test-compose: $(VENV)/.serve  ## Build all container images and run the CPU stack, under podman (as root; about 5 minutes)
	MKF_TEST_COMPOSE=1 $(BIN)/python -m pytest tests/compose

lint: $(VENV)/.train  ## Check style, types, imports and the generated API
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.serve  ## Time the fits and filters' own scales beside a plain grid search
	$(BIN)/python benchmarks/fit.py

# timm exports the heavier of its two networks.
.PHONY: bench-serving
bench-serving: $(VENV)/.train model_repository/convnext_idealized  ## Load a real Triton: perf_analyzer beside our road, LoadGen, 1 to 3 servers (10 minutes, on a quiet machine)
	$(BIN)/python -m benchmarks.serving

.PHONY: parity
parity: $(VENV)/.serve model_repository/convnext_idealized  ## See that torch, ONNX Runtime, Triton and the service give the same answers
	$(BIN)/python deploy/triton/install.py
	$(BIN)/python -m benchmarks.parity

proto: $(VENV)/.serve  ## Generate the API mkf.v1 from proto/
	$(BIN)/python -m grpc_tools.protoc -Iproto --python_out=. --pyi_out=. --grpc_python_out=. proto/mkf/v1/*.proto

demo-network: $(VENV)/.train  ## Train the demo's two networks and export them (about an hour on 2 cores; resumes)
	$(BIN)/python -m mkf.demo.build

clean:  ## Remove the environments and the tools' caches; exported models, runs and training stay
	rm -rf $(VENV) .triton .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

# Only where nothing is exported yet: what a user put there stays.
model_repository/convnext_idealized: | $(VENV)/.serve
	$(BIN)/mkf export --source demo --repository model_repository

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit("mkf needs Python 3.11 or newer, not " + sys.version.split()[0] + "; name one with make PYTHON=...") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.serve: $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "Installing mkf for serving, evaluating and testing into $(VENV) ..."
	@$(PIP) install --quiet --constraint constraints.txt --editable '.[serve,report,dev]'
	touch $@

$(VENV)/.train: $(VENV)/.serve
	@echo "Adding torch and timm to $(VENV) ..."
	@$(PIP) install --quiet --constraint constraints.txt --editable '.[serve,report,dev,train]'
	touch $@
