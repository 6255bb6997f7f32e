#!/usr/bin/env bash
# Every test, several files at once: tests wait for processes more than they compute. What cannot be had at all is deselected by its marker and named; nothing else is left out.
set -euo pipefail
cd "$(dirname "$0")/.."
marks="not opa_server and not sgx_hardware"
[ -n "${RAPHA_TEST_OPA_URL:-}" ] && marks="not sgx_hardware"
[ "${1:-}" = soak ] || marks="$marks and not soak"
log=$(mktemp); trap 'rm -f "$log"' EXIT
set +e
.venv/bin/python -m pytest -q -n "${RAPHA_TEST_PROCESSES:-3}" --dist loadfile --no-loadscope-reorder -m "$marks" ${PYTEST_ARGS:-} 2>&1 | tee "$log"
status=${PIPESTATUS[0]}
set -e
[ -n "${RAPHA_TEST_OPA_URL:-}" ] || echo "not run here: a real OPA server (set RAPHA_TEST_OPA_URL)"
echo "not run here: SGX or TDX hardware"
if [ "${CI:-}" = true ] && grep -qE '^(SKIPPED|.*[0-9]+ skipped)' "$log"; then
  echo "a test was skipped; in CI that is a failure"; exit 1
fi
exit "$status"
