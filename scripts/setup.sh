#!/usr/bin/env bash
# Makes .venv from the lock and, as root, installs Debian's packages. Usage: setup.sh node|dev
# RAPHA_TORCH_INDEX may name a package index with a CPU build of torch (the default build can be several GB).
set -euo pipefail
cd "$(dirname "$0")/.."
kind=${1:?node or dev}
torch=2.13.0

python=""
for candidate in "${PYTHON:-}" python3.11 python3.12 python3.13 python3; do
  [ -n "$candidate" ] && command -v "$candidate" >/dev/null || continue
  if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then python=$candidate; break; fi
done
[ -n "$python" ] || { echo "Python 3.11 or newer is needed (Debian: apt-get install python3 python3-venv)"; exit 2; }

packages_node="bubblewrap libseccomp2 util-linux"
packages_dev="$packages_node swtpm swtpm-tools tpm2-tools libtss2-tcti-swtpm0 orthanc orthanc-dicomweb dcmtk dicom3tools pixelmed-apps libsaxonhe-java postgresql"
packages_dev="$packages_dev skopeo umoci chromium iproute2 nftables"
wanted=$packages_node; [ "$kind" = dev ] && wanted=$packages_dev
missing=""
if command -v dpkg-query >/dev/null; then
  for package in $wanted; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing="$missing $package"
  done
elif ! command -v bwrap >/dev/null; then
  missing=" bubblewrap"
fi
if [ -n "$missing" ]; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "installing from Debian:$missing"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq >/dev/null
    apt-get install -y -qq --no-install-recommends $missing >/dev/null
  elif [ "$kind" = node ] && ! command -v bwrap >/dev/null; then
    echo "bubblewrap is missing. An administrator must run:  apt-get install bubblewrap"
    exit 3
  elif [ "$kind" = dev ]; then
    echo "not installed (needs root):$missing"
    [ "${ALLOW_MISSING_PEERS:-0}" = 1 ] || { echo "set ALLOW_MISSING_PEERS=1 to go on without them"; exit 3; }
  fi
fi

lock=requirements/$kind.txt
stamp=".venv/.lock-$(cat "$lock" pyproject.toml infra/package/pyproject.toml <(echo "torch $torch") | sha256sum | cut -c1-16)"
if [ ! -e "$stamp" ] && ! { [ "$kind" = node ] && ls .venv/.lock-dev-ok >/dev/null 2>&1 && [ "$(cat .venv/.lock-dev-ok)" = "$(sha256sum requirements/dev.txt | cut -c1-16)" ]; }; then
  echo "setting up .venv (locked dependencies; a few minutes the first time)"
  [ -x .venv/bin/python ] || "$python" -m venv .venv
  pip() { .venv/bin/python -m pip --disable-pip-version-check -q "$@" 2> >(grep -v '^WARNING: Location' >&2); }
  pip install --require-hashes -r requirements/pip.txt
  pip install --require-hashes -r "$lock"
  # torch stands outside the hashes: which build fits depends on the machine. Its own needs are in the lock.
  pip install ${RAPHA_TORCH_INDEX:+--index-url "$RAPHA_TORCH_INDEX"} "torch==$torch"
  pip install --no-deps --no-build-isolation -e . -e infra/package
  [ "$kind" = dev ] && sha256sum requirements/dev.txt | cut -c1-16 > .venv/.lock-dev-ok
  touch "$stamp"
fi
.venv/bin/python -m infra.engine  # once: the database that a new engine starts from
