"""The node's own commands, one area a file."""
