# Sets up its own virtual environment: python3 and make are all that a fresh machine needs.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# two test processes with one thread each: on two cores, threads of two processes fight over both
export OMP_NUM_THREADS ?= 1

.PHONY: help setup browser demo lint format test test-gpu fuzz corpus bench bench-hunt bench-report bench-diff bench-headroom bench-snapshots bench-recorder bench-ranks docs gallery examples screenshots clean
.DEFAULT_GOAL := help

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP)  ## make .venv and install nanhunt into it, at the tested versions

# torch is pinned on the command line: a plain `pip install` of anything that needs torch takes gigabytes of CUDA
TORCH = "$$(grep '^torch==' constraints.txt)"

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt $(TORCH) -e '.[dev,frameworks]'
	touch $@

CHROMIUM_IS_THERE = command -v chromium || command -v chromium-browser || command -v google-chrome
browser:  ## install Debian's Chromium where there is none: the tests of the HTML report look at it in a browser (needs root)
	@$(CHROMIUM_IS_THERE) || (apt-get update -q && apt-get install -q -y --no-install-recommends chromium fonts-dejavu-core)

demo: $(STAMP)  ## train a small GPT with a planted fault, then find it (FAULT=bad-sample; see `nanhunt demo --list`)
	$(BIN)/nanhunt demo $(FAULT)

lint: $(STAMP)  ## formatting, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(STAMP)  ## put the code into the house format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

test: $(STAMP)  ## run the tests on two cores
	$(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

test-gpu: $(STAMP)  ## run the tests that are about a GPU, where there is one
	NANHUNT_TEST_GPU=1 $(BIN)/python -m pytest -m cuda $(ARGS)

fuzz: $(STAMP)  ## read damaged and odd checkpoints, configs and traces, half an hour at most (ARGS="--inputs 100000 --seconds 7200 --seed 7")
	$(BIN)/python -m tests.fuzz $(ARGS)

corpus: $(STAMP)  ## run the corpus of failures through the command line, write docs/scoreboard.md (ARGS="bad-sample" for a part)
	$(BIN)/python -m tests.corpus $(if $(ARGS),$(ARGS),--thresholds -o docs/scoreboard.md)

bench: bench-hunt bench-headroom bench-report bench-snapshots bench-recorder bench-ranks  ## every benchmark; docs/performance.md has what came out

bench-hunt: $(STAMP)  ## what the hunt's looks cost, beside a plain step and other tools (ARGS="--rounds 30")
	$(BIN)/python -m pip install -q -c constraints.txt $(TORCH) -e '.[dev,bench]'
	$(BIN)/python -m benchmarks.hunt $(ARGS)

bench-report: $(STAMP)  ## bytes a row, compaction, `report` over traces of up to 5 million rows, and start-up (ARGS="--steps 313")
	$(BIN)/python -m benchmarks.report $(ARGS)

bench-diff: $(STAMP)  ## how often `diff` calls healthy pairs parted and names planted changes, a quarter of an hour (ARGS="--only long")
	$(BIN)/python -m benchmarks.diff $(ARGS)

bench-headroom: $(STAMP)  ## seconds and memory of headroom over traces of up to 2 million rows (ARGS="--rows 100000")
	$(BIN)/python -m benchmarks.headroom $(ARGS)

bench-snapshots: $(STAMP)  ## what snapshots cost, and what they take (ARGS="--device cuda --sizes 134M,1.35G")
	$(BIN)/python -m benchmarks.snapshots $(ARGS)

bench-recorder: $(STAMP)  ## what the recorder costs beside a bare loop (ARGS="--device cuda --sizes 134M")
	$(BIN)/python -m benchmarks.recorder $(ARGS)

bench-ranks: $(STAMP)  ## what looking costs each of 1, 2 and 4 ranks, and `report` over their traces (ARGS="--device cuda --sizes 134M --ranks 1,2")
	$(BIN)/python -m benchmarks.ranks $(ARGS)

docs: $(STAMP)  ## make the generated pages of docs/ again
	$(BIN)/python docs/generate.py

gallery: $(STAMP)  ## hunt the twelve faults of docs/gallery, try the examples of trials, write docs/hunt.md and docs/trials.md
	$(BIN)/python docs/gallery.py
	$(BIN)/python docs/trials_page.py

examples: $(STAMP)  ## write the reports of six faults again that the tests hold against what comes out, tests/report/reports
	$(BIN)/python -m tests.report.kept

screenshots: $(STAMP)  ## make the pictures of the HTML report again, docs/images (needs a Chromium: make browser)
	$(BIN)/python -m tests.browser.screenshots

clean:  ## remove the virtual environment and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
