# Two commands: `make study` and `make test`. Each sets up a virtual environment of its own first.
# PYTHON: the interpreter to start from. PIP_ARGS: extra arguments for pip (an index of your own, another torch build).
PYTHON ?= python3
PIP_ARGS ?=
TASK ?= dialogue
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready

.PHONY: study test unit nightly reliability lint clean

study: $(STAMP)
	$(BIN)/trueline study $(TASK) $(ARGS)

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile -m "not nightly"

unit: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile -m "not nightly and not integration"

nightly: $(STAMP)
	$(BIN)/python -m pip install -q --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e '.[ray]'
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile
	$(BIN)/python -m tests.reliability.collect --nightly

# The headline figures of docs/reliability.md: RELIABILITY.json. ARGS="--nightly" for the long versions.
reliability: $(STAMP)
	$(BIN)/python -m tests.reliability.collect $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check src tests && $(BIN)/ruff format --check src tests

# torch's CPU build comes from torch's own index where one is needed: PIP_ARGS="--extra-index-url ..." ; see README.
$(STAMP): pyproject.toml constraints.txt
	@echo "Setting up $(VENV): about 110 packages, 320 MB to download (torch is 190 MB of it), 1.9 GB on disk; a minute or two."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check $(PIP_ARGS) -c constraints.txt torch -e '.[test]' ruff
	@touch $(STAMP)

clean:
	rm -rf $(VENV) runs
