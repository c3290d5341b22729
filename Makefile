# Every command of the project. A fresh machine needs Python 3.11 or newer and make; nothing is fetched beyond the package registry.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
PIP_ARGS ?=
SEED ?= 0
VENV := .venv
BIN := $(VENV)/bin
ROOT_FLAG := $(if $(filter 0,$(shell id -u)),--allow-root)
# A page that stands alone shows each view's own picture and table; live widgets would be fetched from elsewhere.
STILL := $(foreach kind,text/html text/markdown image/svg+xml image/png text/plain,--NbConvertBase.display_data_priority=$(kind))
# JupyterLab would ask each new user whether to fetch news.
NO_NEWS := {"@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": false}}
QUIET_LAB := --LabApp.news_url=None --LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate --ServerApp.ip=127.0.0.1

.PHONY: help lab test test-slow lint types notebooks tour panel classroom skills bench scoreboard clean
help:            ## list the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

# torch goes in first and alone, under the constraints, so that no other package pulls another build of it.
$(VENV)/.lab: pyproject.toml constraints.txt
	@echo "Setting up $(VENV) (a few minutes, once) ..."
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check $(PIP_ARGS) -c constraints.txt torch
	$(BIN)/pip install -q --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e '.[lab,compare]'
	@mkdir -p $(VENV)/etc/jupyter/labconfig
	@echo '$(NO_NEWS)' > $(VENV)/etc/jupyter/labconfig/default_setting_overrides.json
	@touch $@

$(VENV)/.dev: $(VENV)/.lab
	$(BIN)/pip install -q --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e '.[dev]'
	@touch $@

lab: $(VENV)/.lab ## open the tour in JupyterLab
	$(BIN)/jupyter lab $(ROOT_FLAG) $(QUIET_LAB) notebooks/00_tour.ipynb

test: $(VENV)/.dev ## lint, types, fast tests, notebooks, one real browser (at most 15 minutes)
	$(MAKE) lint types
	$(BIN)/python -m pytest -m "not slow"

test-slow: $(VENV)/.dev ## the long rest of the tests (at most 45 minutes)
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/.dev ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev ## pyright
	$(BIN)/basedpyright --level error

notebooks: $(VENV)/.lab ## run all notebooks in place
	@for n in notebooks/*.ipynb; do echo "running $$n"; $(BIN)/jupyter nbconvert --log-level=WARN --execute --to notebook --inplace $$n || exit 1; done

tour: $(VENV)/.lab ## run all notebooks headless and write HTML to out/tour
	@mkdir -p out/tour
	@for n in notebooks/*.ipynb; do echo "running $$n"; \
	  $(BIN)/jupyter nbconvert --log-level=WARN --execute --ExecutePreprocessor.store_widget_state=False --to html $(STILL) --output-dir out/tour $$n || exit 1; done
	@echo "open out/tour/00_tour.html"

panel: $(VENV)/.lab ## compare the classroom models side by side in a browser (http://127.0.0.1:7860)
	$(BIN)/python -m workbench.views.panel

classroom: $(VENV)/.lab ## rebuild the classroom data and its three models (at most 30 minutes; SEED=0)
	$(BIN)/python -m workbench.classroom data
	$(BIN)/python -m workbench.classroom models --seed $(SEED)

skills: $(VENV)/.lab ## rebuild the twelve skills of the base (at most 12 minutes; goes on where it was ended; SEED=0)
	$(BIN)/python -m workbench.classroom skills --seed $(SEED)

# Those left out want a folder of public data, or an hour: their docstrings say how to run them.
SLOW_OR_FED := benchmarks/real_data.py benchmarks/lora_moe_real.py benchmarks/skills_real.py benchmarks/search.py $(wildcard benchmarks/*_effect.py)
bench: $(VENV)/.dev ## print the benchmarks that need nothing but this machine
	@for b in $(filter-out $(SLOW_OR_FED),$(wildcard benchmarks/*.py)); do echo "== $$b"; $(BIN)/python $$b || exit 1; done

scoreboard: $(VENV)/.lab ## every idea's headline claim beside our figure: docs/scoreboard.html (REBUILD=1 makes all tables anew: hours)
	$(BIN)/python benchmarks/scoreboard $(if $(REBUILD),--rebuild)

clean:           ## remove what the commands made, not what they shipped
	rm -rf $(VENV) out runs
