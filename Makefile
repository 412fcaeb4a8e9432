# Every target sets up what it needs, in .venv. Outside of it only the programs below are installed,
# and only by root on Debian and its like; elsewhere they are asked for.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Programs that the tests run, each from the Debian package of the same name.
PROGRAMS := redis-server prometheus chromium-headless-shell nginx
# Programs that build and run images.
IMAGE_PROGRAMS := buildah podman runc mmdebstrap
# Debian packages of OpenGL without a display, which draws the frames of Cube.
LIBRARIES := libegl1 libgl1-mesa-dri

# How long `make soak` runs.
SECONDS ?= 3600

NATIVE := service/lewm_serve/backends/native
OPEN_INFERENCE := service/lewm_serve/transports/grpc
BUILD_NATIVE := $(BIN)/python -m lewm_serve.backends.native.build

.DEFAULT_GOAL := help
.PHONY: help setup programs native serve demo test test-long test-container load soak fuzz benchmark check check-native format proto clean

help: ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "%-14s %s\n", $$1, $$2}'

setup: native ## Make the virtual environment and install everything, pinned

$(READY): pyproject.toml hatch_build.py client/pyproject.toml constraints.txt | programs
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed, set PYTHON=…" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt --editable ./client --editable '.[data,environments,load,tracing,dev]'
	@touch $@

programs:
	@missing=; failed=; for name in $(PROGRAMS); do command -v $$name >/dev/null || missing="$$missing $$name"; done; \
	for name in $(LIBRARIES); do dpkg -s $$name >/dev/null 2>&1 || missing="$$missing $$name"; done; \
	test -z "$$missing" || { test "$$(id -u)" = 0 && command -v apt-get >/dev/null \
		&& echo "installing$$missing" && apt-get update -qq && for name in $$missing; do \
			DEBIAN_FRONTEND=noninteractive apt-get install -qq --yes --no-install-recommends \
				$$name >/dev/null || failed="$$failed $$name"; \
		done && test -z "$$failed"; } \
		|| echo "not installed, and some tests need it:$${failed:-$$missing}" >&2

native: $(READY) ## Compile the native code, unless its library is there
	@$(BUILD_NATIVE)

serve: native ## Serve the embedded Two-Room model, with the console at /console
	LEWM_CONSOLE=1 $(BIN)/lewm serve

demo: native ## Drive simulated robots to their goals from camera frames, write demo/
	$(BIN)/lewm demo

# Most tests wait for servers that they start, so three of them run at a time, on two cores too. They stay in their order:
# otherwise the longest file, which has one test, would run last and alone.
test: native ## Run all tests and show their coverage
	$(BIN)/pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder --cov --cov-report=term

# These also need the programs that build and run images.
test-long test-container: PROGRAMS += $(IMAGE_PROGRAMS)

test-long: native ## Run the tests that take minutes each
	$(BIN)/pytest -m long

test-container: $(READY) ## Build the CPU image, run it as a container, and look into it
	$(BIN)/pytest -m long tests/container

load: native ## Put half a minute of load on a server, write load/
	$(BIN)/python -m loadtests

fuzz: native ## Send random requests and damaged bytes for about SECONDS (an hour)
	LEWM_FUZZ_S=$$(( $(SECONDS) / 16 )) $(BIN)/pytest -m long -s tests/fuzzing

soak: native ## Put a steady load on a server for SECONDS (an hour): does anything drift?
	$(BIN)/python -m loadtests.soak --seconds $(SECONDS)

benchmark: native ## Benchmark this machine: a table and benchmarks/*.json. NAMES="plan_speed cache": only these
	$(BIN)/python -m benchmarks $(NAMES)

check: check-native $(READY) ## Formatting, lint, types, layers, C++ warnings, Dockerfile, compose file, Helm chart, proto files
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint Dockerfile
	$(BIN)/python -m deploy.helm.check
	$(BIN)/docker-compose --profile robots --file docker-compose.yml --file deploy/compose/cuda.yml config --quiet
	cd proto && ../$(BIN)/buf lint && ../$(BIN)/buf breaking --against last_release.txtpb

check-native: $(READY) ## Formatting of the C++ code, and all warnings of its compiler
	$(BIN)/clang-format --dry-run --Werror $(NATIVE)/*.h $(NATIVE)/*.cpp
	@if echo | $(CXX) $$($(BUILD_NATIVE) --flags) -fsyntax-only -x c++ - 2>/dev/null; then \
		echo "$(CXX) -Wall -Wextra -Werror $(NATIVE)/predictor.cpp" \
		&& $(CXX) $$($(BUILD_NATIVE) --flags) -Wall -Wextra -Werror \
			-c $(NATIVE)/predictor.cpp -o /dev/null; \
	else \
		echo "the native code is not compiled: $(CXX) does not know its flags" >&2; \
	fi

format: $(READY) ## Format and sort imports
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(NATIVE)/*.h $(NATIVE)/*.cpp

proto: $(READY) ## Generate the gRPC code from proto/
	$(BIN)/python -m grpc_tools.protoc --proto_path=proto --python_out=client --pyi_out=client \
		--grpc_python_out=client proto/lewm/v1/planner.proto
	$(BIN)/python -m grpc_tools.protoc --proto_path=proto --python_out=$(OPEN_INFERENCE) \
		--pyi_out=$(OPEN_INFERENCE) proto/inference/open_inference.proto

clean: ## Remove the virtual environment, the compiled native code and caches
	rm -rf $(VENV) .clients $(NATIVE)/predictor-* .mypy_cache .ruff_cache .pytest_cache .hypothesis
