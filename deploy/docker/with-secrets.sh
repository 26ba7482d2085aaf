#!/bin/sh
# Run a command with secrets that are in files, as Docker and Kubernetes mount them: where NAME_FILE names a file, NAME is
# its content. So no secret is in an image, in compose.yaml or in what `docker inspect` shows.
set -eu
for name in MLFLOW_TRACKING_PASSWORD MLFLOW_FLASK_SERVER_SECRET_KEY MLFLOW_AUTH_ADMIN_PASSWORD TRAINER_PASSWORD \
  PGPASSWORD AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY CONVMIXER_NOTIFY_URL; do
  eval "file=\${${name}_FILE:-}"
  [ -n "$file" ] || continue
  [ -r "$file" ] || { echo "${name}_FILE must be a file that can be read, got $file" >&2; exit 2; }
  eval "$name=\$(cat \"\$file\")"
  export "${name?}"
  unset "${name}_FILE"
done
exec "$@"
