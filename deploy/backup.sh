#!/bin/sh
# Copies the databases and the artifacts into a new folder: deploy/backup.sh FOLDER. The server may run meanwhile.
set -eu
: "${TRACKING_DATABASE:?}" "${AUTH_DATABASE:?}" "${STUDIES_DATABASE:?}" "${ARTIFACTS:?}"
umask 077
mkdir "$1"
# The databases first: what is logged in between is a file without a run, and not a run without its file.
pg_dump --format=custom --no-owner --file="$1/tracking.dump" "$TRACKING_DATABASE"
pg_dump --format=custom --no-owner --file="$1/auth.dump" "$AUTH_DATABASE"
pg_dump --format=custom --no-owner --file="$1/studies.dump" "$STUDIES_DATABASE"
case "$ARTIFACTS" in
s3://*) aws s3 sync --only-show-errors "$ARTIFACTS" "$1/artifacts" ;;
*) mkdir "$1/artifacts" && tar -C "$ARTIFACTS" -cf - . | tar -C "$1/artifacts" -xf - ;;
esac
