#!/usr/bin/env bash
# The demo: rapha demo, with the engine kept local and silent towards the outside.
set -euo pipefail
cd "$(dirname "$0")/.."
exec .venv/bin/rapha demo "$@"
