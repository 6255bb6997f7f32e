# The whole tool interface. Every target does its own set-up.
SHELL := /bin/bash
PY := .venv/bin/python
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export DO_NOT_TRACK := 1

.PHONY: demo test soak check bench setup setup-node lock clean help

help: ## what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

demo: setup-node ## the main job on an embedded hospital, shown step by step
	@scripts/demo.sh $(DEMO_ARGS)

test: setup ## every test, real peers included
	@scripts/test.sh

soak: setup ## the long forms of the tests, then the mutations of docs/properties.md
	@scripts/test.sh soak
	@$(PY) -m scripts.mutations

check: setup ## format, lint, types, import direction
	@.venv/bin/ruff format --check .
	@.venv/bin/ruff check .
	@.venv/bin/mypy
	@.venv/bin/lint-imports

bench: setup ## all measurements side by side, as a table and JSON
	@$(PY) -m bench

setup: ## virtual environment, locked dependencies and Debian's peers, for development
	@scripts/setup.sh dev

setup-node: ## what the node and the demo need, no more
	@scripts/setup.sh node

lock: ## compile requirements/*.in into hashed locks (needs uv)
	@scripts/lock.sh

clean: ## remove what set-up made
	rm -rf .venv build
