# Everything happens in .venv at the root, made with nothing but python3.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

# What is installed, as stamps: to run (no torch), to convert backbones (torch), to develop (both), to pack
# the runtime for workstations (no torch).
RUN := $(VENV)/.run
CONVERT := $(VENV)/.convert
DEV := $(VENV)/.dev
PACK := $(VENV)/.pack

# make export: where the her2st data set lies, and which model packs it.
HER2ST ?= $(firstword $(wildcard reference_bank/data/her2st $(STINFER_DATA)/her2st ../shared/her2st))
MODEL ?=

# make bundle, make wheelhouse: banks to put in. Of a wheelhouse also the computer it is for; its PYTHON is
# that computer's version.
BANK ?=
PLATFORM ?=
ifneq ($(filter 3.%,$(PYTHON)),)
VERSION := $(PYTHON)
override PYTHON := python3
endif

.PHONY: help setup demo export test test-slow test-wheel bench check fmt build bundle bundle-proof wheelhouse clean
.DELETE_ON_ERROR:

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## */\t/' | expand -t 14

setup: $(DEV)  ## install everything for development into .venv (torch included)

demo: $(RUN)  ## run the main job on synthetic tissue: no torch, no download, under two minutes
	rm -rf demo && mkdir demo
	$(BIN)/stinfer-export demo-data demo/data
	$(BIN)/stinfer-export backbone stain_texture --out-dir demo
	$(BIN)/stinfer-export bank her2st demo/data --model demo/stain_texture.onnx --out demo/demo.h5
	$(BIN)/stinfer-run demo/data/demo_slide.tif --bank demo/demo.h5 \
		--spots demo/data/demo_slide_spots.csv --genes all --out demo/spots.h5ad
	$(BIN)/stinfer-run demo/data/demo_slide.tif --bank demo/demo.h5 --pitch-um 50 \
		--out demo/demo_slide.h5ad --png ERBB2,COL1A1,CD3E
	$(BIN)/stinfer-export score demo/spots.h5ad --counts demo/data/demo_slide_truth.tsv.gz --bank demo/demo.h5
	@echo
	@echo "Prediction at 50 um:           demo/demo_slide.h5ad"
	@echo "Its picture:                   demo/demo_slide.ERBB2.png (also COL1A1, CD3E)"
	@echo "Prediction at measured spots:  demo/spots.h5ad; its correlation with the simulated truth is above"

export: $(RUN)  ## convert the backbones in models/checkpoints and build reference_bank/her2st.h5
	@if ls -d models/checkpoints/* 2>/dev/null | grep -qv README.md; then $(MAKE) --no-print-directory $(CONVERT); fi
	$(BIN)/stinfer-export all $(if $(HER2ST),--her2st '$(HER2ST)') $(if $(MODEL),--model '$(MODEL)')

# Two processes, each a whole file at a time, since fixtures of a file are dear; in the order of the files,
# which begins with the longest.
test: $(DEV)  ## run the tests, two files at a time
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile --no-loadscope-reorder

test-slow: $(DEV)  ## run the slow proofs too, one after the other
	$(BIN)/python -m pytest

test-wheel: build  ## run the runtime's tests from the built wheel, with base dependencies and `cpu` alone
	rm -rf build/wheel-venv && $(PYTHON) -m venv build/wheel-venv
	build/wheel-venv/bin/python -m pip install --quiet --disable-pip-version-check "$$(ls dist/*.whl)[cpu]" pytest
	build/wheel-venv/bin/python -m pip list --disable-pip-version-check
	build/wheel-venv/bin/python -m pytest tests/runtime

bench: $(CONVERT)  ## measure speed against PyTorch, by area, and of the search, into README; minutes, on an idle machine
	$(BIN)/stinfer-export bench backbones --readme README.md
	$(BIN)/stinfer-export bench area --readme README.md
	$(BIN)/stinfer-export bench search --rounds 1 --readme README.md

check: $(DEV)  ## lint, format, types and import rules; changes nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fmt: $(DEV)  ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

build: $(DEV)  ## build the wheel and the source archive into dist/
	rm -f dist/*.whl
	$(BIN)/python -m build --outdir dist .

bundle: $(PACK)  ## freeze the runtime with BANK into dist/stinfer-*.tar.gz, which needs no Python
	$(BIN)/python -m stinfer_export.packaging bundle $(foreach bank,$(BANK),--bank '$(bank)')

bundle-proof: $(DEV)  ## run a bundle with BANK in a minimal Debian without Python and network; needs root, debootstrap
	STINFER_PROOF_BANK='$(abspath $(firstword $(BANK)))' $(BIN)/python -m pytest tests/contract/test_bundle_proof.py -s

wheelhouse: $(PACK)  ## collect wheels and BANK for a site that has Python: PLATFORM=win_amd64 PYTHON=3.11
	$(BIN)/python -m stinfer_export.packaging wheelhouse $(foreach bank,$(BANK),--bank '$(bank)') \
		$(if $(PLATFORM),--platform '$(PLATFORM)') $(if $(VERSION),--python '$(VERSION)')

clean:  ## remove what make has made, but not models and banks
	rm -rf $(VENV) build dist demo .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(RUN): pyproject.toml | $(BIN)/python
	$(PIP) -e '.[cpu,bank]'
	@touch $@

$(CONVERT): pyproject.toml | $(BIN)/python
	$(PIP) -e '.[cpu,export]'
	@touch $@ $(RUN)

$(PACK): pyproject.toml | $(BIN)/python
	$(PIP) -e '.[cpu,package]'
	@touch $@

$(DEV): pyproject.toml | $(BIN)/python
	$(PIP) -e '.[cpu,export,dev]'
	@touch $@ $(CONVERT) $(RUN)
