# Commands of this repository; `make` alone lists them.
PROFILE ?= auto
# fast, or exact: bit by bit the same on the same GPU (contsteal/loop.py)
MODE ?= $(or $(CONTSTEAL_MODE),fast)
export CONTSTEAL_MODE := $(MODE)
VENV := .venv
# Another interpreter, with the packages of requirements.lock in it: make paper PYTHON=python3
PYTHON ?= $(VENV)/bin/python
READY := $(if $(filter $(VENV)/%,$(PYTHON)),$(VENV)/ready)
ARGS := $(if $(NB),--only $(NB)) $(if $(FORCE),--force)
RUN := $(PYTHON) -m contsteal.paper.notebooks

.PHONY: help setup paper plan figures html check data test bench soak record lint format lab lock clean

help: ## list the commands
	@echo "make <command> [PROFILE=smoke|demo|study|synthetic|paper|imagenet|timm] [MODE=exact] [NB=03] [FORCE=1] [PYTHON=python3]"
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  \1\t/' | expand -t 12

setup: $(READY) ## build .venv from requirements.lock (any other command does it too)

# uv resolves nothing here: it installs what the lock says, on every platform.
$(VENV)/ready: requirements.lock pyproject.toml
	@command -v uv >/dev/null || python3 -m uv --version >/dev/null 2>&1 \
	  || python3 -m pip install --quiet uv 2>/dev/null \
	  || python3 -m pip install --quiet --break-system-packages --user uv
	@uv=$$(command -v uv || echo "python3 -m uv"); \
	  test -x $(VENV)/bin/python || $$uv venv --quiet --python '>=3.11' $(VENV); \
	  $$uv pip sync --quiet --compile-bytecode --python $(VENV)/bin/python requirements.lock && \
	  $$uv pip install --quiet --python $(VENV)/bin/python --no-deps --editable .
	@touch $@

paper: $(READY) ## run the notebooks of the profile that are out of date, redraw every figure
	+@$(RUN) paper --profile $(PROFILE) $(ARGS)

# `paper` calls make with the notebooks that must run, for each of which it has just written a file in .keys.
# The victim's comes first, and beside it the one that needs no victim; the last one draws the tables of all
# others, which run side by side.
ifdef FOLDER
CHOSEN := $(MAKECMDGOALS)
FIRST := $(filter $(FOLDER)/01%,$(CHOSEN))
LAST := $(filter %/$(notdir $(lastword $(sort $(wildcard notebooks/[0-9]*.ipynb)))),$(CHOSEN))
$(filter-out $(FIRST) $(FOLDER)/00%,$(CHOSEN)): | $(FIRST)
$(LAST): | $(filter-out $(LAST),$(CHOSEN))

$(FOLDER)/%.ipynb: $(FOLDER)/.keys/%
	@$(RUN) execute $@
endif

plan: $(READY) ## say what `make paper` would run, why, and what it takes
	@$(RUN) plan --profile $(PROFILE) $(ARGS)

figures: $(READY) ## redraw all stored figures from their tables, and one page of all (no training)
	@$(PYTHON) -m contsteal.paper.figures --profile $(PROFILE)

SITE := $(or $(CONTSTEAL_RUNS),runs)/site
html: $(READY) ## build the documentation with all results and executed notebooks, in runs/site
	@rm -rf $(SITE) && mkdir -p $(SITE)/.pages
	@$(PYTHON) -m sphinx -b html -q -c docs $(SITE)/.pages $(SITE)
	@echo "$(SITE)/index.html"

data: $(READY) ## fetch what a profile needs and is missing: make data PROFILE=paper
	@$(RUN) data --profile $(PROFILE)

check: $(READY) ## test the papers' claims on stored results: make check PROFILE=demo
	@$(PYTHON) -m contsteal.paper.claims --profile $(PROFILE)

# A file's tests stay together: what they share, such as a cluster or the site, is made once.
test: lint ## lint, then run all tests (CPU, no network)
	@$(PYTHON) -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

bench: $(READY) ## measure speed against its bars, into benchmarks/results
	@$(PYTHON) benchmarks/pack.py
	@$(PYTHON) benchmarks/defenses.py
	@$(PYTHON) -m benchmarks

soak: $(READY) ## kill runs, fill disks, flip bits and give odd input, into benchmarks/results/soak.csv
	@$(PYTHON) -m benchmarks.soak

record: $(READY) ## all of a GPU's results in pieces, again where it stopped: make record SECONDS=540
	@$(PYTHON) -m benchmarks.pieces --profile $(PROFILE) --seconds $(or $(SECONDS),540) $(if $(TO),--to $(TO))

lint: $(READY) ## check style, spelling, types and imports, and that notebooks are stripped
	@$(PYTHON) -m ruff check .
	@$(PYTHON) -m ruff format --check .
	@$(PYTHON) -m codespell_lib *.md docs contsteal notebooks benchmarks .github
	@$(PYTHON) -m nbstripout --verify notebooks/*.ipynb
	@$(PYTHON) -c "from importlinter.cli import lint_imports_command as lint; lint()" --no-cache --no-logo
	@$(PYTHON) -m mypy contsteal

format: $(READY) ## format code, link and strip notebooks
	@$(PYTHON) -m ruff check --fix .
	@$(PYTHON) -m ruff format .
	@$(PYTHON) -m nbstripout notebooks/*.ipynb

# On a machine without a screen: make lab LAB=--no-browser
lab: $(READY) ## open the notebooks in JupyterLab, on the next free port
	@$(PYTHON) -m jupyterlab --LabApp.default_url=/lab/tree/notebooks/00_start_here.ipynb $(LAB)

lock: ## resolve pyproject.toml into requirements.lock
	uv pip compile --universal --python-version 3.11 --extra dev pyproject.toml \
	  --output-file requirements.lock --no-emit-index-url --no-annotate \
	  --custom-compile-command "make lock"

clean: ## remove executed notebooks and artifacts (figures stay)
	rm -rf runs
