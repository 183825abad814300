# `make` lists the targets. Each makes the environment (.venv) itself when it is missing or older than requirements.lock.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help reproduce test test-browser lab check readme clean

PROFILE ?= mini
SCREENSHOTS ?= artifacts/screenshots
BIN := .venv/bin
STAMP := .venv/.installed
NBSTRIPOUT := $(BIN)/nbstripout --keep-id --extra-keys "metadata.papermill cell.metadata.papermill cell.metadata.execution"

help:  ## Show the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' Makefile

reproduce: $(STAMP)  ## Run the six notebooks on the mini profile: tables, figures and report in results/mini
	@$(BIN)/codeact run --profile $(PROFILE)

test: $(STAMP)  ## Run all tests, offline, two at a time
	@$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

test-browser: $(STAMP)  ## Run every notebook in JupyterLab in a headless Chromium; pictures in artifacts/screenshots
	@CODEACT_SCREENSHOTS=$(SCREENSHOTS) $(BIN)/python -m pytest tests/test_browser.py $(PYTEST_ARGS)

lab: $(STAMP)  ## Open the notebooks in JupyterLab
	@$(BIN)/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) $(LAB_ARGS) notebooks

check: $(STAMP)  ## Lint, format and type check; notebooks must be stripped of outputs
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(NBSTRIPOUT) --verify notebooks/*.ipynb
	@$(BIN)/mypy --no-error-summary

readme: $(STAMP)  ## Put the tables of results/ that README.md shows into it
	@$(BIN)/python -c "import re, pathlib as p; r = p.Path('README.md'); \
	    r.write_text(re.sub(r'(<!-- table: (\S+) -->\n).*?(<!-- end of table -->)', \
	        lambda m: m[1] + p.Path(m[2]).read_text().strip() + '\n' + m[3], r.read_text(), flags=re.S))"

clean:  ## Delete what can be rebuilt (artifacts and caches; .venv and results stay)
	@rm -rf artifacts build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	@find . -path ./.venv -prune -o -name __pycache__ -type d -print0 | xargs -0 rm -rf

# The versions in the lock are tested with Python 3.11; the first interpreter of that version is taken.
$(STAMP): requirements.lock pyproject.toml
	@set -e; for python in python3.11 python3 python; do \
	    if $$python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then break; fi; python=; \
	done; \
	if [ -z "$$python" ]; then \
	    echo "error: Python 3.11 is needed, and neither python3.11 nor python3 is one." >&2; \
	    echo "Install it (apt install python3.11-venv, brew install python@3.11, pyenv install 3.11) or use conda:" >&2; \
	    echo "    conda env create -f environment.yml" >&2; exit 1; \
	fi; \
	echo "making .venv with $$($$python --version) and the versions of requirements.lock; this takes some minutes"; \
	$$python -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@
