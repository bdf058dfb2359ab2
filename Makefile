# Two commands to know: `make demo` and `make test`. Each sets everything up first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
CONSTRAINTS := constraints.txt

.PHONY: demo test check lint types format quality guide bench bench-quick lock clean

demo: $(READY)  ## train, compare and use a classifier on the data that ptuning ships
	$(BIN)/ptuning demo

test: $(READY)  ## the tests
	$(BIN)/python -m pytest

check: lint types test  ## what CI runs: lint, types, tests

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

format: $(READY)  ## write what lint asks for
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

quality: $(READY)  ## the default recipe on MRPC, three seeds (needs PTUNING_DATA; about 20 minutes on two cores)
	$(BIN)/python benchmarks/mrpc.py

guide: $(READY)  ## the guide's recipe with PEFT and with ptuning, two seeds: four runs (needs PTUNING_DATA)
	$(BIN)/python benchmarks/guide.py

bench: $(READY)  ## speed and memory beside PEFT and full fine-tuning (needs PTUNING_DATA; one to one and a half hours on two cores)
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/inference.py
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/step.py

bench-quick: $(READY)  ## the same for MiniLM on MRPC in bf16 alone
	$(BIN)/python benchmarks/training.py --models minilm
	$(BIN)/python benchmarks/inference.py --models minilm

# The environment is made anew whenever what it is made of changes.
$(READY): pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "ptuning needs Python 3.11 or newer, got " + sys.version.split()[0])'
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/pip install --quiet --constraint $(CONSTRAINTS) 'pip>=25.1'
	$(BIN)/pip install --quiet --constraint $(CONSTRAINTS) torch
	$(BIN)/pip install --quiet --constraint $(CONSTRAINTS) --editable '.[demo]' --group dev
	touch $(READY)

lock: $(READY)  ## write the versions of the environment into constraints.txt
	$(BIN)/pip freeze --all --exclude-editable | sed 's/+cpu$$//' > $(CONSTRAINTS)

clean:
	rm -rf $(VENV) build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
