# `make` without a target lists the targets. Each target does its own set-up and needs only git, make and
# a Python from 3.11 to 3.13.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-long test-pythons check docs bench bench-around bench-gpu bench-search bench-serving soak mutants kills audit ui lock clean

# An activated environment, or packages installed elsewhere, must not have any influence. MLFLOW_* variables may.
unexport VIRTUAL_ENV CONDA_PREFIX PYTHONPATH PYTHONHOME PIP_USER PIP_TARGET PIP_PREFIX

# uv, pip, matplotlib and the runs keep their caches, and what is to be sent to a tracking server, in the home folder;
# where there is none that can be written, in this one.
ifeq (,$(XDG_CACHE_HOME))
ifneq (yes,$(shell { test -w "$$HOME/.cache" || { test -w "$$HOME" && ! test -e "$$HOME/.cache"; }; } && echo yes))
export XDG_CACHE_HOME := $(CURDIR)/.cache
endif
endif
ifeq (,$(HOME))
export HOME := $(CURDIR)/.cache
endif

# MLflow records the user's name, and fails for a user without one, such as in a container.
ifeq (,$(LOGNAME)$(USER))
ifneq (,$(shell id -un > /dev/null 2>&1 || echo unknown))
export LOGNAME := $(shell id -u)
endif
endif

# Paths are relative, so that folders with spaces in their names work. Tools run as `python -m`, because the #! line of a
# script has a maximal length, which a long path exceeds.
BIN := .venv/bin
READY := .venv/.ready
UV := $(BIN)/uv --quiet --system-certs
# Run two test files at a time, since most tests wait for one busy process. The files run in the order of tests/conftest.py,
# the longest first, because xdist would otherwise run those with few tests last, and these take longest. A crashed worker
# ends the test run at once, because a replacement would crash again, without end.
PYTEST_WORKERS := --numprocesses 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0
MLFLOW := MLFLOW_DISABLE_TELEMETRY=true PATH="$(CURDIR)/$(BIN):$$PATH" python -m mlflow

# MLflow's default store. In a folder with a space MLflow 3.17 would also make folders with %20 in their names, or fail
# where it may not.
STORE := sqlite:///$(CURDIR)/mlflow.db

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1|/p' Makefile | while IFS='|' read -r target text; do printf '%-14s %s\n' "$$target" "$$text"; done

demo: $(READY)  ## train on scikit-learn's digits, tracked in MLflow (about a minute)
	@MLFLOW_TRACKING_URI="$${MLFLOW_TRACKING_URI:-$(STORE)}" $(MLFLOW) run . --env-manager local -P recipe=digits

test: check  ## run check and the quick tests
	@$(BIN)/python -m pytest $(PYTEST_WORKERS)

test-long: check  ## run check and all tests, including those that install whole environments
	@$(BIN)/python -m pytest $(PYTEST_WORKERS) -m ''

test-pythons: $(READY)  ## run the demo and some quick tests on the other supported Pythons of this machine
	@$(BIN)/python .ci/other_pythons.py

check: $(READY)  ## check style, types and import rules
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/python -m mypy
	@$(BIN)/lint-imports

docs: $(READY)  ## generate docs/settings.md from the config
	@$(BIN)/python -m pipeline.config.reference > docs/settings.md.part
	@mv docs/settings.md.part docs/settings.md

bench: $(READY)  ## compare the training step with the Keras example's and PyTorch's; TORCH=python names a Python with PyTorch
	@$(BIN)/python experiments/benchmarks/step.py --torch_python "$(or $(TORCH),$(BIN)/python)"

bench-around: $(READY)  ## measure start-up, input pipeline, validation and tracking of a run
	@$(BIN)/python experiments/benchmarks/around.py

# The CUDA libraries are installed only where there is a driver, and TensorFlow finds none.
bench-gpu: $(READY)  ## measure steps, searches and failures on a GPU, within eight minutes; tiny without one
	@! command -v nvidia-smi >/dev/null || \
	  $(BIN)/python -c 'import sys, tensorflow; sys.exit(not tensorflow.config.list_physical_devices("GPU"))' 2>/dev/null || \
	  $(UV) pip install --python $(BIN)/python -c requirements.lock -e '.[gpu]'
	@$(BIN)/python experiments/benchmarks/gpu.py

bench-search: $(READY)  ## compare search strategies on recorded curves (about an hour)
	@$(BIN)/python experiments/benchmarks/search.py

bench-serving: $(READY)  ## measure start, memory, latency and throughput of a served model, and of a plain one (five minutes)
	@$(BIN)/python experiments/benchmarks/serving.py

soak: $(READY)  ## kill processes at random for five minutes, then check every promise; SOAK_MINUTES=30 SOAK_SEED=1 make soak
	@$(BIN)/python experiments/benchmarks/soak.py

kills: $(READY)  ## kill and resume trainers and drivers, resume twice at once, step the clock; count what is lost
	@$(BIN)/python experiments/benchmarks/kills.py

# --strict makes a package that the service does not know a failure, because nothing was looked up then.
audit: $(BIN)/uv  ## check requirements.lock for known vulnerabilities (asks pypi.org)
	$(UV) tool run --python $(BIN)/python pip-audit@2.10.1 --strict --disable-pip --no-deps --progress-spinner off \
	  --requirement requirements.lock

ui: $(READY)  ## start MLflow's UI on http://127.0.0.1:5000; make ui PORT=5001 uses another port
	@case "$${MLFLOW_TRACKING_URI:=$(STORE)}" in \
	http*) echo "MLFLOW_TRACKING_URI is a server: open $$(printf %s "$$MLFLOW_TRACKING_URI" | sed 's|//.*@|//|')" ;; \
	*) MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false $(MLFLOW) ui \
	     --host 127.0.0.1 --port $(or $(PORT),5000) --backend-store-uri "$$MLFLOW_TRACKING_URI" ;; \
	esac

# Its packages are installed on the first use, so that nothing else waits for them.
mutants: $(READY)  ## measure which faults the unit tests notice: PACKAGE=pipeline/data SAMPLE=100 SEED=0
	@$(BIN)/python -c 'import mutmut' 2>/dev/null || $(UV) pip install --python $(BIN)/python -c requirements.lock 'mutmut'
	@$(BIN)/python experiments/benchmarks/mutants.py $(or $(PACKAGE),pipeline) $(if $(SAMPLE),--sample $(SAMPLE)) --seed $(or $(SEED),0)

lock: $(BIN)/uv  ## update requirements.lock from pyproject.toml (keeps the pins that still fit)
	$(UV) pip compile --universal --python-version 3.11 --all-extras --no-emit-index-url --no-emit-find-links \
	  --custom-compile-command 'make lock' --output-file requirements.lock pyproject.toml
	@$(BIN)/python -c 'import hashlib, re; from pathlib import Path; conda = Path("conda.yaml"); \
	digest = hashlib.sha256(Path("requirements.lock").read_bytes()).hexdigest(); \
	conda.write_text(re.sub(r"(-c requirements\.lock).*", rf"\1  # sha256 {digest}", conda.read_text()))'

clean:  ## remove the environment and the caches, but no runs (mlflow.db, mlruns)
	rm -rf .venv .venv-* .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .grimp_cache .hypothesis build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Every change creates a new environment, because an incomplete or patched one may differ from the lock. uv needs a third of
# pip's time (49 s against 151 s on two cores with empty caches, 32 s with full ones), but does not read pip's settings (such
# as a mirror); pip is used if uv fails. Without --compile-bytecode the first import of TensorFlow is slow.
$(READY): pyproject.toml requirements.lock
	@echo 'Setting up .venv (once, about a minute)'
	@rm -rf .venv
	@$(MAKE) --no-print-directory $(BIN)/uv
	@$(UV) pip install --python $(BIN)/python --compile-bytecode -c requirements.lock -e '.[dev]' || \
	  { echo 'uv failed; installing with pip, which takes minutes'; $(BIN)/python -m pip install --quiet -c requirements.lock -e '.[dev]'; }
	@touch $@

$(BIN)/uv:
	@set -- $(if $(PYTHON),'$(PYTHON)',python3.13 python3.12 python3.11 python3); \
	for python; do \
	  if "$$python" -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then \
	    "$$python" -m venv --clear .venv && exec $(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.lock uv; exit; \
	  fi; \
	done; \
	echo "Python must be 3.11, 3.12 or 3.13, with venv, got $(if $(PYTHON),,none of )$$*; install it (Debian, Ubuntu:" \
	  'apt install python3-venv; macOS: brew install python@3.13), or name its path:' \
	  'make PYTHON=/path/to/python3.13' >&2; exit 1
