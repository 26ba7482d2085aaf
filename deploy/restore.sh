#!/bin/sh
# Restore a backup into empty databases and an empty artifact store: deploy/restore.sh FOLDER. The server must not be
# running. What is restored is accessible to the user who owns it alone.
set -eu
umask 077
: "${TRACKING_DATABASE:?}" "${AUTH_DATABASE:?}" "${STUDIES_DATABASE:?}" "${ARTIFACTS:?}"
backup=${1:?deploy/restore.sh FOLDER}
# as a shell's completion leaves it
backup=${backup%/}
fail() { echo "deploy/restore.sh: $1" >&2 && exit 1; }
fill() { pg_restore --single-transaction --no-owner --dbname="$1" "$backup/$2" || fail "$2 could not be restored"; }

# Check everything before anything is written.
case "$ARTIFACTS" in
s3://*) artifacts=artifacts there='' ;;
*) artifacts=artifacts.tar there=$([ ! -e "$ARTIFACTS" ] || ls -A "$ARTIFACTS") || fail "$ARTIFACTS must be a folder" ;;
esac
for name in tracking.dump auth.dump studies.dump "$artifacts" SHA256SUMS; do
  [ -e "$backup/$name" ] || fail "$backup is no complete backup: it has no $name"
done
# A cut list of digests names fewer files than there are.
listed=$(wc -l <"$backup/SHA256SUMS")
found=$(cd "$backup" && find . -type f ! -path ./SHA256SUMS -exec printf x \; | wc -c)
[ "$listed" -eq "$found" ] || fail "$backup is damaged: SHA256SUMS lists $listed files, and there are $found"
(cd "$backup" && sha256sum --check --strict --quiet SHA256SUMS) >&2 ||
  fail "$backup is damaged: its files are not those that were backed up; use another backup"
[ -z "$there" ] || fail "$ARTIFACTS must be empty: it holds $(echo "$there" | head -1)"

fill "$TRACKING_DATABASE" tracking.dump
fill "$AUTH_DATABASE" auth.dump
fill "$STUDIES_DATABASE" studies.dump
case "$ARTIFACTS" in
s3://*) aws s3 sync --only-show-errors "$backup/artifacts" "$ARTIFACTS" ;;
*) mkdir -p "$ARTIFACTS" && tar -C "$ARTIFACTS" --no-same-permissions -xf "$backup/artifacts.tar" ;;
esac
