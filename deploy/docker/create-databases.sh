#!/bin/sh
# Create the users and databases of compose.yaml. PostgreSQL's image runs this once, when its volume is empty. Those who
# train can reach the studies, but neither runs nor passwords.
set -eu
psql --set=ON_ERROR_STOP=1 --quiet --username="$POSTGRES_USER" --dbname=postgres \
  --set=server="$(cat "$SERVER_PASSWORD_FILE")" --set=trainer="$(cat "$TRAINER_PASSWORD_FILE")" <<'END'
CREATE ROLE mlflow LOGIN PASSWORD :'server';
CREATE ROLE trainer LOGIN PASSWORD :'trainer';
CREATE DATABASE tracking OWNER mlflow;
CREATE DATABASE auth OWNER mlflow;
CREATE DATABASE studies OWNER trainer;
REVOKE CONNECT ON DATABASE tracking, auth, studies FROM PUBLIC;
END
