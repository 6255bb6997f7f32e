#!/bin/sh
# Prints the path of an anvil binary; fetches it into build/ when it is not there. The version and the bytes are those of the lock.
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)
lock="$here/infra/contracts/anvil/package-lock.json"
folder="$here/build/anvil-$(sha256sum "$lock" | cut -c1-12)"
if [ ! -x "$folder/anvil" ]; then
    mkdir -p "$here/build"
    new=$(mktemp -d "$here/build/anvil-new.XXXXXX")
    trap 'rm -rf "$new"' EXIT
    cp "$here/infra/contracts/anvil/package.json" "$lock" "$new/"
    (cd "$new" && npm ci --ignore-scripts --no-audit --no-fund >&2)
    found=$(cd "$new" && find node_modules -type f -name anvil | head -n 1)
    [ -n "$found" ] || { echo "anvil's package holds no binary for this machine" >&2; exit 1; }
    chmod +x "$new/$found"
    ln -s "$found" "$new/anvil"
    # Two tests may come here at once: the first one's folder stays.
    mv -T "$new" "$folder" 2>/dev/null || [ -x "$folder/anvil" ]
fi
echo "$folder/anvil"
