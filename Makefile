# make run     the main job on the embedded sample     (ARGS="--trials 8" is passed on)
# make test    lint, format, types, and all tests that take seconds
# make slow    the tests that train whole runs
# make test-cluster   three hosts on this machine: ray up, searches that lose hosts, ray down (root)
# make test-browser   opens the samples' reports in Chromium, which it installs where it can
# make reports  the samples' reports that the README shows, anew (15 minutes)
# make bench   what is fast, beside what others do (under 40 minutes; ARGS=--quick: under 5)
# make bench-anytime   scores over time against a hand-written search and Ray Tune (90 minutes)
# make bench-studies  simulations: honest scores, search policies (needs RUNGFOLD_DATA)
#
# All of them first create the environment VENV (default .venv) with PYTHON where it is missing, and
# install what they need into it. VENV=DIR takes an existing environment.

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
BENCHES := feeding warm_workers bookkeeping start memory gpu probe_heads views ensemble_selection

PY := $(VENV)/bin/python

# An environment may be shared by several clones, and its editable install points at the clone that
# installed last. This clone's folder stands first on the path, here and in Ray's workers, so that
# its own code runs; the installation then only has to provide the dependencies.
export PYTHONPATH := $(CURDIR)$(if $(PYTHONPATH),:$(PYTHONPATH))

# A stamp is a copy of the pyproject.toml that was installed, so a changed list of dependencies is
# installed again, and an unchanged one costs nothing. It is written only after pip succeeded.
RUN_STAMP := $(VENV)/rungfold-search.toml
TEST_STAMP := $(VENV)/rungfold-search-test.toml

.PHONY: run test slow test-browser test-cluster reports bench bench-anytime bench-studies \
        ready-run ready-test ready-browser
.DELETE_ON_ERROR: # a half-made environment is made again

run: ready-run
	$(PY) -m search.run gene_expr $(ARGS)

test: ready-test
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PY) -m pytest -m "not slow and not cluster and not browser" $(ARGS)

slow: ready-test
	$(PY) -m pytest -m slow $(ARGS)

test-cluster: ready-test
	$(PY) -m pytest -m cluster tests/cluster $(ARGS)

test-browser: ready-browser
	$(PY) -m pytest -m browser tests/browser $(ARGS)

reports: ready-browser
	$(PY) docs/reports/make.py

bench: ready-test
	$(PY) benchmarks/keep.py $(BENCHES) $(ARGS)

bench-anytime: ready-test
	$(PY) benchmarks/keep.py anytime $(ARGS)

bench-studies: ready-test
	$(PY) benchmarks/keep.py optimism search_policies $(ARGS)

$(PY):
	$(PYTHON) -m venv $(VENV)

ready-run: $(PY)
	@cmp -s pyproject.toml $(RUN_STAMP) || cmp -s pyproject.toml $(TEST_STAMP) || \
	  { $(PY) -m pip install -e ".[search]" && cp pyproject.toml $(RUN_STAMP); }

ready-test: $(PY)
	@cmp -s pyproject.toml $(TEST_STAMP) || \
	  { $(PY) -m pip install -e ".[search,test]" && cp pyproject.toml $(TEST_STAMP); }

# What cannot be installed (no network, no rights) makes the browser's tests skip, with the reason.
ready-browser: ready-test
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || \
	  command -v google-chrome >/dev/null || \
	  { timeout 120 apt-get update -qq && \
	    timeout 300 apt-get install -y -qq --no-install-recommends chromium; } || \
	  echo "Chromium could not be installed"
	@$(PY) -c "import playwright" 2>/dev/null || $(PY) -m pip install -e ".[search,test,browser]" || \
	  echo "playwright could not be installed"
