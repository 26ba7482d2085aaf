#!/bin/sh
# Serve a registered model in the foreground: deploy/serve-model.sh models:/digits@champion
# HOST (127.0.0.1), PORT (5001) and WORKERS (1) are variables; docs/serving.md has the others.
set -eu
model=${1:?the model, such as models:/digits@champion}
counts=
if [ "${WORKERS:-1}" -gt 1 ]; then
  # The workers count together, in the files of an empty folder.
  counts=$(mktemp -d)
  export PROMETHEUS_MULTIPROC_DIR="$counts"
fi
trap 'rm -rf "$counts"' EXIT

# /metrics counts the requests; a line for each costs time.
export UVICORN_ACCESS_LOG="${UVICORN_ACCESS_LOG:-false}" MLFLOW_DISABLE_TELEMETRY=true
python -m mlflow models serve -m "$model" --env-manager local \
  --host "${HOST:-127.0.0.1}" --port "${PORT:-5001}" --workers "${WORKERS:-1}" &
server=$!
trap 'kill "$server"' INT TERM
wait "$server" || wait "$server"
