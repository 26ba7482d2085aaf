#!/bin/sh
# Restore a backup into empty databases and an empty artifact store: deploy/restore.sh FOLDER. The server must not be
# running.
set -eu
: "${TRACKING_DATABASE:?}" "${AUTH_DATABASE:?}" "${STUDIES_DATABASE:?}" "${ARTIFACTS:?}"
backup=${1:?deploy/restore.sh FOLDER}
fail() { echo "deploy/restore.sh: $1" >&2 && exit 1; }
fill() { pg_restore --single-transaction --no-owner --dbname="$1" "$backup/$2" || fail "$2 could not be restored"; }

# Check everything before anything is written.
case "$ARTIFACTS" in
s3://*) artifacts=artifacts there='' ;;
*) mkdir -p "$ARTIFACTS" && artifacts=artifacts.tar there=$(ls -A "$ARTIFACTS") ;;
esac
for name in tracking.dump auth.dump studies.dump "$artifacts"; do
  [ -e "$backup/$name" ] || fail "$backup is no complete backup: it has no $name"
done
[ -z "$there" ] || fail "$ARTIFACTS must be empty: it holds $(echo "$there" | head -1)"

fill "$TRACKING_DATABASE" tracking.dump
fill "$AUTH_DATABASE" auth.dump
fill "$STUDIES_DATABASE" studies.dump
case "$ARTIFACTS" in
s3://*) aws s3 sync --only-show-errors "$backup/artifacts" "$ARTIFACTS" ;;
*) tar -C "$ARTIFACTS" -xf "$backup/artifacts.tar" ;;
esac
