#!/bin/sh
# Create the secrets of compose.yaml in deploy/docker/secrets, each unless it is there: deploy/docker/make-secrets.sh
set -eu
cd "$(dirname "$0")"
umask 077
mkdir -p secrets
for name in admin_password server_key postgres_password server_database_password trainer_database_password \
  trainer_password store_user store_password; do
  [ -s "secrets/$name" ] || od -An -v -N24 -tx1 /dev/urandom | tr -d ' \n' >"secrets/$name"
done
# Compose mounts the files as they are, and containers read them as users of their own; the folder keeps others out.
chmod 444 secrets/*
