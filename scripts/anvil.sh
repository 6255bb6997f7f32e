#!/bin/sh
# Prints the path of an anvil binary; fetches it into build/anvil when it is not there. The version and the bytes are those of the lock.
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)
folder="$here/build/anvil"
if [ ! -x "$folder/anvil" ]; then
    mkdir -p "$folder"
    cp "$here/infra/contracts/anvil/package.json" "$here/infra/contracts/anvil/package-lock.json" "$folder/"
    (cd "$folder" && npm ci --ignore-scripts --no-audit --no-fund >&2)
    found=$(find "$folder/node_modules" -type f -name anvil -path '*linux*' | head -n 1)
    [ -n "$found" ] || { echo "anvil's package holds no binary for this machine" >&2; exit 1; }
    chmod +x "$found"
    ln -sf "$found" "$folder/anvil"
fi
echo "$folder/anvil"
