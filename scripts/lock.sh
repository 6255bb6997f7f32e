#!/usr/bin/env bash
# Compiles the hashed locks for every Python from 3.11 and every platform. Needs uv (pip install uv).
set -euo pipefail
cd "$(dirname "$0")/.."
flags=(--universal --python-version 3.11 --generate-hashes --no-strip-extras --no-emit-index-url --no-emit-find-links -q --custom-compile-command "make lock")
uv pip compile "${flags[@]}" requirements/dev.in -o requirements/dev.txt
uv pip compile "${flags[@]}" -c requirements/dev.txt requirements/node.in -o requirements/node.txt
uv pip compile "${flags[@]}" requirements/pip.in -o requirements/pip.txt
