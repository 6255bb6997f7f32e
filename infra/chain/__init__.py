"""The development chain: an EVM in one process, spoken to by JSON-RPC on loopback, whose state outlives it."""
