#!/bin/sh
# Makes the database unless the folder has one, by the variables that Docker's image of it knows, and serves it.
set -eu
user=${POSTGRES_USER:-postgres}
if [ ! -s "$PGDATA/PG_VERSION" ]; then
  password=${POSTGRES_PASSWORD_FILE:-}
  if [ -z "$password" ]; then
    password=$(mktemp)
    echo "${POSTGRES_PASSWORD:?set POSTGRES_PASSWORD or POSTGRES_PASSWORD_FILE}" > "$password"
  fi
  initdb --username="$user" --pwfile="$password" --auth-local=trust --auth-host=scram-sha-256 --encoding=UTF8 --no-locale
  echo "host all all all scram-sha-256" >> "$PGDATA/pg_hba.conf"
  [ "${POSTGRES_DB:-$user}" = postgres ] || echo "CREATE DATABASE \"${POSTGRES_DB:-$user}\"" | postgres --single postgres
fi
exec "$@"
