# `make` alone lists the targets. Everything runs in .venv, which `make setup` (or any target that needs it) builds.

VENV := .venv
RUN := $(VENV)/bin/python -m
STAMP := $(VENV)/.setup-stamp

# Candidates for building .venv, best first; a name that does not start, or is too old, is passed over.
PYTHON ?= python3
PYTHONS := $(PYTHON) python3.11 python3.12 python3.13 python3.14

PACKAGES := -e "packages/ckptcore[lightning,numpy,plot,test]" \
  $(foreach name,serving phantom engine xray ct mri ensemble,-e packages/$(name))
BUILD_TOOLS := hatchling editables
DEV_TOOLS := ruff mypy pandas-stubs types-PyYAML
PIPELINE_TOOLS := dvc mlflow
PIP_INSTALL := $(RUN) pip install --quiet --disable-pip-version-check --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help setup demo xray ct mri ensemble export ui test test-slow lint bench clean

# Commands of the pipeline are found in .venv; nothing is sent anywhere.
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export DVC_NO_ANALYTICS := 1
export MLFLOW_DISABLE_TELEMETRY := true

# DVC notes the names of all files that it follows, patients' folders among them: by itself below /var/tmp, where
# every account of the machine may read them.
DVC_NOTES := .dvc/tmp/site
# DVC would make a folder that is gone anew for everybody.
OWN_NOTES := mkdir -p $(DVC_NOTES) && chmod 700 $(DVC_NOTES)

# DVC, killed while it writes its own notes, does not start again before they are mended.
REPRO := $(OWN_NOTES) && radfuse recover --quiet && exec dvc repro

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

setup: $(STAMP) ## build .venv with every package, at the versions of constraints.txt

$(STAMP): Makefile constraints.txt $(wildcard packages/*/pyproject.toml)
	@if ! $(VENV)/bin/python -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	  for python in $(PYTHONS); do \
	    if $$python -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	      echo "Building $(VENV) with $$python"; \
	      exec $$python -m venv --clear $(VENV); \
	    fi; \
	  done; \
	  echo "No Python 3.11 or newer with venv and pip among: $(PYTHONS)." >&2; \
	  echo "Install one (Debian: python3-venv), or name it: make setup PYTHON=/path/to/python3" >&2; \
	  exit 1; \
	fi
	@echo "Installing into $(VENV) (minutes the first time: torch is large)"
	@$(PIP_INSTALL) $(BUILD_TOOLS)
	@$(PIP_INSTALL) --no-build-isolation $(PACKAGES) $(DEV_TOOLS) $(PIPELINE_TOOLS)
	@$(OWN_NOTES)
	@dvc config --local core.site_cache_dir "$(CURDIR)/$(DVC_NOTES)"
	@touch $@

demo: setup ## the whole pipeline on a synthetic cohort: images, three trainings, ensemble, report, exports
	$(REPRO)
	@cat reports/summary.txt

xray: setup ## the chest X-ray branch: images, training, predictions
	$(REPRO) predict_xray

ct: setup ## the chest CT branch
	$(REPRO) predict_ct

mri: setup ## the brain MRI branch
	$(REPRO) predict_mri

ensemble: setup ## all branches and the ensemble over them
	$(REPRO) ensemble

export: setup ## all models as ONNX and TorchScript, checked against their checkpoints
	$(REPRO) export

# Whose runs are shown: a folder with params.yaml.
PIPELINE := .

ui: setup ## compare runs in the browser: MLflow at http://127.0.0.1:5000, this machine only
	@test -f "$(PIPELINE)/mlflow.db" || { \
	  echo "Expected mlflow.db, which a training makes, in the folder of a pipeline; $(PIPELINE) has none." >&2; \
	  echo "Train first (make demo), or name the folder of another pipeline: make ui PIPELINE=my_pipeline" >&2; exit 1; }
	MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false $(RUN) mlflow ui --backend-store-uri \
	  "sqlite:///$$(cd "$(PIPELINE)" && pwd)/mlflow.db" --host 127.0.0.1 --port 5000 --workers 1

lint: setup ## ruff (rules and format), then mypy --strict on the packages
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy packages/*/src

test: lint ## lint, then the tests that take seconds
	$(RUN) pytest -n 2 --dist loadgroup -m "not slow"

test-slow: setup ## all tests: kill storms, byte sweeps and fuzzing too (tens of minutes)
	$(RUN) pytest -n 2 --dist loadgroup --hypothesis-profile=thorough

bench: setup ## measure, as ratios against peers in the same run
	$(RUN) benchmarks

clean: ## remove caches and build leftovers; .venv and data stay
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist packages/*/build packages/*/dist
	find . -path ./$(VENV) -prune -o -type d \( -name __pycache__ -o -name '*.egg-info' \) -prune -exec rm -rf {} +
