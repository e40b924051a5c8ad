# One target a habit. `make` alone lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Python starts a hundred times in the tests; without its cache each start would compile all the libraries again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup setup-dev demo bench lint test test-long coverage test-page deploy undeploy named quickstart audit format dashboards lock clean

help: ## what there is
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST)

setup: $(VENV)/demo.stamp ## .venv with what the daemon and the demo need

setup-dev: $(VENV)/dev.stamp

$(VENV)/python.stamp:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Millrace needs Python 3.11 or newer; name one with PYTHON=..."; exit 1; }
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/demo.stamp: requirements/demo.txt $(VENV)/python.stamp
	@echo "Installing the packages of $< into $(VENV), once: up to a minute."
	@$(BIN)/pip install --quiet --no-compile --require-hashes -r requirements/demo.txt
	@touch $@

$(VENV)/dev.stamp: requirements/dev.txt $(VENV)/python.stamp
	@echo "Installing the packages of $< into $(VENV), once: up to two minutes."
	@$(BIN)/pip install --quiet --no-compile --require-hashes -r requirements/dev.txt
	@touch $@

# SECONDS_TO_RUN=0 runs until Ctrl-C; POSTS=file.jsonl replays a recorded archive.
demo: setup ## the whole pipeline on this machine, then a reconciliation
	@$(BIN)/python -m local demo

# Each peer gets an environment of its own in .bench; POSTS=file.jsonl measures a recorded archive too.
bench: setup ## the producer beside its peers, for some ten minutes; writes docs/performance.md
	@$(BIN)/python -m bench $(if $(POSTS),--posts $(POSTS))

lint: setup-dev ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint ## lint, types and tests
	$(BIN)/pytest $(SIDE_BY_SIDE)

# Two processes a core: many tests wait for other processes.
SIDE_BY_SIDE = -n $$($(BIN)/python -c 'import os; print(2 * os.cpu_count())') --dist worksteal

test-long: setup-dev ## the long proofs: fifty kills, a minute of faults, an outage, resharding, X's own client; every branch of the core
	$(BIN)/pytest -n 3 --dist worksteal -m long
	$(BIN)/pytest -n auto --cov=service.core --cov=processor.wire --cov-fail-under=100 tests/service/core tests/processor/test_wire.py

coverage: setup-dev ## what tests and demo run of each module, its branches and its processes included
	$(BIN)/pytest $(SIDE_BY_SIDE) --cov --cov-report=
	$(BIN)/coverage run -m local demo
	$(BIN)/coverage combine --append
	$(BIN)/coverage report

test-page: setup-dev ## the live page in a Chromium
	$(BIN)/pytest -n auto -m browser

# PARAMETERS="ShardCount=2 AlarmEmail=me@example.org": those of deploy/template.yaml; what is not given stays as it is.
deploy: setup named ## make the stack STACK, or change it, and say what comes next
	@$(BIN)/python -m deploy up $(STACK) $(PARAMETERS)

undeploy: setup named ## delete the stack STACK and all that belongs to it
	@$(BIN)/python -m deploy down $(STACK)

named:
	@test -n "$(STACK)" || { echo "Name the stack: make deploy STACK=millrace"; exit 2; }

quickstart: setup ## quickstart.yaml: the stack as one file with the code inside, for the CloudFormation console
	@$(BIN)/python -m deploy quickstart quickstart.yaml

# An environment of its own: checkov pins what the daemon has newer.
audit: setup-dev .audit/stamp ## the template against the rules of checkov and AWS Control Tower
	$(BIN)/python -m deploy.audit .audit

.audit/stamp: requirements/audit.txt requirements/guard.txt
	@echo "Installing checkov and CloudFormation Guard into .audit, once: up to a minute."
	@$(PYTHON) -m venv .audit
	@.audit/bin/pip install --quiet --no-compile --require-hashes -r requirements/audit.txt
	@.audit/bin/pip install --quiet --no-compile --require-hashes --no-deps -r requirements/guard.txt
	@touch $@

format: setup-dev ## let ruff put the code in order
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

dashboards: setup-dev ## write deploy/grafana/dashboards/*.json anew
	$(BIN)/python -m deploy.grafana.generate

# uv resolves for every supported Python at once; the files it writes hold versions and hashes, no addresses.
lock: ## write requirements/*.txt anew from pyproject.toml
	for set in daemon demo dev traces; do \
	  group=$$( [ $$set = daemon ] || echo "--group $$set" ); \
	  uv pip compile pyproject.toml $$group --universal --python-version 3.11 --upgrade --generate-hashes \
	    --no-strip-extras --no-annotate --no-header --quiet -o requirements/$$set.txt; \
	done
	uv pip compile requirements/audit.in --universal --python-version 3.11 --upgrade --generate-hashes \
	  --no-strip-extras --no-annotate --no-header --quiet -o requirements/audit.txt
	uv pip compile requirements/xdk.in --universal --python-version 3.11 --upgrade --generate-hashes \
	  --no-strip-extras --no-annotate --no-header --quiet -o requirements/xdk.txt
	uv pip compile requirements/guard.in --no-deps --universal --python-version 3.11 --upgrade --generate-hashes \
	  --no-annotate --no-header --quiet -o requirements/guard.txt

clean: ## remove what the targets above made
	rm -rf $(VENV) quickstart.yaml .audit .bench .mypy_cache .ruff_cache .pytest_cache .hypothesis
