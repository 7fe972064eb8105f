# cbit: `make demo` shows the machine, `make test` proves it.  `make help` lists the rest.
#
# Nothing here needs root.  What is installed goes to .venv, from hash-locked lists.  Outside this folder are written:
# machines that last no longer than a command, in $TMPDIR, and guest firmware that `make demo` fetches where none is
# installed, in ~/.cache/cbit.
# Without a network, PIP_NO_INDEX=1 PIP_FIND_LINKS=<folder with the wheels> is honoured by pip.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
ARGS   ?=
PIP    := $(BIN)/python -m pip --disable-pip-version-check --quiet --no-input --retries 2
PYTEST := $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal

.DEFAULT_GOAL := help
.PHONY: demo bench test test-all check format docs lock clean help

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

demo: $(VENV)/.machine ## the story of the machine, act by act (ARGS="--json" for the same as data)
	@$(BIN)/cbit demo $(ARGS)
	@echo "cbit: to type cbit commands in this shell, say: . $(BIN)/activate" >&2

bench: $(VENV)/.machine ## speed against the limit, side by side in one run
	@$(BIN)/cbit bench $(ARGS)

test: $(VENV)/.dev ## everything that is quick; what is absent skips aloud
	@$(PYTEST) -m "not slow" $(ARGS)

test-all: $(VENV)/.dev ## slow tests too, and a larger budget for the property tests
	@HYPOTHESIS_PROFILE=thorough $(PYTEST) --timeout=900 $(ARGS)

check: $(VENV)/.dev ## format, lint, types, imports, docs
	$(BIN)/ruff format --check --quiet .
	$(BIN)/ruff check --quiet .
	$(BIN)/mypy --no-error-summary
	$(BIN)/lint-imports --no-cache
	$(BIN)/sphinx-build -b html -W --keep-going --quiet docs docs/_build/html

format: $(VENV)/.dev ## let ruff mend what it can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(VENV)/.dev ## build docs/_build/html
	@$(BIN)/sphinx-build -b html --quiet docs docs/_build/html
	@echo "cbit: docs/_build/html/index.html"

lock: ## resolve requirements/*.txt anew from pyproject.toml (needs network and the oldest Python supported)
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip --disable-pip-version-check --quiet install pip-tools
	.venv-lock/bin/python requirements/lock.py

clean: ## remove everything that make has made
	rm -rf $(VENV) .venv-lock .oracles docs/_build build dist
	rm -rf .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache .coverage htmlcov
	find src tests docs requirements -name __pycache__ -type d -prune -exec rm -rf {} +

# ---- the environment -------------------------------------------------------------------------------------------

# Install the wheels of one lock file and this package on top.  $(1): the lock file.
# --no-deps: the lock is complete, and pip's resolver would take a newer release than it for a name with extras.
define install
	@echo "cbit: installing $$(grep -c == $(1)) packages from $(1) …"
	@$(PIP) install --no-deps --require-hashes --only-binary :all: -r $(1) || { \
	    echo; \
	    echo "cbit: pip could not install these wheels:"; \
	    sed -n 's/^\([A-Za-z0-9._-]*==[^ ;]*\).*/    \1/p' $(1); \
	    echo "cbit: without a network, put them in a folder and say"; \
	    echo "    PIP_NO_INDEX=1 PIP_FIND_LINKS=<that folder> make $(MAKECMDGOALS)"; \
	    exit 1; } >&2
	@$(PIP) install --no-deps --no-build-isolation --editable .
endef

$(VENV)/.machine: requirements/machine.txt pyproject.toml | $(VENV)/.made
	$(call install,requirements/machine.txt)
	@touch $@

# The developer's list contains the machine's.
$(VENV)/.dev: requirements/dev.txt pyproject.toml | $(VENV)/.made
	$(call install,requirements/dev.txt)
	@touch $@ $(VENV)/.machine

$(VENV)/.made:
	@command -v $(PYTHON) >/dev/null || { \
	    echo "cbit: there is no $(PYTHON) here; cbit needs Python 3.11 or newer: make … PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "cbit: $(PYTHON) is $$($(PYTHON) --version 2>&1); cbit needs Python 3.11 or newer: make … PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "cbit: making $(VENV) with $$($(PYTHON) --version) …"
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	    echo "cbit: $(PYTHON) cannot make an environment: its venv module is missing (Debian, Ubuntu: package python3-venv)" >&2; exit 1; }
	@touch $@
