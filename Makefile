# Everything a user or CI does here; `make help` lists it.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO ?= work/demo
export REAL_DATA_DIR ?= $(abspath ../shared/data)

.PHONY: help setup demo test test-e2e test-matrix lint serve serve-dicom bench clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

setup: $(STAMP)  ## make the environment in .venv

# torch first, then the rest without build isolation: see requirements.txt
$(STAMP): requirements.txt
	$$(command -v $(PYTHON) || command -v python3) -c 'import sys; sys.exit("Python 3.11 is needed, this is " + sys.version) if sys.version_info[:2] != (3, 11) else 0'
	test -x $(BIN)/python || $$(command -v $(PYTHON) || command -v python3) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip "setuptools<81" wheel
	$(BIN)/python -m pip install --quiet "$$(grep '^torch==' requirements.txt)"
	$(BIN)/python -m pip install --quiet --no-build-isolation -r requirements.txt
	touch $@

demo: setup  ## synthetic cohort -> prepare -> train -> evaluate -> report (15 minutes on 2 cores)
	./nny demo --output $(DEMO)

test: setup  ## the fast test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not e2e" -n 2 --dist loadfile

test-e2e: setup  ## tests that start servers, browsers and whole workflows
	.ci/e2e-packages
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "e2e and not matrix" -n 2 --dist loadfile

test-matrix: setup  ## every network released and exported, a fresh environment: an hour
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m matrix -n 2 --dist loadfile

lint: setup  ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

serve: setup  ## annotation server on the phantom cohort
	./nny serve

serve-dicom: setup  ## annotation server with a DICOM archive (Orthanc) and OHIF, on DICOM phantoms
	./nny serve-dicom

bench: setup  ## every benchmark, with its table
	for file in benchmarks/*.py; do OMP_NUM_THREADS=2 PYTHONPATH=bundle:. $(BIN)/python $$file || exit 1; done

clean:  ## remove what the targets made
	rm -rf work $(VENV)
