# `make` lists the targets. Each makes the environment (.venv) itself when it is missing or older than requirements.lock.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help reproduce test test-browser bench lab check readme lock-check python-check colab-check repository clean

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

bench: $(STAMP)  ## Measure one part side by side with the plain way of doing it: make bench NAME=packing BENCH_ARGS=...
	@$(BIN)/python -m bench $(or $(NAME),--help) $(BENCH_ARGS)

lab: $(STAMP)  ## Open the notebooks in JupyterLab
	@$(BIN)/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) $(LAB_ARGS) notebooks

check: $(STAMP)  ## Lint, format, types, the direction of imports; notebooks must be stripped of outputs
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(NBSTRIPOUT) --verify notebooks/*.ipynb
	@$(BIN)/mypy --no-error-summary
	@said=$$($(BIN)/lint-imports) || { echo "$$said"; exit 1; }

readme: $(STAMP)  ## Put the tables of results/ that README.md shows into it
	@$(BIN)/python -c "import re, pathlib as p; r = p.Path('README.md'); \
	    r.write_text(re.sub(r'(<!-- table: (\S+) -->\n).*?(<!-- end of table -->)', \
	        lambda m: m[1] + p.Path(m[2]).read_text().strip() + '\n' + m[3], r.read_text(), flags=re.S))"

lock-check:  ## Every package of requirements.lock has a wheel for each Python of 3.11 to 3.14 (needs the package index)
	@bash tools/lock.sh --check

python-check:  ## Imports, fast tests and the reduced mini on another interpreter: make python-check PYTHON=python3.13
	@bash tools/python_check.sh

colab-check:  ## Colab's runtime as an environment here: the set-up cell, 00_colab with mini, colab-qlora with stand-ins
	@bash tools/colab_check.sh

repository:  ## Write the project's address everywhere: make repository URL=https://github.com/OWNER/NAME
	@python3 tools/repository.py $(URL)

clean:  ## Delete what can be rebuilt (artifacts and caches; .venv and results stay)
	@rm -rf artifacts build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	@find . -path ./.venv -prune -o -name __pycache__ -type d -print0 | xargs -0 rm -rf

$(STAMP): requirements.lock pyproject.toml
	@bash tools/make_venv.sh
	@touch $@
