# The same commands for people and for CI. `make help` lists them.

PYTHON ?= python3
VENV   ?= .venv
BENCH  ?= .venv-bench
TOOLS  ?= .venv-tools
FUZZ   ?= .venv-fuzz
OUT    ?= runs/demo
TESTS  ?=
BIN     = $(VENV)/bin

# Neighbours in a file share what they are made from, so a process is given a stretch of tests and steals from others at its end.
PYTEST = HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest --durations=10
SPREAD = -n auto --maxprocesses 8 --dist worksteal
CHANGE = not (soak or gpu or browser)

CODE   = src tests bench examples docs .ci

# One lock for all systems and for Python 3.11 and newer. It keeps the versions it has, where it can; LOCK=--upgrade takes the newest.
LOCK    =
COMPILE = UV_CUSTOM_COMPILE_COMMAND='make lock' $(TOOLS)/bin/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-annotate \
          --excludes locks/torch.txt $(LOCK)

export PIP_DISABLE_PIP_VERSION_CHECK = 1

.DEFAULT_GOAL = help
.PHONY: help demo test test-all test-rest test-browser check format lock bench bench-gpu noise rounds soak fuzz clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

demo: $(VENV)/ready ## a whole run on a small made-up world, with a report
	HF_HUB_OFFLINE=1 $(BIN)/winnow demo --out $(OUT)

test: $(VENV)/ready ## the quick tests; TESTS=tests/unit/data/test_x.py for all of a file but soak, gpu and browser
	$(PYTEST) $(SPREAD) $(if $(TESTS),-m "$(CHANGE)" $(TESTS))

test-all: $(VENV)/ready ## all that a change must hold: each recipe, each point at which a run can be killed
	$(PYTEST) $(SPREAD) -m "$(CHANGE)"

test-rest: $(VENV)/ready ## what test-all has beyond test
	$(PYTEST) $(SPREAD) -m "$(CHANGE) and (slow or process) and not smoke"

test-browser: $(VENV)/ready ## the page of winnow label in a real Chromium, which root is given where it is missing (Debian's); TESTS=tests/browser/test_x.py for some
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null \
	  || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get -qq update && apt-get -qq install -y --no-install-recommends chromium >/dev/null; } \
	  || { echo "a Chromium is needed, and cannot be installed from here: as root, apt-get install chromium"; exit 1; }
	$(PYTEST) -m browser $(or $(TESTS),tests/browser)

check: $(VENV)/ready $(TOOLS)/ready ## lint, format, types (strict), known vulnerabilities
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy src
	$(BIN)/python .ci/audit.py $(TOOLS)/bin/pip-audit locks/*.txt

format: $(VENV)/ready ## put the code into form
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

lock: $(TOOLS)/ready ## write locks/ anew from pyproject.toml; LOCK=--upgrade takes the newest versions
	$(COMPILE) pyproject.toml --extra dev --group torch-needs -o locks/dev.txt
	$(COMPILE) pyproject.toml --extra bench --group torch-needs -c locks/dev.txt -o locks/bench.txt
	$(COMPILE) --group tools -o locks/tools.txt

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

rounds: $(VENV)/ready ## online rounds on the demo's world beside one offline round, a quick form (run `make demo` first)
	HF_HUB_OFFLINE=1 $(BIN)/python bench/online.py $(OUT)

proof: $(VENV)/ready ## PPO to its known optimum, and the reward model to the true order of the demo's world (run `make demo` first)
	HF_HUB_OFFLINE=1 $(BIN)/python bench/ppo.py
	HF_HUB_OFFLINE=1 $(BIN)/python bench/reward.py $(OUT) runs/proof 3

soak: $(VENV)/ready ## every case of every matrix of faults, and 200 kills at random moments; WINNOW_SEED=N for the runs of another day
	$(PYTEST) $(SPREAD) -v -m soak
	HF_HUB_OFFLINE=1 PYTHONPATH=tests/helpers:tests/processes $(BIN)/python tests/helpers/soak.py --kills 200

fuzz: $(FUZZ)/ready ## ten minutes of bytes that atheris makes up through the reader of JSON files (Linux)
	mkdir -p runs/fuzz
	PATH="$(abspath $(FUZZ))/bin:$$PATH" PYTHONPATH=src tests/helpers/fuzz_jsonl.py -max_total_time=600 -max_len=400 -artifact_prefix=runs/fuzz- runs/fuzz tests/corpus

clean: ## remove environments, caches and demo runs
	rm -rf $(VENV) $(BENCH) $(TOOLS) $(FUZZ) runs build dist
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
	find . -name '*.egg-info' -prune -exec rm -rf {} +

# An environment is ready when its stamp is newer than what it was made from.
# All but torch must have a hash that stands in the lock, and is a wheel: nothing is built, so nothing is fetched for a build either.
# pip resolves nothing (--no-deps); `pip check` says at the end whether all fits together.

define locked
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed; $(PYTHON) is" \
	       "`$(PYTHON) -V 2>&1`. Try: make PYTHON=python3.11"; exit 1; }
	test -x $(1)/bin/python || $(PYTHON) -m venv $(1)
	$(1)/bin/pip install -q --require-hashes --no-deps --only-binary :all: -r locks/$(2).txt
endef

# torch comes last: what it needs is there by then, so without a hash comes only torch itself and, on a GPU machine, NVIDIA's libraries.
define install
	$(call locked,$(1),$(2))
	$(1)/bin/pip install -q --only-binary :all: -r locks/torch.txt
	$(1)/bin/pip install -q --no-deps --no-build-isolation -e .
	$(1)/bin/pip check -q
	touch $@
endef

$(VENV)/ready: pyproject.toml locks/torch.txt locks/dev.txt
	$(call install,$(VENV),dev)

$(BENCH)/ready: pyproject.toml locks/torch.txt locks/bench.txt
	$(call install,$(BENCH),bench)

$(TOOLS)/ready: locks/tools.txt
	$(call locked,$(TOOLS),tools)
	touch $@

$(FUZZ)/ready:
	test -x $(FUZZ)/bin/python || $(PYTHON) -m venv $(FUZZ)
	$(FUZZ)/bin/pip install -q --only-binary :all: atheris==3.0.0
	touch $@
