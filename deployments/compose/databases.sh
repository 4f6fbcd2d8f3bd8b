#!/usr/bin/env bash
# Run once by the PostgreSQL image: a user and a database for each part.
set -euo pipefail
for part in nocturne prefect mlflow; do
  variable="$(echo "$part" | tr '[:lower:]' '[:upper:]')_DB_PASSWORD"
  psql --username postgres --set ON_ERROR_STOP=1 --set name="$part" --set password="${!variable}" <<'SQL'
CREATE USER :"name" PASSWORD :'password';
CREATE DATABASE :"name" OWNER :"name";
SQL
done
