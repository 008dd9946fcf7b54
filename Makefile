# The same commands for people and for CI. `make help` lists them.

PYTHON ?= python3
VENV   ?= .venv
BENCH  ?= .venv-bench
FUZZ   ?= .venv-fuzz
OUT    ?= runs/demo
TESTS  ?=
BIN     = $(VENV)/bin

STRICT = src/winnow/errors.py src/winnow/config.py src/winnow/resolved.py src/winnow/files.py \
         src/winnow/trl.py src/winnow/data src/winnow/objectives
LOOSE  = --config-file= --ignore-missing-imports --check-untyped-defs
CODE   = src tests bench examples docs
WANTED = pyproject.toml constraints.txt

export PIP_DISABLE_PIP_VERSION_CHECK = 1

.DEFAULT_GOAL = help
.PHONY: help demo test check format bench bench-gpu noise fuzz clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

demo: $(VENV)/ready ## a whole run on a small made-up world, with a report
	HF_HUB_OFFLINE=1 $(BIN)/winnow demo --out $(OUT)

test: $(VENV)/ready ## the tests; TESTS=tests/test_x.py for some
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 $(TESTS)

check: $(VENV)/ready ## lint, format, types (strict for floors 0, 1 and 3)
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy --follow-imports=silent $(STRICT)
	$(BIN)/mypy $(LOOSE) src

format: $(VENV)/ready ## put the code into form
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

bench: $(BENCH)/ready ## loss curve, speed and memory beside TRL's
	$(BENCH)/bin/python bench/trl_curve.py
	$(BENCH)/bin/python bench/trl_losses.py
	$(BENCH)/bin/python bench/speed.py --out docs/benchmarks.json
	$(BENCH)/bin/python bench/picture.py docs/benchmarks.json docs/benchmarks.svg
	$(BENCH)/bin/python bench/rows.py
	$(BENCH)/bin/python docs/generate.py

bench-gpu: $(BENCH)/ready ## speed and utilisation on a GPU, models of true shape, and TRL's beside it
	$(BENCH)/bin/python bench/gpu.py
	$(BENCH)/bin/python bench/gpu_trl.py

noise: $(VENV)/ready ## planted label flips on the demo's world (run `make demo` first): how many are found
	HF_HUB_OFFLINE=1 $(BIN)/python bench/noise.py $(OUT)

fuzz: $(FUZZ)/ready ## ten minutes of bytes that atheris makes up through the reader of JSON files (Linux)
	mkdir -p runs/fuzz
	PATH="$(abspath $(FUZZ))/bin:$$PATH" PYTHONPATH=src tests/fuzz_jsonl.py -max_total_time=600 -max_len=400 -artifact_prefix=runs/fuzz- runs/fuzz tests/corpus

clean: ## remove environments, caches and demo runs
	rm -rf $(VENV) $(BENCH) $(FUZZ) runs build dist
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
	find . -name '*.egg-info' -prune -exec rm -rf {} +

# An environment is ready when its stamp is newer than what it was made from.
# torch goes first and alone, so that a CPU build already there is kept.

define install
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed; $(PYTHON) is" \
	       "`$(PYTHON) -V 2>&1`. Try: make PYTHON=python3.11"; exit 1; }
	test -x $(1)/bin/python || $(PYTHON) -m venv $(1)
	$(1)/bin/pip install -q -c constraints.txt torch
	$(1)/bin/pip install -q -c constraints.txt -e '.[$(2)]'
	touch $@
endef

$(VENV)/ready: $(WANTED)
	$(call install,$(VENV),dev)

$(BENCH)/ready: $(WANTED)
	$(call install,$(BENCH),bench)

$(FUZZ)/ready:
	test -x $(FUZZ)/bin/python || $(PYTHON) -m venv $(FUZZ)
	$(FUZZ)/bin/pip install -q --only-binary :all: atheris==3.0.0
	touch $@
