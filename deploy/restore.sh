#!/bin/sh
# Puts a backup into empty databases and an empty artifact store: deploy/restore.sh FOLDER. The server must not run.
set -eu
: "${TRACKING_DATABASE:?}" "${AUTH_DATABASE:?}" "${STUDIES_DATABASE:?}" "${ARTIFACTS:?}"
pg_restore --exit-on-error --no-owner --dbname="$TRACKING_DATABASE" "$1/tracking.dump"
pg_restore --exit-on-error --no-owner --dbname="$AUTH_DATABASE" "$1/auth.dump"
pg_restore --exit-on-error --no-owner --dbname="$STUDIES_DATABASE" "$1/studies.dump"
case "$ARTIFACTS" in
s3://*) aws s3 sync --only-show-errors "$1/artifacts" "$ARTIFACTS" ;;
*) mkdir -p "$ARTIFACTS" && tar -C "$1/artifacts" -cf - . | tar -C "$ARTIFACTS" -xf - ;;
esac
