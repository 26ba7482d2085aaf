#!/bin/sh
# Run the team's tracking server in the foreground. Its settings are the variables of deploy/team.env.
set -eu
# The server's user alone can read the artifacts that the server stores.
umask 077
: "${TRACKING_DATABASE:?}" "${AUTH_DATABASE:?}" "${ARTIFACTS:?}" "${ALLOWED_HOSTS:?}" "${MLFLOW_FLASK_SERVER_SECRET_KEY:?}"
with_driver() { printf 'postgresql+psycopg://%s' "${1#postgresql://}"; }
# In an INI file a percent sign, as of an escaped character in a URL, is written twice.
for_ini() { printf '%s' "$1" | sed 's/%/%%/g'; }

# The first start creates the administrator from MLFLOW_AUTH_ADMIN_USERNAME and MLFLOW_AUTH_ADMIN_PASSWORD.
MLFLOW_AUTH_CONFIG_PATH=$(mktemp)
export MLFLOW_AUTH_CONFIG_PATH
trap 'rm -f "$MLFLOW_AUTH_CONFIG_PATH"' EXIT
printf '[mlflow]\ndefault_permission = READ\ndatabase_uri = %s\n' "$(for_ini "$(with_driver "$AUTH_DATABASE")")" >"$MLFLOW_AUTH_CONFIG_PATH"

# Job workers serve MLflow's LLM judges only and would take 2 GB of memory.
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false MLFLOW_DISABLE_TELEMETRY=true
python -m mlflow server --app-name basic-auth \
  --host "${HOST:-127.0.0.1}" --port "${PORT:-5000}" --allowed-hosts "$ALLOWED_HOSTS" --workers "${WORKERS:-2}" \
  --backend-store-uri "$(with_driver "$TRACKING_DATABASE")" \
  --serve-artifacts --artifacts-destination "$ARTIFACTS" &
server=$!
trap 'kill "$server"' INT TERM
wait "$server" || wait "$server"
