# Every target sets up what it needs in .venv (direct requirements pinned, both packages
# installed editable, the native code built from source); nothing has to be done before.
PYTHON ?= python3
PYTEST_ARGS ?=
BENCH_ARGS ?=

BIN := .venv/bin
# Not to be chosen: it is removed as a whole.
override BUILD_DIR := build
CXX_SOURCES := $(shell find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

.PHONY: help demo test sanitize lint format bench clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

demo: .venv/package.stamp  ## time the kernels against peers, then train a small model with them
	rm -rf $(BUILD_DIR)/demo
	$(BIN)/python -m benchmarks broyden --quick --json $(BUILD_DIR)/demo/bench.json --plot $(BUILD_DIR)/demo/bench.png
	$(BIN)/deq-zoo demo --out $(BUILD_DIR)/demo/digits

test: .venv/package.stamp  ## run the C++ and the Python tests; PYTEST_ARGS are passed on
	$(BIN)/cmake -S . -B $(BUILD_DIR)/tests -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN)/ninja) -DDEQ_TESTS=ON -DDEQ_WARNINGS_AS_ERRORS=ON
	$(BIN)/cmake --build $(BUILD_DIR)/tests
	$(BIN)/ctest --test-dir $(BUILD_DIR)/tests --output-on-failure
	DEQ_KERNELS_BACKEND=native $(BIN)/python -m pytest -n 2 $(PYTEST_ARGS)

sanitize: .venv/requirements.stamp  ## run C++ tests and hostile calls under AddressSanitizer and UBSan
	$(BIN)/cmake -S . -B $(BUILD_DIR)/sanitized -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN)/ninja) -DDEQ_TESTS=ON -DDEQ_SANITIZE=address,undefined -DDEQ_WARNINGS_AS_ERRORS=ON -DDEQ_PYTHON_MODULE=OFF -DDEQ_TORCH_DIR=$$($(BIN)/python -c 'import torch; print(torch.__path__[0])')
	$(BIN)/cmake --build $(BUILD_DIR)/sanitized
	$(BIN)/ctest --test-dir $(BUILD_DIR)/sanitized --output-on-failure
	$(BIN)/python -m python_tests.hostile.sanitized $(BUILD_DIR)/sanitized/out/lib/libdeq_kernels_cpu.so

lint: .venv/package.stamp  ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy deq_kernels benchmarks zoo/deq_zoo
	$(BIN)/clang-format --dry-run -Werror $(CXX_SOURCES)

format: .venv/requirements.stamp  ## rewrite the sources in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_SOURCES)

bench: .venv/package.stamp  ## run the benchmarks; BENCH_ARGS are passed on
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

clean:  ## remove what was built, and caches; .venv stays, its package is built again
	rm -rf $(BUILD_DIR) dist *.egg-info zoo/*.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	rm -f .venv/package.stamp deq_kernels/_build_record.json deq_kernels/lib/*.so deq_kernels/_build.*.so
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

.venv/requirements.stamp: $(wildcard requirements/*.txt)
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "error: development needs Python 3.11 or newer, but $(PYTHON) is " + sys.version.split()[0] + "; set PYTHON=python3.11, for example")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -r requirements/dev.txt
	touch $@

.venv/package.stamp: .venv/requirements.stamp setup.py pyproject.toml zoo/pyproject.toml CMakeLists.txt $(CXX_SOURCES)
	DEQ_KERNELS_BUILD_DIR=$(BUILD_DIR) $(BIN)/python -m pip install --no-build-isolation -e .
	$(BIN)/python -m pip install --no-build-isolation --no-deps -e zoo
	touch $@
