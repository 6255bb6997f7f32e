"""Measurements: ours beside a peer's in the same run, interleaved, as medians and a ratio. `make bench` prints the table."""
