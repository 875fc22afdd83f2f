# Everything a developer or a curious user types. Needs Python 3.11 or newer, make and a package index.
PYTHON ?= python3
VENV ?= .venv
PHOTOS ?=
PYTEST_ARGS ?=
BENCH_ARGS ?= quick
UPGRADE ?=

bin := $(VENV)/bin
# Made last: missing when the environment is incomplete, older than its sources when it is out of date.
ready := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup compiled test toxiproxy chaos lint format bench demo proto lock clean

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /  make \1	/p' Makefile | expand -t 16

setup: $(ready) ## a virtual environment in VENV (.venv) with the locked versions; PYTHON=python3.12 to choose

$(ready): requirements/dev.lock pyproject.toml requirements/make-venv
	@echo "setting up $(VENV) with the versions of requirements/dev.lock ..."
	@test -x $(bin)/python || requirements/make-venv "$(PYTHON)" "$(VENV)"
	@$(bin)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.lock
	@PYTHONWARNINGS=ignore $(bin)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

compiled: ## the same with the hot rooms compiled by mypyc, in .venv-compiled; then e.g. make bench VENV=.venv-compiled
	@test -x .venv-compiled/bin/python || requirements/make-venv "$(PYTHON)" .venv-compiled
	@.venv-compiled/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.lock
	GEARFLEET_COMPILE=1 .venv-compiled/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --force-reinstall .
	@touch .venv-compiled/.ready

test: $(ready) ## all tests; what needs a missing Debian package is skipped and named. PYTEST_ARGS="-k journal"
	$(bin)/python -m pytest $(PYTEST_ARGS)

toxiproxy: $(ready) ## toxiproxy's server, for the live chaos scenarios: found, or built with Go (PyPI's, where there is none)
	@$(bin)/python -m chaos_tests.live.toxiproxy

chaos: toxiproxy ## all live chaos scenarios, in under 20 minutes; reports of failures in chaos-output. PYTEST_ARGS="-k etcd"
	$(bin)/python -m pytest chaos_tests/live --chaos $(PYTEST_ARGS)

lint: $(ready) ## ruff, mypy --strict, and the direction of imports
	$(bin)/ruff check .
	$(bin)/ruff format --check .
	$(bin)/mypy
	$(bin)/mypy benchmarks examples chaos_tests
	$(bin)/lint-imports

format: $(ready) ## ruff's fixes and layout
	$(bin)/ruff check --fix .
	$(bin)/ruff format .

bench: $(ready) ## side by side with gearmand, where that is installed; under 5 minutes. BENCH_ARGS="throughput --jobs 200000"
	@$(bin)/python -m benchmarks $(BENCH_ARGS)

demo: $(ready) ## a fleet makes thumbnails; a node is killed, one frozen, one drained. PHOTOS=dir for your own pictures
	@$(bin)/python -m examples.demo $(if $(PHOTOS),--photos "$(PHOTOS)")

proto: $(ready) ## compile proto/ into cluster/server/generated, to be committed with it
	$(bin)/python -m cluster.server.generated

# In an environment of its own, so that the tool is no part of what it locks.
lock: ## write requirements/dev.lock anew from pyproject.toml; UPGRADE=--upgrade for newer versions
	@test -x .venv-lock/bin/uv || { requirements/make-venv "$(PYTHON)" .venv-lock && .venv-lock/bin/pip install --quiet uv; }
	.venv-lock/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate \
	  --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" $(UPGRADE) \
	  --extra dev pyproject.toml requirements/build.in --output-file requirements/dev.lock

clean: ## what the commands above leave behind, the virtual environment included
	@test ! -e "$(VENV)" || test -e "$(VENV)/pyvenv.cfg" || { echo "$(VENV) is no virtual environment: it stays, and so does the rest"; exit 1; }
	rm -rf $(VENV) .venv-lock .venv-compiled demo-output chaos-output build *.egg-info
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
