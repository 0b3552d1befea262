# Start with make serve and make test. The other targets are for development; make help lists them.
PYTHON ?= python3
PORT ?= 8000
CIFAR ?= cifar10
IMAGE ?= service/resnet_service/images/photographs/coffee.jpg
USE_GPU ?= 1
NUM_IMAGES ?= 1000
BATCH_SIZE ?= 64
IMAGE_MODEL ?= resnet50
IMAGES ?= service/resnet_service/images/photographs
TESTS ?= tests/unit tests/integration
VENV := .venv
BIN := $(VENV)/bin
# One worker for each core, each with whole files, so that tests of a file share their servers and models.
PYTEST := $(BIN)/pytest --numprocesses logical --maxprocesses 4 --dist loadfile
LOCK := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
        --custom-compile-command "make lock"

.PHONY: help install serve test test-all test-workers check format lint types lock load-test reliability gpu-check audit image compare-peers container-test dashboards protocol lock-cpu lowest dist sbom licenses site cifar10-model clean

help:  ## List the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

install: $(VENV)/.installed  ## Create .venv with the packages for serving, from the lock file; EXTRAS=ray,ui adds extras
	$(if $(EXTRAS),$(BIN)/python deploy/install_packages.py --extras "$(EXTRAS)" requirements-dev.lock)

serve: install  ## Serve MODEL (default: resnet50, or efficientnet_lite0 without internet access) on PORT (default: 8000)
	$(BIN)/resnet-service serve --port "$(PORT)" $(if $(MODEL),--model "$(MODEL)")

test: $(VENV)/.installed-dev  ## Run the unit and integration tests: minutes
	$(PYTEST) $(TESTS)

test-all: $(VENV)/.installed-dev  ## Run all tests but the container builds: a quarter of an hour
	$(BIN)/pytest -m exclusive
	$(PYTEST) -m "not exclusive and not container"

test-workers: $(VENV)/.installed-dev  ## Run the integration tests with two HTTP workers
	TEST_WORKERS=2 $(PYTEST) tests/integration

check: format lint types test-all  ## Check format, lint and types, and run all tests, as CI does

format: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

lock: $(VENV)/.installed-dev  ## Update the lock files from pyproject.toml; locked versions do not change
	$(LOCK) --extra openvino --extra explain --extra grpc --extra heif --extra train --extra traces pyproject.toml --output-file requirements.lock
	$(LOCK) --extra parquet --extra ray --extra openvino --extra explain --extra grpc --extra heif --extra client --extra onnx --extra quantize --extra timm --extra train --extra traces --extra ui --extra dev --constraints requirements.lock pyproject.toml --output-file requirements-dev.lock
	echo hatchling | $(LOCK) --constraints requirements-dev.lock - --output-file requirements-build.lock

lock-cpu: $(VENV)/.installed-dev  ## Update the hashes of PyTorch's CPU wheels; needs access to their index
	$(BIN)/python -m release.cpu_lock

load-test: $(VENV)/.installed-dev  ## Run every load scenario against a service with MODEL (default: cifar10); reports in load-test-results/
	$(BIN)/python -m load_tests run --model "$(or $(MODEL),cifar10)"

reliability: $(VENV)/.installed-dev  ## Run the long tests (retry storm, priorities, models, slow clients, worst case, fuzzing, overload, soak, interrupted starts): an hour and a half; reports in load-test-results/
	$(BIN)/python -m load_tests retry-storm
	$(BIN)/python -m load_tests priorities
	$(BIN)/python -m load_tests models
	$(BIN)/python -m load_tests slow-clients
	$(BIN)/python -m load_tests worst-case
	$(BIN)/python -m load_tests fuzz
	$(BIN)/python -m load_tests overload --model "$(or $(OVERLOAD_MODEL),cifar10)" $(if $(OVERLOAD_WEIGHTS),--weights "$(OVERLOAD_WEIGHTS)")
	$(BIN)/python -m load_tests soak
	$(BIN)/python -m load_tests interrupted-starts

gpu-check: $(VENV)/.installed-dev  ## Check and measure what only an NVIDIA GPU can show, with the JPEG files in IMAGES: ten minutes
	$(BIN)/python -m load_tests gpu-check --images "$(IMAGES)" $(if $(DATA),--data "$(DATA)")

audit: $(VENV)/.installed-dev  ## Check the locked packages for known vulnerabilities
	$(BIN)/pip-audit --disable-pip --no-deps --requirement requirements.lock

image: install  ## Classify NUM_IMAGES generated images: USE_GPU=1 BATCH_SIZE=64 IMAGE_MODEL=resnet50
	$(BIN)/resnet-service bench --end-to-end "$(NUM_IMAGES)" --batch-size "$(BATCH_SIZE)" --model "$(IMAGE_MODEL)" \
	  --device $(if $(filter 0,$(USE_GPU)),cpu,auto)

compare-peers: $(VENV)/.installed-dev  ## Compare with other servers on IMAGE, over HTTP, with wrk; results in load-test-results/peers/
	$(BIN)/python -m load_tests.peers --image "$(IMAGE)"

container-test: $(VENV)/.installed-dev  ## Build both container images (buildah, root) and run their containers
	$(BIN)/pytest -m container

dashboards: $(VENV)/.installed-dev  ## Generate Grafana's dashboards and the PrometheusRule from monitoring/
	$(BIN)/python -m monitoring.dashboards
	$(BIN)/python -m monitoring.prometheus_rule

protocol: $(VENV)/.installed-dev  ## Generate the Python modules of the gRPC protocol
	$(BIN)/python deploy/generate_protocol.py

dist: $(VENV)/.installed-dev  ## Build the source distribution and the wheel of the last commit in dist/, twice, and compare the bytes
	$(BIN)/python -m release.dist dist

sbom: $(VENV)/.installed-dev  ## Write the software bill of materials of the packages for serving to dist/
	$(BIN)/python -m release.sbom dist/resnet-service.cdx.json

licenses: $(VENV)/.installed-dev  ## Check the licenses of the packages for serving, and write docs/licenses.md
	$(BIN)/python -m release.licenses

site: $(VENV)/.installed-dev  ## Build the documentation as web pages in site/, and check their links
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

lowest: $(VENV)/.installed-dev  ## Run tests with the lowest versions that pyproject.toml allows: downloads gigabytes
	$(BIN)/python -m release.lowest build/lowest

cifar10-model: install  ## Train the model cifar10 on CIFAR (default: downloaded); resumes an interrupted run
	$(BIN)/resnet-service train --data "$(CIFAR)" --network resnet18 --store fp16 --output runs/cifar10 --resume
	cp runs/cifar10/model.safetensors service/resnet_service/models/bundled/cifar10.safetensors
	cp runs/cifar10/model.md service/resnet_service/models/bundled/cifar10.md
	cp runs/cifar10/run_log.json service/resnet_service/models/bundled/cifar10.json

clean:  ## Remove .venv and all caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed; give one with make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }  # a partial .venv would pass for a complete one

$(VENV)/.installed: requirements.lock pyproject.toml | $(VENV)/bin/python
	@echo "Installing what requirements.lock names; PyTorch is large, so the first time takes a while."
	$(BIN)/python deploy/install_packages.py requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	@touch $@

$(VENV)/.installed-dev: requirements-dev.lock $(VENV)/.installed
	$(BIN)/python deploy/install_packages.py requirements-dev.lock
	@touch $@
