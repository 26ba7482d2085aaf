# `make` alone lists the targets. Each does its own set-up: Python 3.11, git and make are enough.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-long check docs bench bench-around bench-search bench-serving soak audit ui lock clean

# An environment that happens to be activated, or installed packages elsewhere, must not leak in. MLFLOW_* variables may.
unexport VIRTUAL_ENV CONDA_PREFIX PYTHONPATH PYTHONHOME PIP_USER PIP_TARGET PIP_PREFIX

# Relative, so that a folder with spaces in its name works; python -m, so that a long path (a script's #! line) does.
BIN := .venv/bin
READY := .venv/.ready
UV := $(BIN)/uv --quiet --system-certs
# Two files of tests at a time: most wait for one process that computes. In the order of their names, as xdist would else leave to
# the end those with few tests, which are the longest. A worker that crashes fails all at once: replaced, it crashes again for ever.
TWO := --numprocesses 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0
MLFLOW := MLFLOW_DISABLE_TELEMETRY=true PATH="$(CURDIR)/$(BIN):$$PATH" python -m mlflow

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1|/p' Makefile | while IFS='|' read -r target text; do printf '%-12s %s\n' "$$target" "$$text"; done

demo: $(READY)  ## train on scikit-learn's digits, tracked in MLflow: about a minute
	@$(MLFLOW) run . --env-manager local -P recipe=digits

test: check  ## check, then the quick tests
	@$(BIN)/python -m pytest $(TWO)

test-long: check  ## check, then all tests, those that install whole environments too
	@$(BIN)/python -m pytest $(TWO) -m ''

check: $(READY)  ## ruff, types and import rules
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/python -m mypy
	@$(BIN)/lint-imports

docs: $(READY)  ## write docs/settings.md from the config
	@$(BIN)/python -m pipeline.config.reference > docs/settings.md.part
	@mv docs/settings.md.part docs/settings.md

bench: $(READY)  ## the training step beside the stock example's and PyTorch's; make bench TORCH=python if that has it
	@$(BIN)/python experiments/benchmarks/step.py --torch_python "$(or $(TORCH),$(BIN)/python)"

bench-around: $(READY)  ## what a run costs besides its training steps: starting, input, validation, tracking
	@$(BIN)/python experiments/benchmarks/around.py

bench-search: $(READY)  ## ways of searching on recorded curves: two minutes
	@$(BIN)/python experiments/benchmarks/search.py

bench-serving: $(READY)  ## a served model's start, memory, latency and throughput: two minutes
	@$(BIN)/python experiments/benchmarks/serving.py

soak: $(READY)  ## five minutes of random kills, then every promise is checked; SOAK_MINUTES=30 SOAK_SEED=1 make soak
	@$(BIN)/python experiments/benchmarks/soak.py

# --strict: a package that the service does not know is a failure too, since then nothing was looked up.
audit: $(BIN)/uv  ## look up what requirements.lock pins among the known vulnerabilities (asks pypi.org)
	$(UV) tool run --python $(BIN)/python pip-audit@2.10.1 --strict --disable-pip --no-deps --progress-spinner off \
	  --requirement requirements.lock

ui: $(READY)  ## open MLflow's pages on the runs: http://127.0.0.1:5000, or make ui PORT=5001
	@case "$${MLFLOW_TRACKING_URI:=sqlite:///mlflow.db}" in \
	http*) echo "MLFLOW_TRACKING_URI is a server: open $$(printf %s "$$MLFLOW_TRACKING_URI" | sed 's|//.*@|//|')" ;; \
	*) MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false $(MLFLOW) ui \
	     --host 127.0.0.1 --port $(or $(PORT),5000) --backend-store-uri "$$MLFLOW_TRACKING_URI" ;; \
	esac

lock: $(BIN)/uv  ## pin what pyproject.toml asks for, and all that it needs in turn (keeps what is pinned and still fits)
	$(UV) pip compile --universal --python-version 3.11 --all-extras --no-emit-index-url --no-emit-find-links \
	  --custom-compile-command 'make lock' --output-file requirements.lock pyproject.toml
	@$(BIN)/python -c 'import hashlib, re; from pathlib import Path; conda = Path("conda.yaml"); \
	digest = hashlib.sha256(Path("requirements.lock").read_bytes()).hexdigest(); \
	conda.write_text(re.sub(r"(-c requirements\.lock).*", rf"\1  # sha256 {digest}", conda.read_text()))'

clean:  ## remove the environment and the caches; runs (mlflow.db, mlruns) stay
	rm -rf .venv .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .grimp_cache .hypothesis build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A whole new environment at every change, as a half-made or patched one is not what the lock says. uv takes a third of pip's time
# (49 s against 151 s on two cores with empty caches, 32 s with full ones), but does not read pip's settings (a mirror, say): then
# pip does it. --compile-bytecode, else the first import of TensorFlow is slow.
$(READY): pyproject.toml requirements.lock
	@echo 'Setting up .venv: about a minute, once'
	@rm -rf .venv
	@$(MAKE) --no-print-directory $(BIN)/uv
	@$(UV) pip install --python $(BIN)/python --compile-bytecode -c requirements.lock -e '.[dev]' || \
	  { echo 'uv could not, so pip does: minutes'; $(BIN)/python -m pip install --quiet -c requirements.lock -e '.[dev]'; }
	@touch $@

$(BIN)/uv:
	@for python in $(PYTHON) python3.11 python3; do \
	  if "$$python" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then \
	    "$$python" -m venv --clear .venv && exec $(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.lock uv; exit; \
	  fi; \
	done; \
	echo 'Python 3.11 is needed, with venv: install it (Debian, Ubuntu: apt install python3.11-venv; macOS: brew install' \
	  'python@3.11), or name it: make PYTHON=/path/to/python3.11' >&2; exit 1
