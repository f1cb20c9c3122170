# `make help` lists the targets. Everything lives in .venv, made by `make install` from a bare clone.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PROTOS := $(wildcard protos/llava_grpc/v1/*.proto)

.DEFAULT_GOAL := help

.PHONY: help
help: ## Show this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  \033[1m%-14s\033[0m %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or later is needed; $(PYTHON) is $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	@echo "==> [1/3] environment in $(VENV)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "==> [2/3] libraries (torch is the large one)"
	@$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt 'pip>=25'
	@$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@echo "==> [3/3] check"
	@$(BIN)/llava-grpc version
	@touch $@

.PHONY: install
install: $(STAMP) ## Make .venv with everything that the project needs

.PHONY: run
run: install ## Serve the bundled model: a controller and two workers on loopback; proves itself at start-up
	@exec $(BIN)/llava-grpc up $(ARGS)

.PHONY: test
test: install ## Pass the tests (under 10 minutes on 2 cores)
	$(BIN)/python -m pytest -m "not prove" $(ARGS)

.PHONY: prove
prove: install ## Run the longer proofs
	$(BIN)/python -m pytest -m prove $(ARGS)

.PHONY: sim-soak
sim-soak: install ## Many clusters in virtual time: ARGS="--histories 100000 --seed 1"; one, told: ARGS="--seed 7 --verbose"
	$(BIN)/python -m llava_grpc.testing.histories.soak $(ARGS)

.PHONY: lint
lint: install ## Lint and check types, contract and generated code
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	cd protos && ../$(BIN)/buf lint
	scripts/check_proto.sh $(BIN)

.PHONY: format
format: install ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: proto
proto: install ## Generate src/llava_grpc/v1 from protos/
	scripts/generate_proto.sh $(BIN) src

.PHONY: train-demo
train-demo: install ## Train the bundled model again (seeded; about an hour on 2 idle cores)
	$(BIN)/python scripts/train_demo.py $(ARGS)

.PHONY: evaluate-demo
evaluate-demo: install ## Exact match of the bundled model on 500 fresh pictures
	$(BIN)/python scripts/evaluate_demo.py $(ARGS)

.PHONY: bench-engine
bench-engine: install ## Tokens/s of the engine against model.generate
	$(BIN)/python benchmarks/bench_engine.py $(ARGS)

.PHONY: bench-proxy
bench-proxy: install ## What the controller costs a token, against the worker directly
	$(BIN)/python benchmarks/bench_proxy.py $(ARGS)

.PHONY: bench-control
bench-control: install ## What choosing a worker, heartbeats and ten thousand requests at once cost (about 6 minutes)
	$(BIN)/python benchmarks/bench_control.py $(ARGS)

.PHONY: fit-service
fit-service: install ## Fit the simulator's model of a worker to the real engine (a quiet machine, please)
	$(BIN)/python benchmarks/fit_service.py $(ARGS)

.PHONY: chaos
chaos: install ## Kill, freeze, cut off and restart real processes under load (about 10 minutes; all drills as root)
	$(BIN)/python -m drills $(ARGS)

.PHONY: wheel
wheel: install ## Build dist/*.whl
	$(BIN)/python -m build --wheel

.PHONY: clean
clean: ## Remove what was built, and .venv
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
