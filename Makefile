# make serve | make test are all a newcomer needs; the rest is for those who change the code.
PYTHON ?= python3
PORT ?= 8000
MODEL ?= bundled
CIFAR ?= cifar10
IMAGE ?= dog.jpg
USE_GPU ?= 1
NUM_IMAGES ?= 1000
BATCH_SIZE ?= 64
IMAGE_MODEL ?= resnet50
VENV := .venv
BIN := $(VENV)/bin
LOCK := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
        --custom-compile-command "make lock"

.PHONY: help install serve test check format lint types lock load-test reliability audit image compare-peers image-test dashboards bundled-model clean

help:  ## List the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

install: $(VENV)/.installed  ## Make .venv with what serving needs, from the lock

serve: install  ## Serve MODEL (default: the bundled one) on PORT (default: 8000)
	$(BIN)/resnet-service serve --model "$(MODEL)" --port "$(PORT)"

test: $(VENV)/.installed-dev  ## Run the whole test suite
	$(BIN)/pytest

check: format lint types test  ## All that CI checks: format, lint, types, tests

format: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

lock: $(VENV)/.installed-dev  ## Bring the locks in step with pyproject.toml; versions locked already stay
	$(LOCK) --extra openvino --extra train --extra traces pyproject.toml --output-file requirements.lock
	$(LOCK) --extra ray --extra openvino --extra quantize --extra train --extra traces --extra ui --extra dev --constraints requirements.lock pyproject.toml --output-file requirements-dev.lock

load-test: $(VENV)/.installed-dev  ## Load a service that serves MODEL, in every scenario; reports in load-test/
	$(BIN)/python -m load_tests run --model "$(MODEL)"

reliability: $(VENV)/.installed-dev  ## The long tests: crowds, the largest requests, fuzzing, overload, a soak; an hour; reports in reliability-results/
	$(BIN)/python -m load_tests.reliability crowds
	$(BIN)/python -m load_tests.reliability largest
	$(BIN)/python -m load_tests.reliability fuzz
	$(BIN)/python -m load_tests.reliability overload --model "$(or $(OVERLOAD_MODEL),bundled)" $(if $(OVERLOAD_WEIGHTS),--weights "$(OVERLOAD_WEIGHTS)")
	$(BIN)/python -m load_tests.reliability soak

audit: $(VENV)/.installed-dev  ## Look up known vulnerabilities of what the locks name
	$(BIN)/pip-audit --disable-pip --no-deps --requirement requirements.lock

image: install  ## Classify NUM_IMAGES generated images: USE_GPU=1 BATCH_SIZE=64 IMAGE_MODEL=resnet50
	$(BIN)/resnet-service bench --end-to-end "$(NUM_IMAGES)" --batch-size "$(BATCH_SIZE)" --model "$(IMAGE_MODEL)" \
	  --devices $(if $(filter 0,$(USE_GPU)),cpu,auto)

compare-peers: $(VENV)/.installed-dev  ## Compare with other servers on IMAGE, over HTTP, with wrk; results in peers/
	$(BIN)/python -m load_tests.peers --image "$(IMAGE)"

image-test: $(VENV)/.installed-dev  ## Build both images without an engine (buildah, root) and try their containers
	$(BIN)/pytest tests/system/test_container_build.py

dashboards: $(VENV)/.installed-dev  ## Write Grafana's dashboards anew from monitoring/dashboards.py
	$(BIN)/python -m monitoring.dashboards

bundled-model: install  ## Train the bundled model anew on CIFAR (default: downloaded); goes on if interrupted
	$(BIN)/resnet-service train --data "$(CIFAR)" --network resnet18 --store fp16 --out runs/bundled --resume
	cp runs/bundled/model.safetensors service/resnet_service/models/bundled/cifar10.safetensors
	cp runs/bundled/model.md service/resnet_service/models/bundled/cifar10.md
	cp runs/bundled/run_log.json service/resnet_service/models/bundled/cifar10.json

clean:  ## Remove .venv and every cache
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed; give one with make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }  # half a one would pass for a whole one

$(VENV)/.installed: requirements.lock pyproject.toml | $(VENV)/bin/python
	@echo "Installing what requirements.lock names; PyTorch is large, so the first time takes a while."
	$(BIN)/python -m pip install --quiet --require-hashes --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	@touch $@

$(VENV)/.installed-dev: requirements-dev.lock $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --require-hashes --requirement requirements-dev.lock
	@touch $@
