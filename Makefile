# make demo | test | lab | docs | clean. Everything happens inside .venv, which is made on the first call.
VENV    ?= .venv
WORKERS ?= 2
BIN     := $(VENV)/bin
READY   := $(VENV)/.ready

# the first interpreter that will do; choose another one with: make PYTHON=/path/to/python demo
SUITS   := import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))
PYTHON  ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
             if $$p -c '$(SUITS)' >/dev/null 2>&1; then echo $$p; exit; fi; done; echo python3)

.DEFAULT_GOAL := help
.PHONY: help demo test lab docs readme clean

help:    ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "make %-8s %s\n", $$1, $$2}' Makefile

demo: $(READY)    ## the quickstart: leaves a report in reports/quickstart
	@$(BIN)/ptacl run quickstart

test: export OMP_NUM_THREADS := 1
test: export MKL_NUM_THREADS := 1
test: $(READY)    ## modules, notebooks and everything around them
	$(BIN)/ruff check --quiet --output-format concise .
	$(BIN)/mypy
	$(BIN)/nbdev_test --n_workers $(WORKERS) --timing
	# whole files to one worker: what a file of tests needs is made once
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

lab: $(READY)    ## JupyterLab on the notebooks
	$(BIN)/jupyter lab nbs $(if $(filter 0,$(shell id -u)),--allow-root)

docs: $(READY)    ## the site, in _docs/index.html
	$(BIN)/python docs/build.py

readme: $(READY)    ## README.md anew from nbs/index.ipynb
	$(BIN)/python docs/build.py readme

clean:    ## removes what was made, .venv included; reports stay
	rm -rf $(VENV) _docs _build *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis

$(READY): settings.ini constraints.txt setup.py pyproject.toml
	@$(PYTHON) -c '$(SUITS)' 2>/dev/null || { \
	  echo "ptacl needs Python 3.11, 3.12, 3.13 or 3.14, but '$(PYTHON)' is $$($(PYTHON) --version 2>/dev/null || echo missing)."; \
	  echo "Install one from https://www.python.org or your system, then: make PYTHON=/path/to/python3.11 demo"; exit 1; }
	@echo "Installing into $(VENV) (once, some minutes) ..."
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	@touch $@
