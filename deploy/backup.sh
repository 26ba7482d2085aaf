#!/bin/sh
# Copies the databases and the artifacts into a new folder: deploy/backup.sh FOLDER. The server may run meanwhile.
# The folder appears when all is in it and on the disk; what fails leaves none.
set -eu
: "${TRACKING_DATABASE:?}" "${AUTH_DATABASE:?}" "${STUDIES_DATABASE:?}" "${ARTIFACTS:?}"
backup=${1:?deploy/backup.sh FOLDER}
backup=${backup%/}
unfinished=$backup.unfinished
fail() { echo "deploy/backup.sh: $1" >&2 && exit 1; }

[ ! -e "$backup" ] || fail "$backup must be a new folder: it exists"
tar --version | grep -q GNU || fail "GNU's tar is needed, for what its exit code tells"
umask 077
mkdir "$unfinished"
trap 'rm -rf "$unfinished"' EXIT
trap 'exit 1' HUP INT TERM

# The databases first: what is logged in between is a file without a run, and not a run without its file.
pg_dump --format=custom --no-owner --file="$unfinished/tracking.dump" "$TRACKING_DATABASE"
pg_dump --format=custom --no-owner --file="$unfinished/auth.dump" "$AUTH_DATABASE"
pg_dump --format=custom --no-owner --file="$unfinished/studies.dump" "$STUDIES_DATABASE"
case "$ARTIFACTS" in
s3://*) mkdir "$unfinished/artifacts" && aws s3 sync --only-show-errors "$ARTIFACTS" "$unfinished/artifacts" ;;
# 1: a file has changed or gone meanwhile, which no run is done with; 2: one could not be read, or not be written.
*) tar -C "$ARTIFACTS" -cf "$unfinished/artifacts.tar" . || [ $? -eq 1 ] || fail "$ARTIFACTS could not be copied" ;;
esac
sync -f "$unfinished"
mv -T "$unfinished" "$backup"
