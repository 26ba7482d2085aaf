#!/bin/sh
# Back up the databases and the artifacts into a new folder: deploy/backup.sh FOLDER. The server may be running.
# The folder appears once everything is in it and on the disk, with a digest of each file. A failed backup leaves none.
set -eu
: "${TRACKING_DATABASE:?}" "${AUTH_DATABASE:?}" "${STUDIES_DATABASE:?}" "${ARTIFACTS:?}"
backup=${1:?deploy/backup.sh FOLDER}
backup=${backup%/}
unfinished=$backup.unfinished
fail() { echo "deploy/backup.sh: $1" >&2 && exit 1; }

[ ! -e "$backup" ] || fail "$backup must be a new folder: it exists"
tar --version | grep -q GNU || fail "GNU tar is needed, because the script relies on its exit codes"
umask 077
mkdir "$unfinished"
trap 'rm -rf "$unfinished" "$unfinished.sums"' EXIT
trap 'exit 1' HUP INT TERM

# The databases come first: an artifact that is logged meanwhile then lacks its run, but no run lacks its artifact.
pg_dump --format=custom --no-owner --file="$unfinished/tracking.dump" "$TRACKING_DATABASE"
pg_dump --format=custom --no-owner --file="$unfinished/auth.dump" "$AUTH_DATABASE"
pg_dump --format=custom --no-owner --file="$unfinished/studies.dump" "$STUDIES_DATABASE"
case "$ARTIFACTS" in
s3://*) mkdir "$unfinished/artifacts" && aws s3 sync --only-show-errors "$ARTIFACTS" "$unfinished/artifacts" ;;
# Exit code 1: a file changed or disappeared meanwhile, so its run is not finished; 2: a file could not be read or written.
*) tar -C "$ARTIFACTS" -cf "$unfinished/artifacts.tar" . || [ $? -eq 1 ] || fail "$ARTIFACTS could not be copied" ;;
esac
# restore.sh checks every file against its digest
(cd "$unfinished" && find . -type f -exec sha256sum {} +) >"$unfinished.sums" || fail "digests could not be computed"
mv "$unfinished.sums" "$unfinished/SHA256SUMS"
sync -f "$unfinished"
mv -T "$unfinished" "$backup"
