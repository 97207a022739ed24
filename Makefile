# Everything here works on a fresh clone with python3 (3.10 or newer) and cargo,
# and from any state: what is built is keyed on the contents of its inputs.

PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
OUT    := out
CARGO  ?= cargo

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt

hash = $(shell { echo $(CURDIR); $(1); } 2>&1 | sha256sum | cut -c1-16)
DEPS  := $(VENV)/deps-$(call hash,$(PYTHON) -VV; cat constraints.txt pyproject.toml)
TOOLS := $(VENV)/tools-$(call hash,$(PYTHON) -VV; cat constraints.txt pyproject.toml)
CODE  := Cargo.toml Cargo.lock pyproject.toml $(wildcard rust/core/Cargo.toml rust/python/Cargo.toml rust/python/build.rs)
BUILD := $(VENV)/build-$(call hash,find rust -name '*.rs' | LC_ALL=C sort | xargs sha256sum; cat $(CODE); $(CARGO) --version)
MODULE := python/youngbit/_core.abi3.so

.DEFAULT_GOAL := help
.PHONY: help run test docs protocols protocols-full sanitize fuzz soak wheel wheel-check bench bench-compare bench-peers lint fmt clean build

help:            ## show this
	@sed -n 's/^\([a-z-]*\): *[^#]*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16

$(DEPS):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "youngbit needs Python 3.10 or newer, found: $$($(PYTHON) -VV)" >&2; exit 1; }
	@$(CARGO) --version >/dev/null || { echo "youngbit needs cargo, see https://rustup.rs" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	$(PY) -m pip install --quiet --upgrade "pip>=25.1"
	$(PY) -m pip install --quiet maturin numpy click rich matplotlib
	@touch $@

# What only checking, documenting and benchmarking need: a user who just runs
# youngbit does not wait for it.
$(TOOLS): $(DEPS)
	$(PY) -m pip install --quiet --group check --group bench --group docs
	@touch $@

build: $(DEPS)   ## build the extension module, optimised
	@test -e $(BUILD) -a -e $(MODULE) || { \
		rm -f $(VENV)/build-*; \
		VIRTUAL_ENV=$(CURDIR)/$(VENV) $(PY) -m maturin develop --release --locked && touch $(BUILD); }

run: build       ## verify aging end to end, measure it, replay and reclaim the shipped trace
	@mkdir -p $(OUT)
	$(PY) -m youngbit access-tracking -l -v 2 -b 128M
	$(PY) -m youngbit access-tracking -l -p
	$(PY) -m youngbit replay --plot $(OUT)/generations.png
	$(PY) -m youngbit reclaim --workload trace --plot $(OUT)/reclaim.png

lint: $(TOOLS)    ## formatting, clippy, ruff
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	$(PY) -m ruff format --check
	$(PY) -m ruff check

# Random tests repeat here and explore in `make soak`: a run that fails must fail
# for what was changed, not for its dice.
test: export PROPTEST_RNG_SEED := 20260727
test: $(TOOLS) lint build ## all checks and tests
	$(CARGO) test --locked -p youngbit-core
	$(PY) tools/protocols.py --set quick --steps 0
	$(PY) -m mypy
	$(PY) -m mypy.stubtest youngbit._core
	$(PY) -m pytest --hypothesis-seed=20260727 -n auto --maxprocesses 4 --dist loadfile

docs: $(TOOLS) build      ## build the documentation into out/docs, warnings are errors
	$(PY) -m sphinx -q -W --keep-going -b html -d $(OUT)/doctrees docs $(OUT)/docs
	@echo "Wrote $(OUT)/docs/index.html"

protocols: $(DEPS) ## check the lockless protocols, and that every mutant is caught
	$(PY) tools/protocols.py

protocols-full: $(DEPS) ## the same with more preemptions a run: long
	$(PY) tools/protocols.py --set full

sanitize:        ## the threaded tests under the address, leak and thread sanitizers
	$(PYTHON) tools/sanitize.py

# SECONDS of each target.
fuzz: SECONDS ?= 60
fuzz:            ## look for inputs that break a parser or the operations, SECONDS=60 each
	$(PYTHON) tools/fuzz.py --seconds $(SECONDS)

# A random test of a test program, so many times its budget, with fresh seeds.
random = YOUNGBIT_SOAK=$(3) $(CARGO) test --locked -p youngbit-core --test $(1) $(2)

soak: $(TOOLS) build      ## long tests, fuzzing, then an hour of torture; writes docs/soak.md
	$(call random,kvm,oracle::,8)
	$(call random,kvm,batched::,60)
	$(call random,kvm,memslots::,100)
	$(call random,reclaim,random_programs,8)
	$(call random,aging,lists_and_sizes,20)
	$(call random,scenario,any_scenario,10)
	$(call random,lru_gen_text,,50)
	YOUNGBIT_SOAK=170 $(CARGO) test --locked --release -p youngbit-core --lib lockless_walks_while_tables_change
	$(PYTHON) tools/fuzz.py --seconds 60
	$(PY) -m pytest -m soak --timeout 7200
	$(PY) tools/soak.py

bench: $(TOOLS) build     ## time the core and the package
	$(CARGO) bench --locked -p youngbit-benches
	$(PY) -m pytest benches --benchmark-only

# A goal after it is the revision: `make bench-compare HEAD~3`. REV= does too.
ifeq (bench-compare,$(firstword $(MAKECMDGOALS)))
REV ?= $(word 2,$(MAKECMDGOALS))
ifneq (,$(word 2,$(MAKECMDGOALS)))
$(eval $(word 2,$(MAKECMDGOALS)):;@:)
endif
endif
bench-compare: $(DEPS) ## REV: time revision REV against the sources, in turn
	$(PY) tools/bench_compare.py $(or $(REV),$(error which revision? make bench-compare HEAD~1)) $(ARGS)

bench-peers: build ## time cache simulators from PyPI on the same accesses
	$(PY) benches/peers/run.py

wheel: $(DEPS)   ## build a wheel into dist/
	rm -rf dist
	VIRTUAL_ENV=$(CURDIR)/$(VENV) $(PY) -m maturin build --release --locked --out dist

wheel-check: wheel ## install the wheel into an empty environment and run it there
	@mkdir -p $(OUT)
	$(PYTHON) -m venv --clear $(OUT)/wheel-env
	$(OUT)/wheel-env/bin/python -m pip install --quiet dist/*.whl
	cd $(OUT) && env -i wheel-env/bin/youngbit access-tracking -l -b 16M
	rm -rf $(OUT)/wheel-env

fmt: $(TOOLS)     ## format all sources
	$(CARGO) fmt --all
	$(PY) -m ruff check --fix-only --quiet
	$(PY) -m ruff format

clean:           ## remove what was built
	rm -rf $(VENV) $(OUT) dist target $(MODULE)
