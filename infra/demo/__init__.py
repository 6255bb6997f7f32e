"""The demo: an embedded hospital, an AI team, an orchestrator, a chain and an attestor, each a process, around a real node."""
